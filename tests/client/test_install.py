"""`dure-agent install`: a unit that systemd accepts and that is tight, a settings file of mode 0600."""

import ctypes
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from dure_client.cli import app
from dure_client.commands.install import CGROUPS, COMMAND, variables
from dure_client.home import AgentConfig
from dure_client.notify import notify
from tests.conftest import lacking

EXPOSURE = 3.1
"""What `systemd-analyze security` of systemd 252 gives the unit, of 10; docs/installation.md states it."""
PR_SET_MDWE = 65


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


def written(root: Path, *arguments: str) -> str:
    """Install below a folder; the unit's text."""
    result = run("install", "--root", str(root), *arguments)
    assert result.exit_code == 0, result.output
    return (root / "etc/systemd/system/dure-agent.service").read_text()


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    if shutil.which("systemd-analyze") is None:
        lacking("needs systemd-analyze: apt-get install systemd")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--gpu", "--data", "/srv/mill-rows", "--data", "/home/mill/rows"),
        ("--home", "/home/mill/.dure_1/ours"),
    ],
)
def test_systemd_accepts_the_unit(tmp_path: Path, options: tuple[str, ...]) -> None:
    written(tmp_path, *options)
    done = analyze("verify", str(tmp_path / "etc/systemd/system/dure-agent.service"))
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_unit_is_as_tight_as_the_documentation_says(tmp_path: Path) -> None:
    written(tmp_path)
    unit = tmp_path / "etc/systemd/system/dure-agent.service"
    done = analyze("security", "--offline=true", "--threshold=35", str(unit))
    assert done.returncode == 0, done.stdout[-200:]
    found = re.search(r"exposure level for dure-agent.service: (\d+\.\d)", done.stdout)
    assert found, done.stdout[-200:]
    assert float(found[1]) <= EXPOSURE + 0.4  # other versions of systemd weigh more things
    assert f"**{EXPOSURE}**" in Path("docs/installation.md").read_text()


def test_only_the_home_is_writable_and_rows_are_read_only(tmp_path: Path) -> None:
    unit = written(tmp_path, "--home", "/var/lib/mill", "--data", "/srv/rows", "--user", "mill")
    for line in (
        *("ReadWritePaths=/var/lib/mill", "StateDirectory=mill", "StateDirectoryMode=0700", "ProtectSystem=strict"),
        "MemoryMax=85%",
        *(
            "BindReadOnlyPaths=/srv/rows",
            "User=mill",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "PrivateTmp=yes",
        ),
        *("Restart=on-failure", "RestartPreventExitStatus=78", "OOMPolicy=continue", "TasksMax=4096"),
        *("UMask=0077", "PrivateDevices=yes", "RestrictNamespaces=user mnt pid net ipc uts cgroup"),
    ):
        assert line in unit.splitlines()


def test_a_home_below_home_is_shown_to_the_service(tmp_path: Path) -> None:
    assert "BindPaths=/home/mill/agent" in written(tmp_path, "--home", "/home/mill/agent").splitlines()


def test_no_setting_is_in_argv_and_the_settings_file_is_private(tmp_path: Path) -> None:
    unit = written(tmp_path)
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert command == f"ExecStart={Path(sys.prefix) / 'bin' / 'dure-agent'} run"
    settings = tmp_path / "etc/dure/agent.env"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert [line[1:-1] for line in settings.read_text().splitlines() if line.startswith("#DURE")] == variables()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_follow_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        written(tmp_path)
    finally:
        os.umask(old)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes.pop("etc/dure/agent.env") == 0o600
    assert modes.pop(str(COMMAND)) == 0o755
    folders = {name for name in modes if (tmp_path / name).is_dir()}
    assert {modes[name] for name in folders} == {0o755}
    assert {mode for name, mode in modes.items() if name not in folders} == {0o644}


def test_installing_again_keeps_the_firms_settings_and_nobody_elses_unit_is_touched(tmp_path: Path) -> None:
    written(tmp_path)
    settings, unit = tmp_path / "etc/dure/agent.env", tmp_path / "etc/systemd/system/dure-agent.service"
    settings.write_text("DURE_AGENT_PROXY=http://proxy:3128\n")
    written(tmp_path, "--user", "mill")
    assert settings.read_text() == "DURE_AGENT_PROXY=http://proxy:3128\n"
    assert "User=mill" in unit.read_text()
    unit.write_text("[Service]\nExecStart=/usr/bin/other\n")
    for command in ("install", "uninstall"):
        result = run(command, "--root", str(tmp_path))
        assert result.exit_code == 1
        assert "was not written by" in result.stderr
    assert "other" in unit.read_text()


def test_uninstalling_removes_the_service_and_keeps_the_settings(tmp_path: Path) -> None:
    written(tmp_path)
    assert run("uninstall", "--root", str(tmp_path), "--dry-run").exit_code == 0
    assert (tmp_path / "etc/systemd/system/dure-agent.service").exists()
    assert run("uninstall", "--root", str(tmp_path)).exit_code == 0
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["etc/dure/agent.env"]
    assert run("uninstall", "--root", str(tmp_path)).exit_code == 1


