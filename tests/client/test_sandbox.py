"""The trainer's sandbox: its limits, how a trainer starts and ends in it, and what the policy asks of it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dure_client.policy import Policy, PolicyError
from dure_client.policy_checks import check_sandbox
from dure_client.trainer.client import Deadlines
from dure_client.trainer.messages import TrainerCode, TrainerError
from dure_client.trainer.process import TrainerPlaces, start
from dure_client.trainer.sandbox import Grants, Limits, Sandbox, SandboxError, SandboxLevel, seccomp
from dure_client.trainer.sandbox.bubblewrap import Bubblewrap, mounts
from dure_client.trainer.sandbox.limits import LimitsOnly, Unconfined
from dure_client.trainer.watch import is_within
from dure_client.trees import remove_tree
from dure_protocols.errors import RefusalCode, RefusedError
from tests.client.hostile_site import GIB, SAY, Site, are_gone, children, confined, hear, make_site
from tests.client.test_trainer import installed_model
from tests.conftest import lacking

__all__ = ["confined", "installed_model"]


def test_a_model_that_eats_memory_is_told_by_a_code(confined: Site) -> None:
    assert confined.attack("hoard = [bytearray(1 << 28) for _ in range(64)]") is TrainerCode.MEMORY
    assert confined.works()


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs a machine with two processors")
def test_a_trainer_keeps_to_the_processors_that_it_was_given(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox
) -> None:
    site = make_site(tmp_path, installed_model, bubblewrap, limits=Limits(2 * GIB, num_processors=1))
    with site.trainer:
        assert site.attack("if len(os.sched_getaffinity(0)) == 1: " + SAY) is None
        assert site.succeeded
        more = "os.sched_setaffinity(0, range(os.cpu_count()))\n" + SAY
        assert site.attack(more) is TrainerCode.INTERNAL
        assert not site.succeeded
        assert site.works()


def test_a_file_beyond_the_limit_cannot_be_written(tmp_path: Path, installed_model: Path, bubblewrap: Sandbox) -> None:
    site = make_site(tmp_path, installed_model, bubblewrap, limits=Limits(2 * GIB, scratch_bytes=8 << 20))
    with site.trainer:
        file = tmp_path / "scratch" / "big"
        assert site.attack(f"open('{file}', 'wb').write(bytes(9 << 20))") is TrainerCode.INTERNAL
        # Many small files are no single file: the agent looks at the folder.
        many = (
            f"import time\nfor i in range(9): open('{file}' + str(i), 'wb').write(os.urandom(1 << 20))\ntime.sleep(60)"
        )
        assert site.attack(many) is TrainerCode.DIED
        assert not list(file.parent.iterdir()), "what a trainer wrote goes with it"
        assert site.works()


def test_folders_nested_deeper_than_any_path_end_the_trainer_and_are_removed(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox
) -> None:
    site = make_site(tmp_path, installed_model, bubblewrap, limits=Limits(2 * GIB, scratch_bytes=8 << 20))
    deep = "import time\nos.chdir('{home}/scratch')\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\n"
    with site.trainer:
        assert site.attack(deep + "open('f', 'w').write('x')\ntime.sleep(60)") is TrainerCode.DIED
        assert not list((tmp_path / "scratch").iterdir())
        assert site.works()


def test_a_deleted_file_that_stays_open_does_not_fill_the_disk(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox
) -> None:
    """On a file system of its own, 64 MiB large, of which a trainer must leave half."""
    site = make_site(tmp_path, installed_model, bubblewrap, limits=Limits(2 * GIB, scratch_bytes=1 << 30))
    scratch = tmp_path / "scratch"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(scratch)], check=False).returncode:
        lacking("mounting a file system needs root")
    gone = "import time\nfile = open('{home}/scratch/gone', 'wb')\nos.unlink(file.name)\n"
    try:
        with site.trainer:
            assert site.attack(gone + "file.write(bytes(48 << 20))\nfile.flush()\ntime.sleep(60)") is TrainerCode.DIED
            assert shutil.disk_usage(scratch).used < 1 << 20
            assert site.works()
    finally:
        subprocess.run(["umount", str(scratch)], check=True)


def test_a_folder_that_cannot_be_looked_into_is_more_than_there_may_be() -> None:
    with tempfile.TemporaryDirectory() as name, as_somebody(name):
        closed = Path(name) / "closed"
        closed.mkdir()
        assert is_within(Path(name), 1 << 20)
        closed.chmod(0o300)
        assert not is_within(Path(name), 1 << 20)
        closed.chmod(0o700)


@contextmanager
def as_somebody(folder: str) -> Iterator[None]:
    """As a user whom modes bind, where the tests are root's. The folder becomes this user's."""
    if os.geteuid():
        yield
        return
    os.chown(folder, 65534, -1)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_core_is_dumped_and_the_stack_is_bounded(confined: Site) -> None:
    """A limit of 0 on cores is not looked at where the kernel pipes them to a crash handler; one of 1 is."""
    limits = "import resource as r\nassert r.getrlimit(r.RLIMIT_CORE) == (1, 1)\n"
    assert confined.attack(f"{limits}assert r.getrlimit(r.RLIMIT_STACK)[1] <= 8 << 20\n{SAY}") is None
    assert confined.succeeded


def test_a_model_that_talks_without_end_fills_no_disk(confined: Site) -> None:
    before = log_of(confined).stat().st_size
    assert confined.attack("for _ in range(400): os.write(2, b'-' * (64 << 10))") is None
    time.sleep(0.2)
    assert log_of(confined).stat().st_size - before < 11 << 20
    confined.trainer.close()  # the next trainer's words are kept again
    assert confined.works()


def log_of(site: Site) -> Path:
    return site.folder / "logs" / "trainer.log"


def test_a_model_that_hangs_and_will_not_end_is_ended(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox
) -> None:
    site = make_site(tmp_path, installed_model, bubblewrap, deadlines=Deadlines(train=5.0))
    with site.trainer:
        site.trainer.open()
        bwrap = site.trainer.pid
        inside = children(bwrap)
        code = site.attack("import signal, time; os._exit = lambda _: None; signal.pause = None\nwhile True: pass")
        assert code is TrainerCode.DEADLINE
        assert are_gone([str(bwrap), *inside])
        assert site.works()


def test_a_trainer_that_will_not_end_dies_with_the_agent(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox
) -> None:
    """Also when the thread that asked for it is gone, which alone must end nothing."""
    program = f"""
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {str(installed_model)!r})
from dure_client.trainer.sandbox.bubblewrap import Bubblewrap
from tests.client.hostile_site import children, make_site
site = make_site(Path({str(tmp_path)!r}), Path({str(installed_model)!r}), Bubblewrap.find())
asking = threading.Thread(target=site.works)
asking.start()
asking.join()
time.sleep(0.3)
assert site.works()
print(site.trainer.pid, *children(site.trainer.pid), flush=True)
threading.Thread(target=site.attack, args=("import time; os._exit = lambda _: None; time.sleep(60)",)).start()
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    processes = ended.stdout.decode().split()
    assert len(processes) == 3  # bwrap, its first process in the new namespace, the trainer
    assert are_gone(processes)


