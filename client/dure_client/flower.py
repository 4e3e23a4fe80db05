"""Where the firm's side meets Flower, and the only place: envelopes to `Message`s for a ClientApp, and back.

A Flower message of Dure has one form: RecordDict{"dure": ConfigRecord{"body": bytes}} and, where there are arrays,
{"arrays": ArrayRecord}. The ClientApp itself (its handlers, what a firm does in a round) is in `jobs.firm`.

Only public names of flwr are used. `Message(metadata=…)` is how flwr itself rebuilds a message that has arrived.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Final

from dure_client.agent import Answer
from dure_client.jobs.side import Given, Reaction
from dure_protocols.errors import MessageError, MisuseError, RefusalCode, RefusedError
from dure_protocols.frames import DURE_MESSAGE_TYPE, AnyArray, Envelope, raw_bytes
from dure_protocols.messages import encode
from dure_protocols.npy import array_of_npy

# Before flwr is imported: an agent tells nobody but its consortium that it exists.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp

logger = logging.getLogger(__name__)

BODY_RECORD: Final = "dure"
BODY_KEY: Final = "body"
ARRAY_RECORD: Final = "arrays"
ARRAY_FORM: Final = "numpy.ndarray"  # flwr's name for the bytes of a .npy file
APP_FAILED: Final = 2  # flwr's number for "the ClientApp raised"


class HeldArray(Array):
    """A Flower Array around an ndarray (a mapped file, or memory), serialised only if a runtime asks for bytes.

    `sha256`: of the raw little-endian bytes, where the link has checked it or who made the array; "" where nobody has.
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


def content(
    body: bytes, arrays: Mapping[str, AnyArray] | None = None, digests: Mapping[str, str] | None = None
) -> RecordDict:
    """A message's content in Dure's one form. `digests`: SHA-256 of arrays' raw bytes, where they are known."""
    records = RecordDict({BODY_RECORD: ConfigRecord({BODY_KEY: body})})
    if arrays:
        record = ArrayRecord()
        for name, array in arrays.items():  # filled key by key: ArrayRecord(dict) would copy every array
            record[name] = HeldArray(array, (digests or {}).get(name, ""))
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


def arrays_of(message: Message) -> dict[str, AnyArray]:
    """The arrays of a message, by name; mapped files stay mapped.

    Raises MisuseError if it is not of Dure's form, MessageError if an array is not what it says.
    """
    return {name: _ndarray_of(array) for name, array in _array_record(message).items()}


def digests_of(message: Message) -> dict[str, bytes]:
    """SHA-256 of each array's raw little-endian bytes: as the link has checked it, else computed. 32 bytes each."""
    return {name: _digest(array) for name, array in _array_record(message).items()}


class FlowerApp:
    """Runs a Flower ClientApp for the agent: `agent.App` on the one side, `Message` and `Context` on the other."""

    def __init__(self, app: ClientApp, run_config: Mapping[str, bool | float | int | str] | None = None) -> None:
        self._app = app
        self._run_config = dict(run_config or {})
        self._contexts: dict[int, Context] = {}

    def __call__(self, message: Envelope, arrays: Mapping[str, AnyArray]) -> Answer:
        """Give the app a message and return its answer. What the app raises comes through."""
        context = self._contexts.setdefault(
            message.run_id, Context(message.run_id, message.dst_node, {}, RecordDict(), dict(self._run_config))
        )
        reply = self._app(message=to_message(message, arrays), context=context)
        if reply.has_error():
            return Answer(error_code=_known_code(reply.error.reason))
        known = {name: array.sha256 for name, array in _array_record(reply).items() if isinstance(array, HeldArray)}
        return Answer(body_of(reply), arrays_of(reply), digests=known)


def to_message(envelope: Envelope, arrays: Mapping[str, AnyArray]) -> Message:
    """The Flower message that an envelope and its arrays stand for."""
    metadata = Metadata(
        run_id=envelope.run_id,
        message_id=envelope.message_id,
        src_node_id=envelope.src_node,
        dst_node_id=envelope.dst_node,
        reply_to_message_id=envelope.reply_to,
        group_id=envelope.group,
        created_at=envelope.created_at,
        ttl=envelope.ttl,
        message_type=envelope.message_type,
    )
    records = content(envelope.body, arrays, {ref.name: ref.sha256 for ref in envelope.arrays})
    return Message(metadata=metadata, content=records)  # type: ignore[call-overload, no-any-return]


def _known_code(reason: str | None) -> RefusalCode:
    """An error's reason may leave only if it is one of the codes."""
    try:
        return RefusalCode(reason or "")
    except ValueError:
        return RefusalCode.INTERNAL


def _array_record(message: Message) -> ArrayRecord:
    record = message.content.get(ARRAY_RECORD, ArrayRecord())
    if not isinstance(record, ArrayRecord):
        raise MisuseError("the record 'arrays' of a message of Dure holds arrays")
    return record


def _digest(array: Array) -> bytes:
    if isinstance(array, HeldArray) and array.sha256:
        return bytes.fromhex(array.sha256)
    return hashlib.sha256(raw_bytes(_ndarray_of(array))).digest()


def _ndarray_of(array: Array) -> AnyArray:
    # `Array.numpy` would give a peer's bytes to `np.load`, which believes their lengths and also opens archives.
    if isinstance(array, HeldArray):
        return array.numpy()
    if array.stype != ARRAY_FORM:
        raise MessageError(f"an array of form {array.stype!r} came; {ARRAY_FORM!r} was expected")
    return array_of_npy(array.data, array.dtype, tuple(array.shape))


def client_app(answer: Callable[[bytes, Given], Reaction]) -> ClientApp:
    """The firm's side as a Flower ClientApp: one kind of message, answered by `Firm.answer`.

    The same on the link, in one process with others and on a stock SuperNode. It runs what this firm has installed; a
    message brings bytes and arrays, never code. Flower's runtimes send the text of what an app raises to the server, so
    nothing is raised: the reply then is an error whose reason is a code, and the text goes to the firm's log.
    """
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:  # noqa: ARG001  # the face is flwr's
        try:
            reaction = answer(body_of(message), Given(arrays_of(message), digests_of(message)))
            digests = {name: digest.hex() for name, digest in reaction.digests.items()}
            return Message(content(encode(reaction.message), reaction.arrays, digests), reply_to=message)
        except RefusedError as error:
            logger.warning("refused: %s: %s", error.code, error)
            code = error.code
        except Exception:
            logger.exception("the firm's app failed")
            code = RefusalCode.INTERNAL
        return Message(Error(APP_FAILED, code.value), reply_to=message)

    app.query(DURE_MESSAGE_TYPE.removeprefix("query."))(handle)
    return app
