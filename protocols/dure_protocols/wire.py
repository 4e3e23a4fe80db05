"""Canonical bytes: how every message, signature and digest of the protocol is written (docs/protocol.md, section 2).

Integers are big-endian and of fixed width; byte strings and texts carry a 32-bit length before them; lists carry a
32-bit count. There is one way to write a value, so equal values have equal digests. A reader checks every length
against what is there and against the caller's limit *before* it takes memory, and refuses bytes that are left over.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from dure_protocols.errors import MessageError, MisuseError

T = TypeVar("T")

MAX_TEXT_BYTES = 4096
MAX_ITEMS = 4096


class Writer:
    """Collects fields; `bytes()` of it is the message."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def u8(self, value: int) -> "Writer":
        """Append an 8-bit unsigned integer."""
        return self._pack(">B", value)

    def u32(self, value: int) -> "Writer":
        """Append a 32-bit unsigned integer."""
        return self._pack(">I", value)

    def u64(self, value: int) -> "Writer":
        """Append a 64-bit unsigned integer."""
        return self._pack(">Q", value)

    def f64(self, value: float) -> "Writer":
        """Append an IEEE 754 double."""
        return self._pack(">d", value)

    def fixed(self, value: bytes, length: int) -> "Writer":
        """Append exactly `length` bytes, without a length before them."""
        if len(value) != length:
            raise MisuseError(f"a field of {length} bytes was given {len(value)}")
        self._parts.append(bytes(value))
        return self

    def blob(self, value: bytes) -> "Writer":
        """Append bytes behind their 32-bit length."""
        self.u32(len(value))
        self._parts.append(bytes(value))
        return self

    def text(self, value: str) -> "Writer":
        """Append UTF-8 text behind its 32-bit length in bytes."""
        return self.blob(value.encode())

    def items(self, values: Iterable[T], write: Callable[["Writer", T], object]) -> "Writer":
        """Append a 32-bit count and each value by `write(writer, value)`."""
        listed = list(values)
        self.u32(len(listed))
        for value in listed:
            write(self, value)
        return self

    def _pack(self, form: str, value: float) -> "Writer":
        try:
            self._parts.append(struct.pack(form, value))
        except struct.error as error:
            raise MisuseError(f"{value!r} does not fit a field of form {form}") from error
        return self

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Takes the fields of a message back out, in order. Raises MessageError on anything unexpected."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def u8(self) -> int:
        """Take an 8-bit unsigned integer."""
        return int(self._unpack(">B"))

    def u32(self) -> int:
        """Take a 32-bit unsigned integer."""
        return int(self._unpack(">I"))

    def u64(self) -> int:
        """Take a 64-bit unsigned integer."""
        return int(self._unpack(">Q"))

    def flag(self) -> bool:
        """Take a byte that is 0 or 1."""
        value = self.u8()
        if value > 1:
            raise MessageError(f"a flag of {value} came; 0 or 1 was expected")
        return value == 1

    def f64(self) -> float:
        """Take an IEEE 754 double."""
        return self._unpack(">d")

    def fixed(self, length: int) -> bytes:
        """Take exactly `length` bytes."""
        left = len(self._data) - self._at
        if left < length:
            raise MessageError(f"message is truncated: a field of {length} bytes was expected, {left} bytes are left")
        start, self._at = self._at, self._at + length
        return bytes(self._data[start : self._at])

    def blob(self, limit: int) -> bytes:
        """Take bytes behind their length; a length over `limit` is refused before memory is taken."""
        length = self.u32()
        if length > limit:
            raise MessageError(f"a field of {length} bytes came where at most {limit} are allowed")
        return self.fixed(length)

    def text(self, limit: int = MAX_TEXT_BYTES) -> str:
        """Take UTF-8 text of at most `limit` bytes."""
        try:
            return self.blob(limit).decode()
        except UnicodeDecodeError as error:
            raise MessageError("a text field is not valid UTF-8") from error

    def items(self, read: Callable[["Reader"], T], limit: int = MAX_ITEMS) -> list[T]:
        """Take a counted list of at most `limit` values, each by `read(reader)`."""
        count = self.u32()
        if count > limit:
            raise MessageError(f"a list of {count} items came where at most {limit} are allowed")
        return [read(self) for _ in range(count)]

    def end(self) -> None:
        """Refuse bytes that are left over. Every decoder calls this last."""
        left = len(self._data) - self._at
        if left:
            raise MessageError(f"{left} bytes are left over behind the message")

    def _unpack(self, form: str) -> float:
        (value,) = struct.unpack(form, self.fixed(struct.calcsize(form)))
        return value  # type: ignore[no-any-return]  # struct is untyped; every form above yields a number


def digest(label: str, *parts: bytes) -> bytes:
    """SHA-256 over a label and parts, each behind its length, so no two lists of parts collide. 32 bytes."""
    writer = Writer().text(label)
    for part in parts:
        writer.blob(part)
    return hashlib.sha256(bytes(writer)).digest()
