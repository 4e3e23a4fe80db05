"""`dure-agent install` and `uninstall`: write what makes the agent a service, and say what to run. Starts nothing."""

import os
import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated

import typer
from rich.console import Console

from dure_client.home import HOME_VARIABLE, SETTING_PREFIX, AgentConfig, HomeError
from dure_client.service import (
    NAME,
    WINDOWS_NAME,
    WRITTEN_BY,
    Service,
    command_script,
    is_plain_path,
    is_user,
    settings_file,
    systemd_unit,
    sysusers,
    windows_service,
)

RUN_VARIABLES = ("DURE_AGENT_THREADS", "DURE_AGENT_JSON", "DURE_AGENT_UI_PORT", "DURE_PROXY_CREDENTIALS")
UNIT = Path(f"etc/systemd/system/{NAME}.service")
USERS = Path(f"etc/sysusers.d/{NAME}.conf")
SETTINGS = Path("etc/dure/agent.env")
COMMAND = Path(f"usr/local/sbin/{NAME}-as-service")
ENABLED = Path(f"etc/systemd/system/multi-user.target.wants/{UNIT.name}")
CGROUPS = (Path("sys/fs/cgroup/system.slice"), Path("sys/fs/cgroup/systemd/system.slice"))
"""Where the control group of a service that runs is, by their version."""
MODES = {SETTINGS: 0o600, COMMAND: 0o755}
"""Of the files that have another than 0644."""
WINDOWS_FILE = Path(f"{WINDOWS_NAME}.xml")


class Platform(StrEnum):
    """Whose service manager starts the agent."""

    SYSTEMD = "systemd"
    WINDOWS = "windows"


_Root = Annotated[Path, typer.Option("--root", help="Write below this folder instead, to look at first.")]
_Print = Annotated[
    bool, typer.Option("--print", "--dry-run", help="Print the files instead of writing them; changes nothing.")
]


def install(
    home: Annotated[
        Path, typer.Option("--home", envvar=HOME_VARIABLE, help="The agent's home; made by systemd under /var/lib.")
    ] = Path(f"/var/lib/{NAME}"),
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="A folder with this firm's rows, shown read-only. Repeatable.")
    ] = None,
    user: Annotated[str, typer.Option("--user", help="The service's own user.")] = NAME,
    gpu: Annotated[bool, typer.Option("--gpu", help="Let the trainer use this machine's GPUs.")] = False,
    platform: Annotated[
        Platform, typer.Option("--platform", help="systemd, or a WinSW definition for Windows.")
    ] = Platform.WINDOWS if sys.platform == "win32" else Platform.SYSTEMD,
    root: _Root = Path("/"),
    only_print: _Print = False,
) -> None:
    """Write the agent's service: a hardened systemd unit, its user and its settings file. Starts nothing."""
    service = Service(
        home=home.absolute(),
        program=_program(),
        environment=Path(sys.prefix),
        settings=PurePosixPath("/") / SETTINGS,
        user=_checked_user(user),
        data=tuple(path.absolute() for path in data or ()),
        gpu=gpu,
    )
    for path in (service.home, service.program, service.environment, *service.data):
        _check_path(path, platform)
    files = _files(service, platform)
    if only_print:
        for path, text in files.items():
            typer.echo(f"==> /{path} <==\n{text}")
        return
    target = root if platform is Platform.SYSTEMD else Path.cwd() if root == Path("/") else root
    for path, text in files.items():
        _write(target, path, text)
    out = Console(highlight=False, soft_wrap=True, markup=False)
    for line in _next(service, platform, target):
        out.print(line)


def uninstall(root: _Root = Path("/"), only_print: _Print = False) -> None:
    """Remove a stopped and disabled service. Its home with keys and ledger stays, and so does its settings file."""
    gone = [file for file in (root / UNIT, root / USERS, root / COMMAND) if file.exists()]
    if not gone:
        raise HomeError(f"there is no {root / UNIT}: nothing was installed here")
    for file in gone:
        _check_ours(file)
    traces = [root / path for path in (ENABLED, *(group / UNIT.name for group in CGROUPS))]
    found = [path for path in traces if path.exists() or path.is_symlink()]
    if found:
        raise HomeError(f"the service is enabled or runs ({found[0]}): run `systemctl disable --now {NAME}` first")
    for file in gone:
        if not only_print:
            _try(file.unlink, file)
        typer.echo(f"{'Would remove' if only_print else 'Removed'} {file}")
    typer.echo("Then run: systemctl daemon-reload")
    typer.echo(f"Kept: the agent's home with keys and ledger, and {root / SETTINGS}.")


