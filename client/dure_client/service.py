"""What makes the agent a service of this machine: the texts of its unit, user, settings file and command. Pure.

The unit is as tight as the agent and its trainer allow. Four things stay open, and why:

- MemoryDenyWriteExecute: numba and torch compile code in memory; with it `import numba` already fails.
- User namespaces and mounts: the trainer's sandbox (bubblewrap) is made of them. The agent has no capability outside.
- ProtectKernelTunables, ProtectKernelLogs and ProcSubset: they lay mounts over /proc, and under such a /proc the kernel
  refuses the sandbox a /proc of its own. What they protect needs root, which the agent's user is not and cannot become.
- ProtectHostname: it refuses the call by which the sandbox names its own host. The machine's own name needs root.
"""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Final
from xml.etree import ElementTree  # writes only; nothing is parsed

NAME: Final = "dure-agent"
WINDOWS_NAME: Final = f"{NAME}-service"
"""Of the definition and of WinSW beside it; `dure-agent.exe` is the agent itself."""
WRITTEN_BY: Final = "# Written by `dure-agent install`."
EX_CONFIG: Final = 78
"""`dure-agent run` ends with it where only a person helps (sysexits.h's number); the unit then starts nothing again."""
MEMORY_PERCENT: Final = 85
"""Of the machine's memory, for the agent and all trainers together."""
HIDDEN_FOLDERS: Final = ("/home", "/root", "/run/user")
"""What ProtectHome hides from a service."""


@dataclass(frozen=True)
class Service:
    """What the service is made of. program: `dure-agent` itself; environment: the folder that it is installed in;
    data: folders with the firm's rows, shown read-only; gpu: whether the trainer may use this machine's GPUs.

    User and paths stand in what systemd reads as they are, unquoted: `is_user` and `is_plain_path` hold for them.
    """

    home: PurePath
    program: PurePath
    environment: PurePath
    settings: PurePath
    user: str = NAME
    data: tuple[PurePath, ...] = ()
    gpu: bool = False


