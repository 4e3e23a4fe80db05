"""The bytes of blobs on their way between files and the link."""

import threading
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

from dure_protocols.frames import CHUNK_BYTES


class UploadRequests:
    """The requests of one upload: the announcement at once, the file's rest when the link has said where it begins.

    gRPC takes them from a thread of its own. What it has taken counts as sent.
    """

    def __init__(self, announced: bytes, path: Path) -> None:
        self._announced = announced
        self._path = path
        self._begun = threading.Event()
        self._lock = threading.Lock()
        self._ended = False
        self._sent_up_to: int | None = None

    def begin(self, offset_bytes: int) -> None:
        """Let the file's bytes go, from an offset on."""
        self._sent_up_to = offset_bytes
        self._begun.set()

    def end(self) -> int | None:
        """Let nothing more go. Returns the offset up to which the file was sent; None if it was not begun."""
        with self._lock:
            self._ended = True
        self._begun.set()
        return self._sent_up_to

    def __iter__(self) -> Iterator[bytes]:
        """The announcement, then chunk by chunk."""
        yield self._announced
        self._begun.wait()
        if self._sent_up_to is None:
            return
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._sent_up_to)
            while chunk := file.read(CHUNK_BYTES):
                with self._lock:
                    if self._ended:
                        return
                    self._sent_up_to += len(chunk)
                yield chunk


def write_all(file: RawIOBase, chunk: bytes | memoryview) -> None:
    """Write a chunk to an unbuffered file, however many writes that takes."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
