"""A hostile model package in the trainer: what it tries harms nothing, tells nothing, and the next training works.

The same attacks are run once more where nothing but limits holds them: most succeed there, so the table can fail.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dure_client.trainer.client import StatisticsSums
from dure_client.trainer.messages import TrainerCode, TrainerError
from dure_client.trainer.sandbox import Limits
from dure_client.trainer.sandbox.limits import LimitsOnly
from tests.client.hostile_site import GIB, SAY, Site, confined, listen, make_site
from tests.client.test_trainer import CANARY, installed_model

__all__ = ["confined", "installed_model"]


@pytest.fixture(scope="module")
def unconfined(tmp_path_factory: pytest.TempPathFactory, installed_model: Path) -> Iterator[Site]:
    site = make_site(tmp_path_factory.mktemp("home"), installed_model, LimitsOnly(), limits=Limits(2 * GIB))
    listeners = listen(site)
    with site.trainer:
        yield site
    for listener in listeners:
        listener.close()


ATTACKS = {
    "connects to this host": "socket.create_connection(('127.0.0.1', {port}), 2)",
    "sends a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'row', ('127.0.0.1', {port}))",
    "asks the kernel over netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "connects to a Unix socket in the home": "socket.socket(socket.AF_UNIX).connect('{home}/agent.sock')",
    "connects to a Unix socket without a file": "socket.socket(socket.AF_UNIX).connect('{abstract}')",
    "reads /etc/passwd": "open('/etc/passwd').read()",
    "reads the agent's key": "open('{home}/keys/identity.key').read()",
    "reads the agent's key by way of its process": "open('/proc/{agent}/root{home}/keys/identity.key').read()",
    "reads a data file that was not named": "open('{home}/other.csv').read()",
    "reads the agent's environment": "open('/proc/{agent}/environ').read()",
    "appends to the data": "open('{home}/train.csv', 'a').write('0,0\\n'); ",
    "removes the data": "os.unlink('{home}/test.csv'); open('{home}/test.csv', 'w').write('flow,heat\\n1,3\\n')",
    "writes into the home": "open('{home}/policy.toml', 'w')",
    "writes into the packages": "open(os.path.dirname(os.__file__) + '/dure_planted.py', 'w').close(); "
    "os.unlink(os.path.dirname(os.__file__) + '/dure_planted.py')",
    "writes where memory holds the files": "open('/dev/shm/dure', 'w').close(); os.unlink('/dev/shm/dure')",
    "empties its log": "open('/proc/self/fd/2', 'w').truncate(0) or os.ftruncate(2, 0)",
    "forks": "pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0)",
    "starts a program": "subprocess.run([sys.executable, '-c', ''], check=True)",
    "signals the agent": "os.kill({agent}, 0)",
    "takes memory that is not counted": "import mmap; mmap.mmap(-1, 4096)",
    "takes memory as a file": "os.memfd_create('x')",
    "takes memory as a stack": "import mmap; mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100)",
    "takes memory from a device": "import mmap; mmap.mmap(os.open('/dev/zero', os.O_RDWR), 4096)",
    "takes what asynchronous reads are for all": "import ctypes; c = ctypes.c_void_p(); "
    "assert ctypes.CDLL(None).syscall(206 if os.uname().machine == 'x86_64' else 0, 8, ctypes.byref(c)) == 0",
    "takes a disk at once": "f = open('{home}/scratch/all', 'wb'); import ctypes; os.unlink(f.name); "
    "assert ctypes.CDLL(None).fallocate(f.fileno(), 0, 0, 4096) == 0",
    "takes memory as a queue": "import ctypes; c = ctypes.CDLL(None); q = c.msgget(0, 0o600); "
    "assert q >= 0; c.msgctl(q, 0, None)",
}
HELD_EVERYWHERE = {"empties its log"}
WITH_RIGHTS = {"writes into the packages"}
"""Succeeds only where the agent's user may write there."""


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_hostile_model_tries_fails_and_the_next_training_works(name: str, confined: Site) -> None:
    before = {path: path.read_bytes() for path in confined.folder.rglob("*.csv")}
    confined.heard.clear()
    code = confined.attack(f"{ATTACKS[name]}\n{SAY.replace('{', '{{')}")
    assert (confined.succeeded, code) == (False, TrainerCode.INTERNAL)
    assert confined.works()
    assert not confined.heard
    assert {path: path.read_bytes() for path in confined.folder.rglob("*.csv")} == before
    assert not (confined.folder / "policy.toml").exists()