def variables() -> list[str]:
    """Every variable that the agent reads, but the one for its home, which the unit sets."""
    return [*(SETTING_PREFIX + name.upper() for name in AgentConfig.model_fields), *RUN_VARIABLES]


def _files(service: Service, platform: Platform) -> dict[Path, str]:
    if platform is Platform.WINDOWS:
        return {WINDOWS_FILE: windows_service(service)}
    return {
        UNIT: systemd_unit(service),
        USERS: sysusers(service),
        SETTINGS: settings_file(variables()),
        COMMAND: command_script(service),
    }


def _program() -> Path:
    """`dure-agent` of the environment that this very command runs in."""
    folder = Path(sys.prefix) / ("Scripts" if sys.platform == "win32" else "bin")
    return folder / (f"{NAME}.exe" if sys.platform == "win32" else NAME)


def _checked_user(name: str) -> str:
    if not is_user(name):
        raise HomeError(
            f"{name!r} cannot be the agent's user: take a letter or _ and up to 30 letters, digits, _ and - behind it, "
            "and never root"
        )
    return name


def _check_path(path: PurePath, platform: Platform) -> None:
    if platform is Platform.SYSTEMD and not is_plain_path(path):
        raise HomeError(
            f"{str(path)!r} cannot stand in a unit: take a folder whose path has only letters, digits and /._-, "
            "without '..', and is not / itself"
        )
    if not str(path).isprintable() or path == path.parent:
        raise HomeError(f"{str(path)!r} cannot stand in a service's definition: take a folder with a printable name")


def _write(target: Path, path: Path, text: str) -> None:
    file = target / path
    if file.exists() and path == SETTINGS:
        return  # the firm's own by now
    if file.exists() and file.suffix != ".xml":
        _check_ours(file)
    _try(lambda: _make_folders(file.parent), file)
    _try(lambda: _replace(file, text, MODES.get(path, 0o644)), file)
    typer.echo(f"Written: {file}")


def _make_folders(folder: Path) -> None:
    """Folders of the system, which all may read whatever the umask: a staged tree is copied over the real one."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir()
        missing.chmod(0o755)


def _replace(file: Path, text: str, mode: int) -> None:
    aside = file.with_name(f".{file.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        aside.chmod(mode)  # whatever the umask
        opened.write(text)
    aside.replace(file)


def _check_ours(file: Path) -> None:
    if WRITTEN_BY not in file.read_text(encoding="utf-8", errors="replace").splitlines()[:2]:
        raise HomeError(f"{file} was not written by `dure-agent install`: move it away first")


def _try(act: Callable[[], object], file: Path) -> None:
    try:
        act()
    except OSError as error:
        raise HomeError(
            f"{file} cannot be changed ({error.strerror}): run this as root, or give --print or --root FOLDER"
        ) from error


def _next(service: Service, platform: Platform, target: Path) -> list[str]:
    if platform is Platform.WINDOWS:
        return [
            f"Lay WinSW beside it as {WINDOWS_NAME}.exe; in an administrator's shell: .\\{WINDOWS_NAME}.exe install",
            f"Give the account NT SERVICE\\{NAME} full control of {service.home} and nobody else.",
        ]
    place = "" if target == Path("/") else f" (once the files are where they belong, they are below {target} now)"
    command = Path("/") / COMMAND
    return [
        f"Then, as root{place}:",
        f"  systemd-sysusers {Path('/') / USERS}",
        f"  install -d -m 0700 -o {service.user} -g {service.user} {shlex.quote(str(service.home))}",
        "  systemctl daemon-reload",
        f"  {command} join --invitation FILE --fingerprint '…'",
        f"  systemctl enable --now {NAME}",
        f"Settings go into {service.settings}; those of a PKCS#11 token before joining.",
        f"Every other command, too, is given through that script, which has the service's user and settings: {command} "
        f"status. Files that it is to read, {service.user} must be able to read.",
    ]
