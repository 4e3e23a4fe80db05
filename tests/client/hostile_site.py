"""A firm's home with a trainer whose model does what a test says, for the tests of the sandbox."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dure_client.trainer.client import StatisticsSums, TrainerClient
from dure_client.trainer.messages import TrainerCode, TrainerError
from dure_client.trainer.process import TrainerPlaces
from dure_client.trainer.sandbox import Limits, Sandbox
from tests.client.test_trainer import CANARY, spec_of, write_data

GIB = 1 << 30
SAY = "open(os.environ['TMPDIR'] + '/got', 'w').write('x')"
"""Ends an attack that succeeded."""


@dataclass
class Site:
    """A firm's home with keys, a neighbour's file, a listener, and a trainer with a hostile model."""

    folder: Path
    trainer: TrainerClient
    places: dict[str, str]
    heard: list[bytes]

    def attack(self, code: str) -> TrainerCode | None:
        """Let the model do this in mid-training: the code that the agent heard, None if the training went through."""
        self.trainer.open()  # a start clears the folder
        attack = self.folder / "scratch" / "attack.py"
        attack.write_text("import os, socket, subprocess, sys\n" + code.format(**self.places))
        try:
            self._train()
        except TrainerError as error:
            return error.code
        finally:
            attack.unlink(missing_ok=True)
        return None

    def works(self) -> bool:
        """The model left to itself trains."""
        return self._train() == 96

    @property
    def succeeded(self) -> bool:
        """Whether the last attack said so; forgotten then."""
        got = self.folder / "scratch" / "got"
        return got.exists() and got.unlink() is None

    def _train(self) -> int:
        statistics: StatisticsSums = self.trainer.statistics()
        return self.trainer.train(self.trainer.initial(), statistics, round_number=1, seed=1).count


def make_site(folder: Path, model: Path, sandbox: Sandbox, **options: object) -> Site:
    write_data(folder, canary=CANARY)
    (folder / "scratch").mkdir()
    (folder / "keys").mkdir(mode=0o700)
    (folder / "keys" / "identity.key").write_text("a key")
    (folder / "other.csv").write_text("rows of another job")
    places = TrainerPlaces(folder / "scratch", folder / "data.toml", folder / "logs" / "trainer.log", hidden=(folder,))
    trainer = TrainerClient(
        spec_of(options={"fault": "attack"}),
        places,
        environment={"PYTHONPATH": str(model)},
        sandbox=sandbox,
        **options,  # type: ignore[arg-type]
    )
    return Site(folder, trainer, {"home": str(folder), "agent": str(os.getpid())}, [])


def listen(site: Site) -> list[socket.socket]:
    """Listeners of every kind that a trainer could reach on a host without a sandbox."""
    tcp, local, abstract = socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))
    local.bind(str(site.folder / "agent.sock"))
    abstract.bind(f"\0dure-test-{os.getpid()}-{site.folder.name}")
    for listener in (local, abstract):
        listener.listen()
    site.places["port"] = str(tcp.getsockname()[1])
    site.places["abstract"] = f"\\0dure-test-{os.getpid()}-{site.folder.name}"
    for listener in (tcp, local, abstract):
        threading.Thread(target=hear, args=(listener, site.heard), daemon=True).start()
    return [tcp, local, abstract]


def hear(listener: socket.socket, heard: list[bytes]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            heard.append(b"somebody")


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory, installed_model: Path, bubblewrap: Sandbox) -> Iterator[Site]:
    site = make_site(tmp_path_factory.mktemp("home"), installed_model, bubblewrap, limits=Limits(2 * GIB))
    listeners = listen(site)
    with site.trainer:
        yield site
    for listener in listeners:
        listener.close()


def are_gone(pids: list[str]) -> bool:
    """Whether processes end: the kernel takes a moment to kill what is inside a sandbox."""
    give_up_at = time.monotonic() + 5
    while any(Path("/proc", pid).exists() for pid in pids) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    return not any(Path("/proc", pid).exists() for pid in pids)


def children(pid: int | None) -> list[str]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return told + [below for child in told for below in children(int(child))]
