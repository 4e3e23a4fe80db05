"""Sets limits on its own process, then becomes the command: `python -I -S launch.py NAME=VALUE… -- COMMAND…`.

The last step before a trainer, started inside the sandbox. Only the standard library, and no site-packages: no file of
an installed package runs before the limits hold. They are hard limits, so the command cannot lift them.
"""

import os
import sys


def main(arguments: list[str]) -> None:
    """Set `nice`, `oom_score_adj`, how many `processors`, limits as the `resource` module names them; then exec."""
    import resource  # noqa: PLC0415  # there is none on Windows, where nobody calls this

    end = arguments.index("--")
    os.umask(0o077)
    for setting in arguments[:end]:
        name, _, value = setting.partition("=")
        if name == "nice":
            os.nice(int(value))
        elif name == "oom_score_adj":
            if sys.platform == "linux":
                with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
                    file.write(value)
        elif name == "processors":
            if hasattr(os, "sched_setaffinity"):
                # Always the last ones, so that several trainers share them and the rest of the machine is free of all.
                os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-int(value) :])
        elif hasattr(resource, f"RLIMIT_{name}"):
            kind = getattr(resource, f"RLIMIT_{name}")
            most = resource.getrlimit(kind)[1]
            wanted = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
            resource.setrlimit(kind, (wanted, wanted))
    command = arguments[end + 1 :]
    os.execv(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