@pytest.mark.parametrize(
    "trace", ["etc/systemd/system/multi-user.target.wants/dure-agent.service", f"{CGROUPS[0]}/dure-agent.service"]
)
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_service_that_is_enabled_or_runs_is_not_uninstalled(
    tmp_path: Path, trace: str, options: tuple[str, ...]
) -> None:
    """Without its unit nobody could stop or disable it by name."""
    written(tmp_path)
    (tmp_path / trace).parent.mkdir(parents=True)
    (tmp_path / trace).symlink_to("/etc/systemd/system/dure-agent.service")
    before = sorted(tmp_path.rglob("*"))
    result = run("uninstall", "--root", str(tmp_path), *options)
    assert result.exit_code == 1
    assert "run `systemctl disable --now dure-agent` first" in " ".join(result.stderr.split())
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / trace).unlink()
    result = run("uninstall", "--root", str(tmp_path))
    assert result.exit_code == 0
    assert "systemctl daemon-reload" in result.stdout
    assert "disable" not in result.stdout


def test_print_changes_nothing(tmp_path: Path) -> None:
    result = run("install", "--print", "--root", str(tmp_path))
    assert "ProtectSystem=strict" in result.stdout
    assert list(tmp_path.iterdir()) == []


REFUSED_USERS = ("root", "a b", "0", "1000", "-mill", "0mill", "mühle", "mill:adm", "", "mill\n", "a" * 32)
REFUSED_PATHS = (
    *("/", "/srv/a\nUser=root", "/srv/mill rows", "/srv/mill's", '/srv/"mill"', "/srv/100%", "/srv/%h", "/srv/a:b"),
    *("/srv/$HOME", "/srv/`id`", "/srv/a\\b", "/srv/mühle", "/srv/a;b", "/srv/a#b", "/var/lib/a b", "/srv/../../etc"),
)


@pytest.mark.parametrize(
    "options",
    [
        *(("--user", name) for name in REFUSED_USERS),
        *(("--home", path) for path in REFUSED_PATHS),
        *(("--data", path) for path in REFUSED_PATHS),
    ],
)
def test_what_would_loosen_or_break_the_unit_is_refused_with_what_to_take(
    tmp_path: Path, options: tuple[str, str]
) -> None:
    result = run("install", "--root", str(tmp_path), *options)
    assert result.exit_code == 1
    says = "never root" if options[0] == "--user" else "letters, digits and /._-"
    assert says in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["/", "/srv/a\n<executable>"])
def test_what_cannot_stand_in_a_windows_definition_is_refused(tmp_path: Path, home: str) -> None:
    result = run("install", "--platform", "windows", "--root", str(tmp_path), "--home", home)
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])


@pytest.mark.parametrize("name", ["mill", "_mill", "Mill-2", "m_1"])
def test_a_user_with_a_name_is_taken(tmp_path: Path, name: str) -> None:
    assert f"User={name}" in written(tmp_path, "--user", name).splitlines()


def test_a_windows_service_runs_as_its_own_account(tmp_path: Path) -> None:
    result = run("install", "--platform", "windows", "--root", str(tmp_path), "--home", "/srv/mill & co")
    assert result.exit_code == 0
    (file,) = tmp_path.iterdir()
    service = ElementTree.parse(file).getroot()
    assert service.findtext("serviceaccount/username") == "NT SERVICE\\dure-agent"
    assert service.findtext("arguments") == "run"
    home = service.find("env")
    assert home is not None
    assert home.attrib == {"name": "DURE_AGENT_HOME", "value": "/srv/mill & co"}
    wrapper = f"{file.stem}.exe"  # WinSW reads the definition that has its own name
    assert f".\\{wrapper} install" in result.stdout
    assert wrapper != f"{Path(service.findtext('executable', '')).stem}.exe"  # which may lie in the same folder


def test_every_setting_is_in_the_documentations_table() -> None:
    text = Path("docs/installation.md").read_text()
    rows = dict(re.findall(r"^\| `(DURE_\w+)` \| (.+?) \|", text, re.MULTILINE))
    assert list(rows) == ["DURE_AGENT_HOME", *variables()]
    in_file = {name: f"`{name.removeprefix('DURE_AGENT_').lower()}`" for name in rows}
    assert {name for name in rows if rows[name] == in_file[name]} == {
        f"DURE_AGENT_{name.upper()}" for name in AgentConfig.model_fields
    }


def test_the_documentations_table_has_every_variable_that_the_code_names() -> None:
    text = "".join(file.read_text() for file in Path("client").rglob("*.py"))
    named = set(re.findall(r"""["'](DURE_\w*[A-Z0-9])["']""", text))
    assert "DURE_AGENT_THREADS" in named
    assert named <= {"DURE_AGENT_HOME", *variables()}


def as_systemd_reads(word: str) -> str:
    """A word of a command line as systemd.service(5) says, with no variable set: `$$` is `$`."""
    if re.fullmatch(r"\$\w*", word):
        return ""
    return re.sub(r"\$\$|\$\{\w*\}", lambda found: "$" if found[0] == "$$" else "", word)


