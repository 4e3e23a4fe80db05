"""Dure's one form of a Flower message: RecordDict{"dure": ConfigRecord{"body": bytes}} and, where there are arrays,
{"arrays": ArrayRecord}. Anything else is refused with MisuseError.
"""

from collections.abc import Mapping
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from dure_protocols.errors import MessageError, MisuseError
from dure_protocols.frames import AnyArray
from dure_protocols.npy import array_of_npy

BODY_RECORD: Final = "dure"
BODY_KEY: Final = "body"
ARRAY_RECORD: Final = "arrays"
ARRAY_FORM: Final = "numpy.ndarray"  # flwr's name for the bytes of a .npy file


class HeldArray(Array):
    """A Flower Array around an ndarray (a mapped file, or memory), serialised only if a runtime asks for bytes.

    `sha256`: of the raw little-endian bytes, where somebody has checked it; "" where nobody has.
    """

    def __init__(self, ndarray: AnyArray, sha256: str = "") -> None:
        self.__dict__.update(ndarray=ndarray, sha256=sha256)
        super().__init__(str(ndarray.dtype), tuple(ndarray.shape), ARRAY_FORM, b"")

    @property
    def data(self) -> bytes:
        """The bytes as Flower's own runtimes carry them."""
        return Array(self.numpy()).data

    @data.setter
    def data(self, _value: bytes) -> None:
        pass

    @property
    def sha256(self) -> str:
        """Digest of the raw bytes, or ""."""
        return str(self.__dict__["sha256"])

    def numpy(self) -> AnyArray:
        """The array itself, not a copy."""
        held: AnyArray = self.__dict__["ndarray"]
        return held


# Flower's own runtimes write a class's name into what they carry and read it back by that name.
HeldArray.__qualname__ = Array.__qualname__


def content(body: bytes, arrays: Mapping[str, Array] | None = None) -> RecordDict:
    """A message's content in Dure's one form."""
    records = RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: body})})
    if arrays:
        record = ArrayRecord()
        for name, array in arrays.items():  # filled key by key: ArrayRecord(dict) would copy every array
            record[name] = array
        records[ARRAY_RECORD] = record
    return records


def body_of(message: Message) -> bytes:
    """The body of a message. Raises MisuseError if the message is not of Dure's form."""
    if not message.has_content() or set(message.content) - {BODY_RECORD, ARRAY_RECORD}:
        raise MisuseError("a message of Dure has the records 'dure' and 'arrays' and no others")
    record = message.content.get(BODY_RECORD)
    if not isinstance(record, ConfigRecord) or set(record) != {BODY_KEY} or not isinstance(record[BODY_KEY], bytes):
        raise MisuseError("a message of Dure has its body, as bytes, in the record 'dure' and nothing else there")
    return bytes(record[BODY_KEY])


def ndarray_of(array: Array) -> AnyArray:
    """An array of a message as numpy's. Raises MessageError if it is not what it says.

    `Array.numpy` would give a peer's bytes to `np.load`, which believes their lengths and also opens archives.
    """
    if isinstance(array, HeldArray):
        return array.numpy()
    if array.stype != ARRAY_FORM:
        raise MessageError(f"an array of form {array.stype!r} came; {ARRAY_FORM!r} was expected")
    return array_of_npy(array.data, array.dtype, tuple(array.shape))


def arrays_of(message: Message) -> dict[str, Array]:
    """The arrays of a message, by name. Raises MisuseError if it is not of Dure's form."""
    record = message.content.get(ARRAY_RECORD, ArrayRecord())
    if not isinstance(record, ArrayRecord):
        raise MisuseError("the record 'arrays' of a message of Dure holds arrays")
    return dict(record.items())
