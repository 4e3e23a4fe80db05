"""The agent's loop: one message after the other goes to the firm's app, and its answer to the link.

An answer is on disk, whole, before anything of it leaves. So a message that comes again, after a cut connection or a
kill at any moment, gets the identical answer, and the app sees no message twice that it has answered. Only a power cut
may take an answer's blob; then the answer becomes "state-lost", and never another blob. A message that nobody waits for
any more is dropped. Nothing the app raises leaves but a code; its text stays in this firm's log.

    state/answers/<message id>   the encoded reply
    state/outbox/<sha256>        blobs of replies, until the link has confirmed the reply
    state/inbox/<sha256>         blobs of messages; the newest few are kept, and a .part of one that was cut on its way
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import numpy as np

from dure_client.home import flush_folder
from dure_client.link.client import LinkClient
from dure_client.link.errors import LinkError, LinkRefusedError, NotAdmittedError
from dure_client.link.transfer import write_all
from dure_protocols import messages
from dure_protocols.errors import DureError, MessageError, MisuseError, RefusalCode, RefusedError
from dure_protocols.frames import (
    CHUNK_BYTES,
    MAX_TTL_SECONDS,
    AnyArray,
    ArrayRef,
    Envelope,
    Place,
    little_endian,
    raw_bytes,
)
from dure_protocols.ledger import RecordKind
from dure_protocols.logs import about

logger = logging.getLogger(__name__)

KEPT_ANSWERS: Final = 2000
KEPT_SECONDS: Final = MAX_TTL_SECONDS  # after that nobody asks again
KEPT_DOWNLOADS: Final = 4  # beside those of the message at hand
KEPT_PART_SECONDS: Final = 24 * 3600.0  # a download that was cut and that nobody went on with
PRUNE_EVERY: Final = 100  # messages

_KIND_OF_BODY: Final[Mapping[int, RecordKind]] = {
    messages.Approval.kind: RecordKind.APPROVAL,
    messages.KeyAdvertisement.kind: RecordKind.KEYS,
    messages.KeyCiphertexts.kind: RecordKind.CIPHERTEXTS,
    messages.Established.kind: RecordKind.ESTABLISHED,
    messages.Join.kind: RecordKind.JOIN,
    messages.EscrowedJoin.kind: RecordKind.JOIN,
    messages.MaskedUpdate.kind: RecordKind.MASKED_UPDATE,
    messages.Vote.kind: RecordKind.VOTE,
    messages.Release.kind: RecordKind.RELEASE,
    messages.Finished.kind: RecordKind.FINISHED,
    messages.Refusal.kind: RecordKind.REFUSAL,
    messages.Absence.kind: RecordKind.REFUSAL,
}


@dataclass(frozen=True)
class Answer:
    """A body and arrays, or a code. digests: of arrays' raw bytes (SHA-256, hex), where they are known."""

    body: bytes = b""
    arrays: Mapping[str, AnyArray] = field(default_factory=dict)
    error_code: RefusalCode | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


App = Callable[[Envelope, Mapping[str, AnyArray]], Answer]
"""The firm's app, behind its adapter: a message and its arrays (mapped files, read-only) -> an answer."""


def ledger_kind(reply: Envelope) -> RecordKind:
    """What a reply is, if it may leave at all: an error carries a code that is known, and the rest `answer_kind` says.

    Raises MisuseError.
    """
    if reply.error_code is not None:
        if reply.error_code not in set(RefusalCode):
            raise MisuseError(f"{reply.error_code!r} is no code that may leave the firm")
        return RecordKind.REFUSAL
    return answer_kind(reply.body, {ref.name for ref in reply.arrays})


def answer_kind(body: bytes, arrays: AbstractSet[str]) -> RecordKind:
    """What an answer is, if it may leave at all (design, section 7). arrays: the names of those that travel with it.

    (1) The body is exactly one of the answers in `messages`. (2) Arrays travel with a masked update only, and there is
    one: the masked vector. Raises MisuseError, or MessageError for a body that is no message.
    """
    message = messages.decode(body)
    kind = _KIND_OF_BODY.get(message.kind)  # (1)
    if kind is None:
        raise MisuseError(f"{type(message).__name__} is no message that may leave the firm")
    allowed = {messages.ARRAY_MASKED} if kind is RecordKind.MASKED_UPDATE else set()
    if extra := arrays - allowed:  # (2)
        raise MisuseError(f"arrays {sorted(extra)} may not leave with {type(message).__name__}")
    return kind