def test_a_command_runs_as_the_services_user_with_its_settings(tmp_path: Path) -> None:
    """With a stand-in that says how it was called: it takes a system that systemd runs to call the real one."""
    home = "/srv/mill-1/co"
    result = run("install", "--root", str(tmp_path / "root"), "--user", "mill", "--home", home)
    script = tmp_path / "root" / COMMAND
    (tmp_path / "systemd-run").write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    (tmp_path / "systemd-run").chmod(0o755)
    words = ["join", "--fingerprint", "3f9a $HOME", "$HOME", "$", "$$", "${X}${Y}$", "", "a'b\n c\n", "*", "-n", "\\"]
    called = subprocess.run(
        [script, *words],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    given = called.stdout.split("\0")[:-1]
    assert given[: -len(words)] == [
        *("--quiet", "--collect", "--wait", "--pty", "--pipe", "--uid=mill"),
        *(f"--setenv=DURE_AGENT_HOME={home}", "--property=EnvironmentFile=-/etc/dure/agent.env"),
        *(f"--property=WorkingDirectory=-{tmp_path}", "--", str(Path(sys.prefix) / "bin" / "dure-agent")),
    ]
    assert [as_systemd_reads(word) for word in given[-len(words) :]] == words
    assert "  /usr/local/sbin/dure-agent-as-service join --invitation FILE" in result.stdout
    assert "sudo" not in result.stdout


def test_systemd_run_knows_the_options_of_the_command(tmp_path: Path) -> None:
    if shutil.which("systemd-run") is None:
        lacking("needs systemd-run: apt-get install systemd")
    written(tmp_path)
    known = subprocess.run(["systemd-run", "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    used = set(re.findall(r"--[a-z]+", (tmp_path / COMMAND).read_text()))
    assert len(used) == 8
    assert used <= set(re.findall(r"--[a-z]+", known))


def test_the_service_manager_hears_that_the_agent_is_ready(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(5)
        notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "n")})
        assert manager.recv(100) == b"READY=1"
    notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notify("READY=1", {})


def test_compiling_in_memory_is_why_the_unit_does_not_deny_it() -> None:
    if sys.platform != "linux" or tuple(map(int, platform.release().split(".")[:2])) < (6, 3):
        lacking("needs Linux 6.3, whose prctl denies memory that is written and executed")
    deny = f"import ctypes; assert ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0) == 0; import numba"
    done = subprocess.run([sys.executable, "-c", deny], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "cannot allocate executable memory" in done.stderr


SANDBOX = "--unshare-all --hostname trainer --cap-drop ALL --ro-bind / / --proc /proc --dev /dev --remount-ro / true"
AS_THE_SERVICE = "setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all"
CALL_NUMBERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def expanded(group: str) -> set[str]:
    """The system calls of one of systemd's groups."""
    lines = [line.strip() for line in analyze("syscall-filter", group).stdout.splitlines()[1:]]
    names = {line for line in lines if line and not line.startswith("#")}
    return {name for name in names if name[0] != "@"}.union(*(expanded(name) for name in names if name[0] == "@"))


def calls_of(unit: str) -> set[str]:
    """The system calls that a unit allows."""
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and line[0] != "#")
    calls = set().union(*(expanded(w) if w[0] == "@" else {w} for w in settings["SystemCallFilter"].split()))
    return calls - ({"sethostname", "setdomainname"} if settings.get("ProtectHostname") == "yes" else set())


def confined_to(calls: set[str]) -> None:
    """Allow this process and its children no other system calls: EPERM, as the unit says."""
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", CALL_NUMBERS.read_text()))
    load_number, refuse, allow = (0x20, 0, 0, 0), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)
    allowed = [int(numbers[name]) for name in calls & numbers.keys()]
    program = [load_number, *(step for n in allowed for step in ((0x15, 0, 1, n), allow)), refuse]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code)
    described = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, described, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


@pytest.mark.parametrize(("covered", "starts"), [(False, True), (True, False)])
def test_a_sandbox_starts_under_the_units_limits_but_not_under_a_covered_proc(
    tmp_path: Path, covered: bool, starts: bool
) -> None:
    """What the trainer's sandbox does, with the unit's rights and system calls; and why nothing covers /proc."""
    if os.geteuid() != 0 or any(shutil.which(program) is None for program in ("bwrap", "setpriv")):
        lacking("needs root and bubblewrap: apt-get install bubblewrap util-linux")
    if platform.machine() != "x86_64" or not CALL_NUMBERS.exists():
        lacking("needs the numbers of system calls of x86_64: apt-get install linux-libc-dev")
    calls = calls_of(written(tmp_path))
    script = f"exec {AS_THE_SERVICE} bwrap {SANDBOX}"
    if covered:  # by the mounts that ProtectKernelTunables makes
        script = f"mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && {script}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        preexec_fn=lambda: confined_to(calls),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) == starts, done.stderr
    assert ("mount proc" in done.stderr) != starts


def test_systemd_accepts_the_servers_unit() -> None:
    done = analyze("verify", "deploy/systemd/dure-server.service")
    assert (done.returncode, done.stderr.strip()) == (0, "")