def is_user(name: str) -> bool:
    """Whether systemd takes this for a user's name, and not for a number: `0` is root."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,30}", name) is not None and name != "root"


def is_plain_path(path: PurePath) -> bool:
    """Whether a path means the same in a unit, in a line for systemd-sysusers, in a shell and to people."""
    return re.fullmatch(r"/[A-Za-z0-9/._-]+", str(path)) is not None and ".." not in path.parts


def systemd_unit(service: Service) -> str:
    """dure-agent.service."""
    shown = [path for path in (service.environment, service.program.parent) if _is_hidden(path)]
    lines = [
        WRITTEN_BY,
        "[Unit]",
        "Description=Dure agent: trains on this firm's data, lets nothing out but what is encrypted and recorded",
        "Wants=network-online.target",
        "After=network-online.target nss-lookup.target",
        "",
        "[Service]",
        "Type=notify",
        f"ExecStart={service.program} run",
        f"Environment=DURE_AGENT_HOME={service.home}",
        f"EnvironmentFile=-{service.settings}",
        f"User={service.user}",
        f"Group={service.user}",
        "UMask=0077",
        "Restart=on-failure",
        "RestartSec=30s",
        f"RestartPreventExitStatus={EX_CONFIG}",
        "WatchdogSec=120s",
        "TimeoutStopSec=30s",
        "# Out of memory, the kernel ends a trainer, and the agent goes on. Each trainer may have 1024 threads.",
        "OOMPolicy=continue",
        "TasksMax=4096",
        "# Agent and trainers together; each trainer has a limit of its own. The rest is for what else runs here.",
        f"MemoryMax={MEMORY_PERCENT}%",
        "",
        "# Files: everything is read-only but the home; other people's homes are not there.",
        *_state_directory(service.home),
        f"ReadWritePaths={service.home}",
        "ProtectSystem=strict",
        "ProtectHome=tmpfs",
        *([f"BindPaths={service.home}"] if _is_hidden(service.home) else []),
        *(f"BindReadOnlyPaths={path}" for path in dict.fromkeys([*shown, *service.data])),
        "PrivateTmp=yes",
        *(["PrivateDevices=no", "DevicePolicy=auto"] if service.gpu else ["PrivateDevices=yes"]),
        "",
        "# Rights: none of root's, and no way to get them.",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "RestrictSUIDSGID=yes",
        "RemoveIPC=yes",
        "",
        "# Kernel.",
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectKernelModules=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "KeyringMode=private",
        "",
        "# Calls: what services need, and the mounts of the trainer's sandbox. AF_NETLINK is for its loopback and DNS.",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service @mount sethostname",
        "SystemCallErrorNumber=EPERM",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "RestrictNamespaces=user mnt pid net ipc uts cgroup",
        "",
        "# Not set, because the agent would not run: MemoryDenyWriteExecute (numba and torch compile in memory);",
        "# ProtectKernelTunables, ProtectKernelLogs, ProcSubset (under their /proc the sandbox gets none of its own);",
        "# ProtectHostname (the sandbox names its own host, and the unit would refuse it that).",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def command_script(service: Service) -> str:
    """A script by which root gives one command of the agent: as the service's user, and with the service's settings.

    systemd reads the settings file, so the command gets from it what the service gets. Relative paths are the caller's,
    where that user may go to the caller's folder. In a command's words systemd reads `$$` as `$`, and what follows a
    single one as a variable: so each is doubled.
    """
    options = (
        *("--quiet", "--collect", "--wait", "--pty", "--pipe"),  # the last two: whichever fits where it is called
        f"--uid={service.user}",
        f"--setenv=DURE_AGENT_HOME={service.home}",
        f"--property=EnvironmentFile=-{service.settings}",
    )
    return "\n".join(
        [
            "#!/bin/sh",
            WRITTEN_BY,
            f"# One command of the Dure agent, as its user and with its settings. As root: {NAME}-as-service status",
            "# systemd would put variables in the place of a single $ in a word, so each is doubled.",
            'for word in "$@"; do',
            "    shift",
            "    doubled=",
            '    while [ "$word" != "${word#*\\$}" ]; do',
            "        doubled=$doubled${word%%\\$*}'$$'",
            "        word=${word#*\\$}",
            "    done",
            '    set -- "$@" "$doubled$word"',
            "done",
            f'exec systemd-run {shlex.join(options)} "--property=WorkingDirectory=-$PWD" \\',
            f'    -- {shlex.quote(str(service.program))} "$@"',
            "",
        ]
    )


def sysusers(service: Service) -> str:
    """The line by which `systemd-sysusers` makes the agent's own user, who cannot log in."""
    return f'{WRITTEN_BY}\nu {service.user} - "Dure agent" {service.home} -\n'


def settings_file(names: Iterable[str]) -> str:
    """The settings file a firm starts with: every setting, none of them set. Of mode 0600, never overwritten."""
    lines = [
        "# Settings of the Dure agent. Each goes before the one in agent.toml; see docs/installation.md.",
        "# Read by the service manager and given to the agent; never on a command line.",
        "",
        *(f"#{name}=" for name in names),
    ]
    return "\n".join(lines) + "\n"


def windows_service(service: Service) -> str:
    """A definition for WinSW, the service wrapper, which reads the one that has its own file's name: WINDOWS_NAME.

    The service runs as its own virtual account, which has no password.
    """
    root = ElementTree.Element("service")
    for name, text in (
        ("id", NAME),
        ("name", "Dure agent"),
        ("description", "Trains on this firm's data, lets nothing out but what is encrypted and recorded."),
        ("executable", str(service.program)),
        ("arguments", "run"),
        ("startmode", "Automatic"),
        ("delayedAutoStart", "true"),
        ("stoptimeout", "30 sec"),
        ("logpath", str(service.home / "logs")),
    ):
        ElementTree.SubElement(root, name).text = text
    ElementTree.SubElement(root, "env", name="DURE_AGENT_HOME", value=str(service.home))
    ElementTree.SubElement(root, "onfailure", action="restart", delay="30 sec")
    ElementTree.SubElement(root, "log", mode="roll")
    account = ElementTree.SubElement(root, "serviceaccount")
    ElementTree.SubElement(account, "username").text = f"NT SERVICE\\{NAME}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _state_directory(home: PurePath) -> list[str]:
    """Lets systemd make a home under /var/lib, of the right owner and mode."""
    if home.parent != PurePosixPath("/var/lib"):
        return []
    return [f"StateDirectory={home.name}", "StateDirectoryMode=0700"]


def _is_hidden(path: PurePath) -> bool:
    return any(path.is_relative_to(folder) for folder in HIDDEN_FOLDERS)
