"""Blobs on the link's disk: uploads/<firm>/<sha256> and released/<sha256>.

A file without a suffix is whole: its content matched its digest and it was flushed to disk before it got that name.
A file ending in .part is an upload that was cut; the next attempt goes on where it ends. Digests are checked before
they become names. Chunks are hashed and written in a thread while the next one arrives.
"""

import asyncio
import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from io import RawIOBase
from pathlib import Path
from typing import Final, TypeVar

import grpc
import numpy as np

from dure_protocols.frames import (
    CHUNK_BYTES,
    Announce,
    AnyArray,
    Fetch,
    Stored,
    little_endian,
    raw_bytes,
)
from dure_server.files import flush_folder
from dure_server.link.errors import LinkRefusedError
from dure_server.link.journal import Upload

T = TypeVar("T")

PART: Final = ".part"
DEFAULT_MAX_UPLOAD_BYTES: Final = 2 << 30
DEFAULT_QUOTA_BYTES: Final = 16 << 30
MIN_FREE_BYTES: Final = 256 << 20  # what the store needs to go on


class BlobFolder:
    """The link's blobs. One instance a link process; methods are awaited from its event loop."""

    def __init__(
        self,
        uploads: Path,
        released: Path,
        *,
        max_blob_bytes: int = DEFAULT_MAX_UPLOAD_BYTES,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
    ) -> None:
        """`max_blob_bytes` limits one upload, `quota_bytes` all that one firm's folder may hold."""
        self._uploads = uploads
        self._released = released
        self._max_blob_bytes = max_blob_bytes
        self._quota_bytes = quota_bytes
        self._writers: dict[Path, asyncio.Task[object]] = {}
        for folder in (uploads, released):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def upload(self, firm: str, announced: Announce, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Stored]:
        """Take a blob: says first how much of it is here, then takes the rest, then says that it is whole.

        Raises LinkRefusedError if it is too large, the stream ends early or the content is not what was announced.
        """
        folder = self._uploads / firm
        folder.mkdir(mode=0o700, exist_ok=True)
        target = folder / announced.sha256
        await self._evict(target)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine always runs in a task
        self._writers[target] = task
        try:
            if target.exists():
                yield Stored(announced.size_bytes, complete=True)
                return
            part = target.with_suffix(PART)
            held = self._make_room(folder, part, announced.size_bytes)
            yield Stored(held, complete=False)
            await _receive(part, target, announced, held, chunks)
            yield Stored(announced.size_bytes, complete=True)
        except OSError as error:
            raise _storage_refusal(error) from error
        finally:
            if self._writers.get(target) is task:
                del self._writers[target]

    async def download(self, wanted: Fetch) -> AsyncGenerator[bytes]:
        """A released blob's bytes from an offset on. The caller MUST have checked that the firm may have it."""
        try:
            file = (self._released / wanted.sha256).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise LinkRefusedError(grpc.StatusCode.NOT_FOUND, "this blob is not released") from error
        with file:
            if wanted.offset > os.fstat(file.fileno()).st_size:
                raise LinkRefusedError(grpc.StatusCode.OUT_OF_RANGE, "the offset lies behind the blob's end")
            file.seek(wanted.offset)
            while chunk := file.read(CHUNK_BYTES):  # released a moment ago and so cached: quicker than a thread's turn
                yield chunk

    def is_complete(self, upload: Upload, size_bytes: int) -> bool:
        """Whether a firm's blob is here, whole and of this size."""
        try:
            return (self._uploads / upload.firm / upload.digest).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def drop_upload(self, upload: Upload) -> None:
        """Delete a firm's blob. Whoever has it mapped keeps what is mapped."""
        (self._uploads / upload.firm / upload.digest).unlink(missing_ok=True)

    def drop_released(self, digest: str) -> None:
        """Delete a released blob."""
        (self._released / digest).unlink(missing_ok=True)

    def old_uploads(self, age_seconds: float) -> list[Upload]:
        """Whole and partial uploads that nobody has written to for so long. A partial one's digest ends in .part."""
        limit = time.time() - age_seconds
        return [
            Upload(file.parent.name, file.name) for file in self._uploads.glob("*/*") if file.stat().st_mtime < limit
        ]

    async def _evict(self, target: Path) -> None:
        """The newest upload of a blob wins: an older one hangs on a connection that is gone."""
        while (older := self._writers.get(target)) is not None:
            older.cancel()
            await asyncio.wait([older])
            if self._writers.get(target) is older:
                del self._writers[target]

    def _make_room(self, folder: Path, part: Path, size_bytes: int) -> int:
        """Bytes of the partial file that may be built on. Raises LinkRefusedError if the whole cannot be taken."""
        if size_bytes > self._max_blob_bytes:
            raise LinkRefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"a blob of {size_bytes} bytes was announced; this link takes at most {self._max_blob_bytes}",
            )
        held = part.stat().st_size if part.exists() else 0
        if held > size_bytes:
            part.unlink()
            held = 0
        used = sum(entry.stat().st_size for entry in os.scandir(folder))
        if used + size_bytes - held > self._quota_bytes:
            raise LinkRefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"this firm's quota of {self._quota_bytes} bytes is used up"
            )
        if shutil.disk_usage(folder).free < size_bytes - held + MIN_FREE_BYTES:
            raise _disk_is_full()
        return held


