"""Field types of messages: how each annotated field of a dataclass is written and read.

A message class lists its fields once, as annotations (`epoch: U64`, `members: Names`); `Fields` writes and reads them
in that order, through `wire.Writer` and `wire.Reader`, with every length checked.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar, get_type_hints

from dure_protocols.identity import SIGNATURE_BYTES
from dure_protocols.wire import Reader, Writer

T = TypeVar("T")

MAX_FIRMS = 256


@dataclass(frozen=True)
class Codec(Generic[T]):
    """How one field is written and read."""

    write: Callable[[Writer, T], object]
    read: Callable[[Reader], T]


def fixed(length: int) -> Codec[bytes]:
    """Exactly `length` bytes."""
    return Codec(lambda writer, value: writer.fixed(value, length), lambda reader: reader.fixed(length))


def blob(limit: int) -> Codec[bytes]:
    """At most `limit` bytes."""
    return Codec(Writer.blob, lambda reader: reader.blob(limit))


def many(codec: Codec[T], limit: int = MAX_FIRMS) -> Codec[tuple[T, ...]]:
    """At most `limit` values."""
    return Codec(
        lambda writer, values: writer.items(values, codec.write),
        lambda reader: tuple(reader.items(codec.read, limit)),
    )


def pair(first: Codec[Any], second: Codec[Any]) -> Codec[tuple[Any, Any]]:
    """Two values, one behind the other."""

    def write(writer: Writer, value: tuple[Any, Any]) -> None:
        first.write(writer, value[0])
        second.write(writer, value[1])

    return Codec(write, lambda reader: (first.read(reader), second.read(reader)))


TEXT: Codec[str] = Codec(Writer.text, Reader.text)

U64 = Annotated[int, Codec(Writer.u64, Reader.u64)]
Text = Annotated[str, TEXT]
Names = Annotated[tuple[str, ...], many(TEXT)]
Hash = Annotated[bytes, fixed(32)]
Seed = Annotated[bytes, fixed(32)]
Signature = Annotated[bytes, fixed(SIGNATURE_BYTES)]


class Fields:
    """Base of a frozen dataclass that is written field by field; a message's `kind` is its first byte."""

    kind: ClassVar[int] = 0

    def write(self, writer: Writer) -> None:
        """Append the fields in the order of their declaration."""
        for name, codec in _codecs(type(self)):  # type: ignore[arg-type]  # mypy takes the instances' __hash__ for the class's own
            codec.write(writer, getattr(self, name))

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Take the fields in the order of their declaration. Raises MessageError."""
        return cls(**{name: codec.read(reader) for name, codec in _codecs(cls)})  # type: ignore[arg-type]  # as above


F = TypeVar("F", bound=Fields)


def nested(cls: type[F]) -> Codec[F]:
    """A message inside a message."""
    return Codec(lambda writer, value: value.write(writer), cls.read)


@cache
def _codecs(cls: type[Fields]) -> list[tuple[str, Codec[Any]]]:
    hints = get_type_hints(cls, include_extras=True)
    return [(field.name, hints[field.name].__metadata__[0]) for field in fields(cls)]  # type: ignore[arg-type]  # subclasses are