def test_a_folder_with_many_data_files_is_granted_whole_unless_it_holds_the_home(tmp_path: Path) -> None:
    from dure_client.trainer.process import _data_files

    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    data.mkdir()
    for number in range(70):
        (data / f"{number}.csv").touch()
        (tmp_path / f"{number}.csv").touch()
    (home / "data.toml").write_text(f'[train]\npaths = ["{data}/*.csv", "../*.csv"]\n')
    granted = _data_files(TrainerPlaces(home, home / "data.toml", home, hidden=(home,)))
    assert data in granted
    assert len(granted) == 1 + 70


def test_a_home_among_the_packages_stays_hidden(tmp_path: Path) -> None:
    """In whatever way the folder around it is shown."""
    (tmp_path / "venv" / "home").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "venv")
    options = mounts(Grants(hidden=[tmp_path / "venv" / "home"]), [tmp_path / "venv", tmp_path / "link"])
    covered = [options[at + 1] for at, option in enumerate(options) if option == "--tmpfs"]
    assert covered == ["/dev", f"{tmp_path}/venv/home", f"{tmp_path}/link/home"]
    with pytest.raises(SandboxError, match="move one"):
        mounts(Grants(hidden=[tmp_path / "venv"]), [tmp_path / "venv"])


@pytest.mark.parametrize(
    ("program", "hidden", "error"),
    [("bwrap", Path("/usr/lib"), SandboxError), ("/no/such/bwrap", Path("/no/such/home"), TrainerError)],
)
def test_a_trainer_that_cannot_be_started_leaves_neither_files_nor_descriptors(
    program: str, hidden: Path, error: type[Exception], tmp_path: Path
) -> None:
    if not Path("/proc/self/fd").exists():
        lacking("needs Linux, whose /proc tells open files")
    sandbox = Bubblewrap(Path(program), "x86_64")
    places = TrainerPlaces(tmp_path / "scratch", tmp_path / "data.toml", tmp_path / "trainer.log", hidden=(hidden,))

    def num_open_after_a_try() -> int:
        with pytest.raises(error):
            start(places, sandbox, num_threads=1, timeout_seconds=5)
        return len(list(Path("/proc/self/fd").iterdir()))

    at_first = num_open_after_a_try()  # with what is opened once in a process
    assert num_open_after_a_try() == at_first
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_stays_inside_and_it_ends_with_a_verdict(machine: str) -> None:
    program = seccomp.filter_program(machine)
    steps = [program[at : at + 8] for at in range(0, len(program), 8)]
    for at, step in enumerate(steps):
        assert at + 1 + max(step[2], step[3]) < len(steps) or step[0] == seccomp._RETURN
    assert steps[-1][0] == seccomp._RETURN