class Agent:
    """Runs one firm's app over the link, until the link's client is closed."""

    def __init__(
        self,
        state: Path,
        node_id: int,
        link: LinkClient,
        app: App,
        *,
        kind_of: Callable[[Envelope], RecordKind] = ledger_kind,
        clock: Callable[[], float] | None = None,
        answered: Callable[[Envelope, Envelope], None] = lambda _, __: None,
        has_left: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`state` is the folder for answers and boxes, `node_id` this firm's number (`frames.node_id`).

        `kind_of` names a reply for the ledger and raises if it must not leave; `clock` is Unix time in seconds, and the
        server's as the link tells it unless another is given: whether a message still counts is for its sender to say.
        `answered` is told each message and its answer, once. `has_left`: whether the firm left a job, by its id; then
        nothing of the job is sent but refusals, whatever was answered before.
        """
        self._answered, self._has_left = answered, has_left
        self._node_id = node_id
        self._link = link
        self._app = app
        self._kind_of = kind_of
        self._clock = clock or link.clock.now
        self._answers, self._outbox, self._inbox = (state / name for name in ("answers", "outbox", "inbox"))
        for folder in (self._answers, self._outbox, self._inbox):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for torn in folder.glob("*.new"):  # left by a kill; one agent runs on a home
                torn.unlink()

    def run(self) -> None:
        """Answer messages for ever. Raises NotAdmittedError when the consortium shuts this firm out."""
        for number, message in enumerate(self._link.messages()):
            if number % PRUNE_EVERY == 0:
                self.prune()
            try:
                self.handle(message)
            except NotAdmittedError:
                raise
            except LinkRefusedError as error:
                logger.warning("the link does not want the answer to %r: %s", message, error)
            except LinkError as error:
                logger.warning("%r stays unanswered for now: %s", message, error)

    def handle(self, message: Envelope) -> None:
        """Answer one message: with the answer that is on disk, or a new one."""
        place = Place.of(message.group)
        # What comes before rounds has no attempt. Behind the phase stands what tells repeated requests apart.
        number, attempt = (place.round, place.attempt) if place.attempt else (None, None)
        with about(job=place.job, round=number, attempt=attempt, phase=place.phase.partition(".")[0]):
            self._handle(message)

    def _handle(self, message: Envelope) -> None:
        if message.reply_to or message.dst_node != self._node_id:
            logger.error("%r is not for this firm; dropped", message)
            return
        if message.expires_at <= self._clock():
            logger.warning("%r has expired; dropped", message)
            return
        file = self._answers / message.message_id
        reply = self._recall(file, message)
        if reply is None:
            reply = self._keep(file, self._answer(message))
            self._answered(message, reply)
        try:
            self._send(reply, message.expires_at)
        except _BlobLostError:
            logger.exception("the firm answers %r that it lost its state", message)
            lost = message.reply(error_code=RefusalCode.STATE_LOST, created_at=self._clock())
            self._send(self._keep(file, lost), message.expires_at)
        except _LeftError:
            left = message.reply(error_code=RefusalCode.LEFT, created_at=self._clock())
            self._send(self._keep(file, left), message.expires_at)

    def prune(self) -> None:
        """Delete what nobody will ask for again. Files' times are this machine's, so its clock counts here."""
        now = time.time()
        for number, file in enumerate(_newest_first(self._answers)):
            if number >= KEPT_ANSWERS or file.stat().st_mtime < now - KEPT_SECONDS:
                file.unlink()
        for file in _newest_first(self._outbox):
            if file.stat().st_mtime < now - KEPT_SECONDS:
                file.unlink()
        for file in self._inbox.glob("*.part"):
            if file.stat().st_mtime < now - KEPT_PART_SECONDS:
                file.unlink()

    def _keep(self, file: Path, reply: Envelope) -> Envelope:
        _write_durably(file, reply.encode())
        return reply

    def _recall(self, file: Path, message: Envelope) -> Envelope | None:
        try:
            reply = Envelope.decode(file.read_bytes())
            self._kind_of(reply)
            if not reply.answers(message):
                raise MessageError("it answers another message")
        except FileNotFoundError:
            return None
        except DureError:
            # Not made anew: the app must not answer one message twice in two ways.
            logger.exception("the stored answer to %r is damaged; the firm answers that it lost its state", message)
            reply = message.reply(error_code=RefusalCode.STATE_LOST, created_at=self._clock())
        return reply

    def _answer(self, message: Envelope) -> Envelope:
        try:
            answer = self._app(message, self._fetch(message))
            reply = message.reply(answer.body, self._spool(answer), answer.error_code, created_at=self._clock())
            self._kind_of(reply)
        except LinkError:  # not the app's doing; the message comes again
            raise
        except RefusedError as error:
            logger.warning("refused %r: %s: %s", message, error.code, error)
            code = error.code
        except Exception:
            logger.exception("the app failed on %r", message)
            code = RefusalCode.INTERNAL
        else:
            return reply
        return message.reply(error_code=code, created_at=self._clock())

    def _fetch(self, message: Envelope) -> dict[str, AnyArray]:
        arrays: dict[str, AnyArray] = {}
        for ref in message.arrays:
            if ref.inline is not None:
                arrays[ref.name] = ref.view(ref.inline)
                continue
            file = self._inbox / ref.sha256
            self._link.download(ref, file, self._seconds_left(message.expires_at))
            os.utime(file)
            arrays[ref.name] = np.memmap(file, dtype=little_endian(ref.dtype), mode="r", shape=ref.shape)
        whole = [file for file in _newest_first(self._inbox) if not file.suffix]
        for file in whole[len(message.blobs) + KEPT_DOWNLOADS :]:
            file.unlink()
        return arrays

    def _spool(self, answer: Answer) -> tuple[ArrayRef, ...]:
        """Describe the answer's arrays; those that become blobs are written to the outbox."""
        refs = []
        for name, array in answer.arrays.items():
            blob = spool(array, self._outbox, answer.digests.get(name, "")) if ArrayRef.needs_blob(array) else None
            refs.append(ArrayRef.of(name, array, blob))
        return tuple(refs)

    def _send(self, reply: Envelope, expires_at: float) -> None:
        kind = self._kind_of(reply)
        self._check_not_left(reply, kind)
        for ref in reply.blobs:
            file = self._outbox / ref.sha256
            if not file.exists():  # gone once the link has confirmed the reply
                continue
            if file.stat().st_size != ref.size_bytes:
                raise _BlobLostError(f"{file} was cut by a power failure")
            try:
                self._link.upload(file, ref, reply, self._seconds_left(expires_at))
            except LinkRefusedError as error:
                if error.status is grpc.StatusCode.DATA_LOSS:
                    raise _BlobLostError(f"{file} was damaged by a power failure") from error
                raise
        self._check_not_left(reply, kind)  # an upload takes a while, and counts for nothing without the reply
        self._link.reply(reply, kind, self._seconds_left(expires_at))
        for ref in reply.blobs:
            (self._outbox / ref.sha256).unlink(missing_ok=True)

    def _check_not_left(self, reply: Envelope, kind: RecordKind) -> None:
        if kind is not RecordKind.REFUSAL and self._has_left(Place.of(reply.group).job):
            raise _LeftError

    def _seconds_left(self, expires_at: float) -> float:
        return max(1.0, expires_at - self._clock())


class _LeftError(Exception):
    """The firm left the job that an answer is about."""


class _BlobLostError(Exception):
    """A blob of an answer is no longer what it was when the answer was made."""


def spool(array: AnyArray, folder: Path, sha256: str = "") -> str:
    """Write an array's raw bytes to `folder` under their SHA-256 (hex), computed on the way unless it is given.

    Returns the digest. Not flushed to disk: it survives a kill, and the link checks what a power cut made of it.
    """
    running, content = hashlib.sha256(), raw_bytes(array)
    aside = folder / f"{os.getpid()}.new"
    with aside.open("wb", buffering=0) as file:
        for start in range(0, len(content), CHUNK_BYTES):
            chunk = content[start : start + CHUNK_BYTES]
            if not sha256:
                running.update(chunk)
            write_all(file, chunk)
    digest = sha256 or running.hexdigest()
    aside.rename(folder / digest)
    return digest


def _write_durably(file: Path, content: bytes) -> None:
    aside = file.with_suffix(".new")
    with aside.open("wb", buffering=0) as opened:
        write_all(opened, content)
        os.fsync(opened.fileno())
    aside.rename(file)
    flush_folder(file.parent)


def _newest_first(folder: Path) -> list[Path]:
    """The folder's files by the time of their last change."""
    return sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
