"""Targets of what running processes write down for others, and of how the operator and the firm say a job is run."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256

import numpy as np

from dure_client.absence import PAUSE_FILE, Pause, pause_in_force
from dure_client.health import Beat, last_beat
from dure_client.home import AgentHome
from dure_client.link.standing import LinkStanding
from dure_protocols.global_state import GlobalState
from dure_protocols.job import JobFile
from dure_server.coordinator.checkpoints import Checkpoints
from dure_server.operation import Operation, OperationError, changed_operation
from dure_server.processes import RunningFile, RunningProcess, read_processes
from tests.fuzz.mutate import JSON
from tests.fuzz.target import Target
from tests.fuzz.targets.files import JSON_TEXT, FromFile
from tests.fuzz.targets.scratch import scratch
from tests.protocols.test_global_state import INITIAL, a_job, published

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def running_targets() -> Iterator[Target]:
    """Health, link, processes, pauses, checkpoints, operation."""
    folder = scratch("running")
    health, standing, processes = folder / "health.json", folder / "link.json", folder / "processes.json"
    beats = [Beat(connected=connected).model_dump_json().encode() for connected in (True, False)]
    yield Target("running/health", FromFile(health, lambda: last_beat(health)), (), beats, JSON_TEXT, mutators=JSON)
    LinkStanding(heard_at=NOW, server_version="0.2.0", protocol=2, clock_ahead_seconds=-1.5).write(standing)
    hearing = FromFile(standing, lambda: LinkStanding.read(standing))
    yield Target("running/link", hearing, (), [standing.read_bytes()], JSON_TEXT, mutators=JSON)
    RunningFile(processes).write([RunningProcess("link", "", 7, 1), RunningProcess("coordinator", "milling", None, 3)])
    running = FromFile(processes, lambda: read_processes(processes))
    yield Target(
        "running/processes", running, (), [processes.read_bytes()], JSON_TEXT, check=_check_processes, mutators=JSON
    )
    home = AgentHome(scratch("paused"))
    home.state.mkdir(exist_ok=True)
    pauses = [Pause(until=until).model_dump_json().encode() for until in (None, NOW)]
    pausing = FromFile(home.state / PAUSE_FILE, lambda: pause_in_force(home, None, NOW))
    yield Target("running/pause", pausing, (), pauses, JSON_TEXT, check=_check_pause, mutators=JSON)
    checkpoint = _Checkpoint(a_job())
    yield Target("running/checkpoint", checkpoint, (), checkpoint.seeds(), 64, check=checkpoint.check)
    operation = [
        b'{"quorum": 3, "update_seconds": 9.5, "keep_sums": true}',
        b'{"diverged_factor": 2, "join_seconds": 0}',
    ]
    yield Target("running/operation", _operation, (OperationError,), operation, JSON_TEXT, mutators=JSON)


def _check_processes(processes: list[RunningProcess]) -> None:
    assert all(each.pid is None or type(each.pid) is int for each in processes)


def _check_pause(pause: Pause | None) -> None:
    """Only one that says that it is over is over."""
    assert pause is None or pause.until is None or pause.until > NOW


class _Checkpoint:
    """A copy of the global state whose name fits its bytes, whatever they are, as a server's own folder might hold."""

    def __init__(self, job: JobFile) -> None:
        self._job, self._path = job, scratch("checkpoints")
        self._checkpoints = Checkpoints(self._path)
        self._digests = {}
        state = GlobalState(job, INITIAL)
        self._seeds = []
        for _ in range(2):
            state.advance(published(job, state.round, clip=state.clip), 3)
            self._digests[state.round - 1] = state.digest
            self._seeds.append(np.ascontiguousarray(state.to_words(), "<u8").tobytes())

    def seeds(self) -> list[bytes]:
        """The state before two rounds."""
        return self._seeds

    def __call__(self, data: bytes) -> GlobalState:
        for old in self._path.iterdir():
            old.unlink()
        kept = data[: len(data) // 8 * 8]
        (self._path / f"checkpoint-1-{sha256(kept).hexdigest()}.words").write_bytes(data)
        state = GlobalState(self._job, INITIAL)
        self._checkpoints.restore(state, self._digests)
        return state

    def check(self, state: GlobalState) -> None:
        """It stands where it began, or on a model that the store names."""
        assert self._digests.get(state.round - 1, GlobalState(self._job, INITIAL).digest) == state.digest
        assert state.model.shape == INITIAL.shape


def _operation(data: bytes) -> Operation:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OperationError("settings are JSON in the store") from error
    if not isinstance(values, dict):
        raise OperationError("settings have names")
    return changed_operation(a_job(), {}, values)