@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - HELD_EVERYWHERE - WITH_RIGHTS))
def test_without_the_sandbox_the_same_attack_succeeds(name: str, unconfined: Site) -> None:
    assert unconfined.attack(f"{ATTACKS[name]}\n{SAY}") is None
    assert unconfined.succeeded


def test_root_in_the_sandbox_cannot_set_the_host(confined: Site) -> None:
    """Without capabilities, root still owns the files of /proc/sys."""
    assert confined.attack(f"os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY))\n{SAY}")
    assert confined.attack(f"os.close(os.open('/proc/sysrq-trigger', os.O_WRONLY))\n{SAY}")
    assert not confined.succeeded


def test_only_named_files_and_the_scratch_folder_are_to_be_seen(confined: Site) -> None:
    seen = confined.folder / "scratch" / "seen"
    confined.attack(f"open('{seen}', 'w').write(' '.join(os.listdir('{confined.folder}')))")
    assert sorted(seen.read_text().split()) == ["data.toml", "scratch", "test.csv", "train.csv"]
    confined.attack(f"open('{seen}', 'w').write(' '.join(os.listdir('/etc')) + ' '.join(os.environ))")
    assert not re.search("passwd|hosts|resolv|SSH|TOKEN", seen.read_text())
    seen.unlink()


@pytest.mark.parametrize(
    "answer",
    [
        "lambda *_: repr(rows).encode()",
        "lambda *_: ('{{\"failure\": \"' + repr(rows) + '\"}}').encode()",
        'lambda *_: (\'{{"result": {{"count": 96, "metrics": {{"\' + repr(rows) + \'": [1, 1]}}}}}}\').encode()',
        "lambda *_: exec('raise ValueError(rows)')",
    ],
)
def test_rows_in_an_answer_reach_nobody(answer: str, confined: Site, caplog: pytest.LogCaptureFixture) -> None:
    confined.places["answer"] = answer.format()
    attack = "from dure_client.trainer.service import TrainerService\nTrainerService.answer = {answer}"
    rows = "import builtins; builtins.rows = rows\n"
    confined.attack(rows + attack)  # the answer to this call may be the old one still
    with pytest.raises(TrainerError) as caught:
        confined.trainer.train(np.zeros(2, np.float32), StatisticsSums(np.zeros(1), 96), round_number=1, seed=1)
    assert caught.value.code is TrainerCode.BAD_ANSWER
    assert str(CANARY) not in f"{caught.value} {caplog.text}"
    assert caught.value.__cause__ is None
    confined.trainer.close()
    assert confined.works()


@pytest.mark.parametrize(
    "instead",
    [
        "os.mkfifo(self._scratch / name)",
        "os.symlink('/etc/passwd', self._scratch / name)",
        "os.mkdir(self._scratch / name)",
        "open(self._scratch / name, 'w').write(repr(array))",
    ],
)
def test_something_else_in_the_place_of_an_array_is_refused(instead: str, confined: Site) -> None:
    attack = f"""
from dure_client.trainer.service import TrainerService
os.unlink(os.environ["TMPDIR"] + "/attack.py")  # once is enough
kept = TrainerService._write
def write(self, name, array):
    TrainerService._write = kept
    {instead}
TrainerService._write = write
"""
    assert confined.attack(attack) is TrainerCode.ARRAY
    assert confined.works()
