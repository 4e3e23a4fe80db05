"""The coordinator's own copies of the global state, so that a job may forget its old sums.

    jobs/<job>/checkpoint-<round>-<sha256>.words      `GlobalState.to_words`, little-endian

A coordinator that is started again goes on from the newest copy that is whole and fits the store, and applies the sums
that were published since. The file's name holds its digest: a torn or changed one is passed over.
"""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

from dure_protocols.errors import MessageError
from dure_protocols.global_state import GlobalState
from dure_server.files import flush_folder

KEPT = 2
"""Copies that are kept: the newest, and the one before it in case the disk damages that."""


class Checkpoints:
    """The files of one job. Written by its one coordinator."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def save(self, state: GlobalState) -> None:
        """Write the state durably, and delete the oldest copies."""
        words = np.ascontiguousarray(state.to_words(), "<u8")
        target = self._folder / f"checkpoint-{state.round}-{sha256(words.data).hexdigest()}.words"
        aside = self._folder / "checkpoint.part"
        with aside.open("wb") as file:
            words.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
        flush_folder(self._folder)
        for old in self._newest_first()[KEPT:]:
            old.unlink()

    def restore(self, state: GlobalState, model_digests: Mapping[int, bytes]) -> None:
        """Bring a fresh state to the newest copy. model_digests: of the model after each finished round, as the store
        has them; a copy that says otherwise is of another time and is passed over."""
        for file in self._newest_first():
            words = np.fromfile(file, "<u8").astype(np.uint64, copy=False)
            if sha256(words.data).hexdigest() != file.stem.split("-")[2]:
                continue
            try:
                kept = state.standing_at(words)
            except MessageError:
                continue
            if model_digests.get(kept.round - 1) == kept.digest:
                state.resume(kept.round, kept.model, kept.normalisation, kept.best, kept.clip, kept.moments)
                return

    def newest_round(self) -> int:
        """The round that the newest copy stands before; 0 before the first."""
        return max((_round(file) for file in self._newest_first()), default=0)

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob("checkpoint-*-*.words"), key=_round, reverse=True)


def _round(file: Path) -> int:
    return int(file.stem.split("-")[1])
