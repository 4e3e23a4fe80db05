"""What an agent keeps of one job over a crash: jobs/<job-id>/ in its home.

    job.json          the job file, byte for byte as approved
    session.bin       the secure aggregation's state; holds keys (0600)
    progress.json     the round the global model stands before, and which files hold it
    initial.f32       the job's first model, little-endian float32, so that only the first process asks a trainer for it
    model-*.f32       the global model, the best so far, and what the server step remembers
    residual-*.f32    with error feedback: what an attempt's clipping and rounding lost of the firm's update
    final.f32         the model the job handed over
    own.f32 result.json   the firm's own model, and how the two compare here

`session.bin` and `progress.json` are on disk before anything is sent. Models are not waited for: their digest stands in
progress.json, and one that does not match after a power cut is computed again from the published sums. A residual that
a power cut took is gone: the firm begins with zeros.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dure_client.home import write_file
from dure_protocols.errors import MessageError
from dure_protocols.global_state import Best, GlobalState, model_digest
from dure_protocols.job import JobFile
from dure_protocols.server_step import Moments

Place = tuple[int, int, int]
"""Epoch, round and attempt."""

PROGRESS_FILE = "progress.json"
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 64)]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StoredBest(_Stored):
    """Which file holds the best model so far."""

    digest: Digest
    round: Count
    value: float


class Progress(_Stored):
    """progress.json."""

    round: Count
    digest: Digest
    normalisation: tuple[float, ...] | None
    best: StoredBest | None
    clip: float
    moments: tuple[Digest, ...] = ()  # a file from before there were moments has none
    residual: tuple[Count, Count, Count] | None


class JobFolder:
    """Reads and writes one job's files. Called by the agent's one thread of that job."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path

    @property
    def final_file(self) -> Path:
        """The model that the job handed over."""
        return self.path / "final.f32"

    @property
    def result_file(self) -> Path:
        """How the federated model and the firm's own compare on its data."""
        return self.path / "result.json"

    def save_job(self, job: JobFile) -> None:
        """Keep the job file."""
        write_file(self.path / "job.json", job.to_bytes(), mode=0o600)

    def load_job(self) -> JobFile | None:
        """The job file, or None before one was proposed."""
        file = self.path / "job.json"
        return JobFile.from_bytes(file.read_bytes()) if file.exists() else None

    def first_model(self, digest: str, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The job's first model, (d,) float32: as it was kept here if it has this digest (hex), else made and kept."""
        file = self.path / "initial.f32"
        if file.exists():
            kept = np.fromfile(file, "<f4")
            if model_digest(kept).hex() == digest:
                return kept
        made = make()
        self.save_array(file.name, made)
        return made

    def save_session(self, snapshot: bytes) -> None:
        """Store the protocol state durably. MUST return before anything that it led to is sent."""
        write_file(self.path / "session.bin", snapshot, mode=0o600)

    def load_session(self) -> bytes | None:
        """The stored protocol state, or None before the first epoch."""
        file = self.path / "session.bin"
        return file.read_bytes() if file.exists() else None

    def save_residual(self, place: Place, residual: NDArray[np.float32]) -> None:
        """Keep what an attempt lost. It counts only once a published sum holds that attempt's vector.

        Of earlier attempts of the round two stay: in threshold mode the others may still open them.
        """
        self.save_array(_residual_name(place), residual)
        tried = sorted(p for p in map(_place_in, self.path.glob("residual-*.f32")) if p[:2] == place[:2])
        for old in tried[:-3]:
            (self.path / _residual_name(old)).unlink()

    def load_residual(self, place: Place | None, size: int) -> NDArray[np.float32]:
        """What was lost in an attempt, (size,) float32, to be changed at will; zeros if there is none."""
        file = self.path / _residual_name(place) if place else None
        kept = np.fromfile(file, "<f4") if file is not None and file.exists() else np.zeros(0, np.float32)
        return kept if kept.size == size and np.isfinite(kept).all() else np.zeros(size, np.float32)

    def drop_residuals(self, before_round: int, keep: Place | None) -> None:
        """Delete the residuals of earlier rounds but one."""
        for file in self.path.glob("residual-*.f32"):
            place = _place_in(file)
            if place != keep and place[1] < before_round:
                file.unlink()

    def save_state(self, state: GlobalState, residual: Place | None) -> None:
        """Store where the global model stands, and in which attempt the firm last entered a sum with error feedback.

        Files that are no longer named are deleted.
        """
        names = {self._save_model(state.model, state.digest)}
        best = None
        if state.best is not None:
            names.add(self._save_model(state.best.model, state.best.digest))
            best = StoredBest(digest=state.best.digest.hex(), round=state.best.round, value=state.best.value)
        moments = tuple(zip(state.moments.vectors, state.moments.digests, strict=True))
        names |= {self._save_model(vector, digest) for vector, digest in moments}
        progress = Progress(
            round=state.round,
            digest=state.digest.hex(),
            normalisation=None if state.normalisation is None else tuple(state.normalisation.tolist()),
            best=best,
            clip=state.clip,
            moments=tuple(digest.hex() for _, digest in moments),
            residual=residual,
        )
        write_file(self.path / PROGRESS_FILE, progress.model_dump_json().encode(), mode=0o600)
        for file in self.path.glob("model-*.f32"):
            if file.name not in names:
                file.unlink()
        self.drop_residuals(state.round, residual)

    def restore_state(self, state: GlobalState) -> Place | None:
        """Bring a fresh state to where it was stored; leave it at its beginning if the files do not hold it whole.

        Returns the attempt whose residual counts, None if there is none.
        """
        stored = stored_progress(self.path)
        if stored is None:
            return None
        normalisation = None if stored.normalisation is None else np.array(stored.normalisation, np.float64)
        try:
            best = None if stored.best is None else self._load_best(stored.best)
            moments = Moments(tuple(self._load_model(digest) for digest in stored.moments))
            state.resume(stored.round, self._load_model(stored.digest), normalisation, best, stored.clip, moments)
        except (OSError, MessageError):
            return None
        return stored.residual

    def save_array(self, name: str, array: NDArray[np.float32]) -> None:
        """Write a float32 array to a file of the folder, whole or not at all."""
        part = self.path / f"{name}.part"
        np.ascontiguousarray(array, "<f4").tofile(part)
        part.replace(self.path / name)

    def _save_model(self, model: NDArray[np.float32], digest: bytes) -> str:
        name = f"model-{digest.hex()[:32]}.f32"
        if not (self.path / name).exists():
            self.save_array(name, model)
        return name

    def _load_best(self, best: StoredBest) -> Best:
        return Best(self._load_model(best.digest), bytes.fromhex(best.digest), best.round, best.value)

    def _load_model(self, digest: str) -> NDArray[np.float32]:
        model = np.fromfile(self.path / f"model-{digest[:32]}.f32", "<f4")
        if model_digest(model).hex() != digest:
            raise MessageError("a stored model does not match its digest")
        return model


def _residual_name(place: Place) -> str:
    return f"residual-{'-'.join(map(str, place))}.f32"


def _place_in(file: Path) -> Place:
    epoch, round_, attempt = map(int, file.stem.split("-")[1:])
    return epoch, round_, attempt


def stored_progress(folder: Path) -> Progress | None:
    """Where a job stands, as its folder says; None if it does not say, or the file is damaged."""
    try:
        return Progress.model_validate_json((folder / PROGRESS_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