@pytest.mark.parametrize(
    ("wanted", "sandbox", "passes"),
    [
        ("full", LimitsOnly("no bubblewrap"), False),
        ("full", Unconfined("Windows"), False),
        ("limits", LimitsOnly("no bubblewrap"), True),
        ("limits", Unconfined("Windows"), False),
        ("off", Unconfined("Windows"), True),
        ("full", Bubblewrap(Path("bwrap"), "x86_64"), True),
    ],
)
def test_a_job_is_refused_where_the_sandbox_is_less_than_the_policy_asks(
    wanted: str, sandbox: Sandbox, passes: bool
) -> None:
    policy = Policy.parse(f'require_sandbox = "{wanted}"')
    if passes:
        check_sandbox(policy, sandbox)
        return
    with pytest.raises(RefusedError, match=sandbox.why_not_more) as caught:
        check_sandbox(policy, sandbox)
    assert caught.value.code is RefusalCode.SANDBOX


def test_a_policy_that_says_nothing_asks_for_the_full_sandbox() -> None:
    assert Policy.parse("").require_sandbox is SandboxLevel.FULL
    with pytest.raises(PolicyError, match="gpu_devices"):
        Policy.parse('gpu_devices = ["/dev/../etc/shadow"]')


def test_memory_that_was_written_and_then_protected_is_counted(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox
) -> None:
    """A limit on a process counts what is mapped for writing alone, and the loader itself protects what it wrote."""
    hoard = """
import ctypes, mmap, time
libc, size, held = ctypes.CDLL(None), 32 << 20, []
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
for _ in range(64):
    held.append(memory := mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    memory.write(bytes(size))
    assert libc.mprotect(ctypes.addressof(ctypes.c_char.from_buffer(memory)), size, mmap.PROT_READ) == 0
time.sleep(60)
"""
    site = make_site(tmp_path, installed_model, bubblewrap, limits=Limits(1 * GIB))
    with site.trainer:
        assert site.attack(hoard) is TrainerCode.DIED
        assert site.works()


def test_of_all_processes_a_trainer_is_ended_first_where_memory_runs_out(confined: Site) -> None:
    assert confined.attack(f"assert open('/proc/self/oom_score_adj').read() == '1000\\n'\n{SAY}") is None
    assert confined.succeeded


@pytest.mark.parametrize("inside", ["{home}/scratch", "{home}/scratch/sock-*"])
def test_a_tree_deeper_than_any_path_keeps_nobody_from_leaving(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox, inside: str
) -> None:
    site = make_site(tmp_path, installed_model, bubblewrap, limits=Limits(2 * GIB))
    dig = f"import glob\nos.chdir(glob.glob('{inside}')[0])\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    with site.trainer:
        site.attack(dig)
        site.trainer.shut()
    remove_tree(tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


def test_a_trainer_that_was_ended_leaves_nothing_once_it_is_closed(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox
) -> None:
    site = make_site(tmp_path, installed_model, bubblewrap, limits=Limits(2 * GIB))
    with site.trainer as trainer:
        assert site.attack("open('{home}/scratch/rows', 'w').write('1,2,3')") is None
        assert trainer.pid is not None
        assert not trainer.has_ended
        os.kill(trainer.pid, signal.SIGKILL)
        while not trainer.has_ended:
            time.sleep(0.01)
        trainer.close()
        assert not list((tmp_path / "scratch").iterdir())


def test_the_agent_connects_to_nothing_that_a_trainer_puts_in_its_sockets_place(
    tmp_path: Path, installed_model: Path, bubblewrap: Sandbox
) -> None:
    site = make_site(tmp_path, installed_model, bubblewrap, limits=Limits(2 * GIB))
    place = tmp_path / "elsewhere.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()
    threading.Thread(target=hear, args=(listener, site.heard), daemon=True).start()
    # The model closes every connection that it has, a moment after it has answered.
    swap = f"""
import glob, stat, threading, time
(path,) = glob.glob(os.environ['TMPDIR'] + '/sock-*/t.sock')
os.unlink(path)
os.symlink({str(place)!r}, path)
def cut():
    time.sleep(0.5)
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode): socket.socket(fileno=os.dup(number)).shutdown(2)
        except OSError: pass
threading.Thread(target=cut).start()
"""
    with site.trainer, listener:
        assert site.attack(swap.replace("{", "{{").replace("}", "}}")) is None
        time.sleep(1.5)
        assert site.works()
        assert not site.heard