async def _receive(part: Path, target: Path, announced: Announce, held: int, chunks: AsyncIterator[bytes]) -> None:
    running = hashlib.sha256()
    with part.open("r+b" if held else "w+b", buffering=0) as file:
        await _in_thread(_hash_and_skip, file, running)
        received = held + await _append_all(file, chunks, running, announced.size_bytes - held)
        if received < announced.size_bytes:
            raise LinkRefusedError(
                grpc.StatusCode.ABORTED, f"{received} of {announced.size_bytes} bytes came; go on from there"
            )
        if running.hexdigest() != announced.sha256:
            part.unlink()
            raise LinkRefusedError(grpc.StatusCode.DATA_LOSS, "the bytes do not match their digest; send them again")
        await _in_thread(_finish, file, part, target)


async def _append_all(file: RawIOBase, chunks: AsyncIterator[bytes], running: "hashlib._Hash", limit_bytes: int) -> int:
    """Hash and write every chunk while the next one arrives. Returns their bytes together."""
    received = 0
    writing: asyncio.Future[None] | None = None
    try:
        async for chunk in chunks:
            received += len(chunk)
            if received > limit_bytes:
                raise LinkRefusedError(grpc.StatusCode.INVALID_ARGUMENT, "more bytes came than were announced")
            if writing:
                await writing
            writing = asyncio.ensure_future(_in_thread(_append, file, chunk, running))
        if writing:
            await writing
    finally:
        if writing and not writing.done():  # cut off: the file is closed next
            await asyncio.wait([writing])
    return received


async def _in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Do file work in a thread. When cancelled, wait for it: nobody else may touch the file meanwhile."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _hash_and_skip(file: RawIOBase, running: "hashlib._Hash") -> None:
    while block := file.read(CHUNK_BYTES):
        running.update(block)


def _append(file: RawIOBase, chunk: bytes | memoryview, running: "hashlib._Hash") -> None:
    running.update(chunk)
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _finish(file: RawIOBase, part: Path, target: Path) -> None:
    os.fsync(file.fileno())
    part.rename(target)
    flush_folder(target.parent)


def store_array(array: AnyArray, folder: Path) -> str:
    """Write an array's raw bytes durably to `folder` under their SHA-256, in one pass. Returns the digest."""
    running, content = hashlib.sha256(), raw_bytes(array)
    aside = folder / f"{os.getpid()}-{threading.get_ident()}.new"
    with aside.open("wb", buffering=0) as file:
        for start in range(0, len(content), CHUNK_BYTES):
            _append(file, content[start : start + CHUNK_BYTES], running)
        os.fsync(file.fileno())
    aside.rename(folder / running.hexdigest())
    flush_folder(folder)
    return running.hexdigest()


def map_array(file: Path, dtype: str, shape: tuple[int, ...]) -> AnyArray:
    """The array whose raw bytes a blob's file holds, read-only, taking memory only where it is looked at."""
    array: AnyArray = np.memmap(file, dtype=little_endian(dtype), mode="r", shape=shape)
    return array


def _storage_refusal(error: OSError) -> LinkRefusedError | OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_is_full()
    return error


def _disk_is_full() -> LinkRefusedError:
    """Not for good: the operator makes room, and the firm tries again until then."""
    return LinkRefusedError(grpc.StatusCode.UNAVAILABLE, "the server's disk is full")
