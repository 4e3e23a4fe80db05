"""The full sandbox: bubblewrap's namespaces and mounts, a filter of system calls, and limits. Linux only.

A trainer in it sees a file system made for it: interpreter, packages, shared libraries, and what was granted; all of it
read-only but its scratch folder. It has no network, no capability, no process but itself, no agent's home.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dure_client.trainer.sandbox import seccomp
from dure_client.trainer.sandbox.interface import Confined, Grants, Limits, SandboxError, SandboxLevel
from dure_client.trainer.sandbox.limits import limited, marked
from dure_client.trainer.sandbox.python_files import python_files

PROGRAM = "bwrap"
_TRIAL_SECONDS = 20.0
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64")
# None of these is about this host's people or services. Topology is for OpenMP, which counts processors there.
_HARMLESS = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/sys/devices/system/cpu")
# Not /dev/zero and /dev/shm, shared mappings of which are memory that no limit counts.
_DEVICES = ("/dev/null", "/dev/random", "/dev/urandom")
_ISOLATION = (
    *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *("--hostname", "trainer", "--cap-drop", "ALL", "--new-session", "--die-with-parent"),
)


@dataclass(frozen=True)
class Bubblewrap:
    """`program`: bwrap's path; `machine`: as `platform.machine()` names it."""

    program: Path
    machine: str
    level = SandboxLevel.FULL
    why_not_more = ""

    @classmethod
    def find(cls) -> "Bubblewrap":
        """bubblewrap on this host, tried. Raises SandboxError."""
        machine, found = platform.machine(), shutil.which(PROGRAM)
        if not sys.platform.startswith("linux"):
            raise SandboxError(f"{platform.system()} has no sandbox that Dure uses; run the agent on Linux to have one")
        if not seccomp.knows(machine):
            raise SandboxError(f"there is no filter of system calls for {machine} processors; x86_64 and aarch64 have")
        if found is None:
            raise SandboxError("bubblewrap is not installed; `apt-get install bubblewrap` or the like, then try again")
        sandbox = cls(Path(found), machine)
        sandbox._try()
        return sandbox

    def confine(self, command: Sequence[str], grants: Grants, limits: Limits) -> Confined:
        """The command behind bwrap. What is granted, also which files, stands in no command line."""
        # Threads are counted by user and user namespace, and this namespace is the trainer's own.
        inside = limited(command, limits, num_threads=limits.num_threads)
        shown = mounts(grants, python_files())  # first, because it may raise
        filter_fd = _in_memory("filter", seccomp.filter_program(self.machine))
        options = [*_ISOLATION, "--seccomp", str(filter_fd), *shown]
        options_fd = _in_memory("options", b"".join(os.fsencode(option) + b"\0" for option in options))
        outside = (str(self.program), "--args", str(options_fd), "--")
        return Confined(marked((*outside, *inside), limits), (filter_fd, options_fd))

    def _try(self) -> None:
        confined = self.confine([sys.executable, "-I", "-S", "-c", "print('here')"], Grants(), Limits(1 << 30))
        try:
            tried = confined.run(_TRIAL_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxError(f"{self.program} cannot be started ({type(error).__name__})") from error
        if tried.stdout != b"here\n":
            said = tried.stderr.decode(errors="replace").strip().splitlines()[:1]
            raise SandboxError(
                f"bubblewrap is refused here ({''.join(said) or f'exit status {tried.returncode}'}): allow user "
                "namespaces to the agent's user (kernel.unprivileged_userns_clone, user.max_user_namespaces, or an "
                "AppArmor profile for bwrap; a container needs them from its host); docs/sandbox.md has the settings"
            )


def _in_memory(name: str, content: bytes) -> int:
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def mounts(grants: Grants, python: Sequence[Path]) -> list[str]:
    """bwrap's options for the file system, in the order in which they are done.

    (1) System and Python. (2) Hidden folders are covered, wherever (1) shows them. (3) What is granted, which may lie
    inside a hidden folder. (4) Nothing that bwrap made to hold all this stays writable, nor /proc: /proc/sys asks for
    the user alone, not for capabilities, and a trainer of root's could set the whole host there.
    """
    system = [Path(path) for path in (*_LIBRARIES, *_HARMLESS)]
    shown = [path for path in (*system, *python) if path.exists()]
    covers = _covers([path.resolve() for path in grants.hidden], shown)
    options: list[str] = []
    for path in shown:
        options += _link_or_bind(path)
    options += ["--proc", "/proc", "--tmpfs", "/dev"]
    for name in _DEVICES:
        options += ["--dev-bind", name, name]
    for cover in covers:
        options += ["--tmpfs", str(cover)]
    for path in grants.readable:
        options += ["--ro-bind-try", str(path.resolve()), str(path)]  # what is missing, the trainer reports
    for device in grants.devices:
        options += ["--dev-bind-try", str(device), str(device)]
    for path in grants.writable:
        options += ["--bind", str(path.resolve()), str(path)]
    for made in (*covers, Path("/proc"), Path("/dev"), Path("/")):
        options += ["--remount-ro", str(made)]
    return options


def _covers(hidden: Sequence[Path], shown: Sequence[Path]) -> list[Path]:
    """Where hidden folders are to be covered: their own place, and inside whatever shows them by another path."""
    return list(dict.fromkeys(cover for folder in hidden for cover in _places_of(folder, shown)))


def _places_of(folder: Path, shown: Sequence[Path]) -> Iterator[Path]:
    yield folder
    for path in shown:
        source = path.resolve()
        if source in folder.parents:
            yield path / folder.relative_to(source)
        if source == folder:
            raise SandboxError(f"{folder} holds the agent's state and Python's files at once: move one of them away")


def _link_or_bind(path: Path) -> list[str]:
    """A path as it is: a link stays one where what it leads to is shown as well, as /lib is to usr/lib."""
    if path.is_symlink() and path.parent == Path("/"):
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path.resolve()), str(path)]
