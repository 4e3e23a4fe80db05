"""Asking several firms the same thing and waiting for them, with patience that ends and a sentence that says why.

The one place that turns answers into messages: what is malformed, refused or failed comes out as a `Refusal` of that
firm, so that the rounds see every firm either answer or refuse.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import DureError, MessageError, RefusalCode
from dure_protocols.frames import Place
from dure_protocols.messages import Refusal, Reply, Request, decode, encode
from dure_server.coordinator.firms import Answer, Ask, Firms
from dure_server.coordinator.record import JobRecord, Situation
from dure_server.coordinator.sentences import told_awaited

LOOK_UP_SECONDS = 0.5  # how often a wait looks whether the job was stopped and who is still connected
ABSENCE_SECONDS = 5.0  # how long a firm may be disconnected before others go on without it


class JobStoppedError(DureError):
    """The operator paused or stopped the job: not a failure, the coordinator just ends. is_for_good: stopped."""

    def __init__(self, job: str, *, is_for_good: bool) -> None:
        super().__init__(f"job {job} was {'stopped' if is_for_good else 'paused'} by the operator")
        self.is_for_good = is_for_good


class JobFailedError(DureError):
    """The job cannot go on. The text is what the operator reads as its reason."""


@dataclass(frozen=True)
class Heard:
    """One firm's answer. arrays and digests lie beside the message; see `firms.Answer`."""

    firm: str
    message: Reply
    arrays: Mapping[str, NDArray[np.generic]]
    digests: Mapping[str, bytes]
    size_bytes: int


class Conversation:
    """Requests to firms by name, over `Firms`, which knows nodes. Keeps the ids of what was asked for `forget`."""

    def __init__(self, job: str, firms: Firms, record: JobRecord, clock: Callable[[], float] = time.monotonic) -> None:
        self._job, self._firms, self._record, self._clock = job, firms, record, clock
        self._asked: list[str] = []
        self._kept: list[str] = []
        self.aside = ""
        """What is shown behind each sentence: who sits out of this attempt, and why."""
        self.bytes_down = 0
        """Bytes of requests since somebody set it to zero; arrays not counted."""

    def connected(self) -> set[str]:
        """Names of the firms that are connected now."""
        return self._firms.connected()

    def ask(
        self,
        requests: Mapping[str, Request],
        situation: Situation,
        *,
        key: str = "",
        arrays: Mapping[str, Mapping[str, bytes]] | None = None,
        patience_seconds: float | None = None,
        keep: bool = False,
    ) -> Iterator[Heard]:
        """Ask each firm its request and yield the answers as they come.

        situation: what the console shows meanwhile; its phase and round place the messages, `key` tells apart requests
        of one phase. arrays: for each firm, array name to the digest of a shared vector. Ends when all have answered;
        with `patience_seconds`, also when that is over, or when the missing have been disconnected for a while.
        keep: `forget` spares it, so that a coordinator started again finds the answers.
        Raises JobStoppedError when the operator stops the job.
        """
        ids = self._push(requests, situation, key, arrays or {})
        (self._kept if keep else self._asked).extend(ids)
        missing = dict(ids)
        self._show(situation, missing.values())  # before the clock runs: it may write down what the last phase was
        started = absent_since = last_look = self._clock()
        while missing:
            for answer in self._firms.receive(list(missing), LOOK_UP_SECONDS):
                firm = missing.pop(answer.ask_id)
                yield _heard(firm, answer)
                if self._clock() - last_look > LOOK_UP_SECONDS:
                    break
            last_look = now = self._clock()
            self._check_halt()
            has_waited = now - started > LOOK_UP_SECONDS
            for firm in self._record.left() & set(missing.values()) if has_waited else ():  # nobody answers for it
                missing = {ask_id: name for ask_id, name in missing.items() if name != firm}
                yield Heard(firm, Refusal(firm, RefusalCode.LEFT), {}, {}, 0)
            if missing:
                connected = self._show(situation, missing.values())
                absent_since = now if connected & set(missing.values()) else absent_since
            waited, absent = now - started, now - absent_since
            if patience_seconds is not None and (waited > patience_seconds or absent > ABSENCE_SECONDS):
                return

    def forget(self) -> None:
        """Drop everything asked since the last call, with the answers and their arrays."""
        asked, self._asked = self._asked, []
        self._firms.forget(asked)

    def forget_all(self) -> None:
        """Drop what was asked with `keep`, too: the job is over for everybody."""
        kept, self._kept = self._kept, []
        self._firms.forget(kept)
        self.forget()

    def pause(self, situation: Situation, seconds: float = LOOK_UP_SECONDS) -> None:
        """Wait a moment for something outside, saying why; no longer once a firm has come. Raises JobStoppedError."""
        self._record.show(situation)
        until, there = self._clock() + seconds, self.connected()
        while True:
            self._check_halt()
            left = until - self._clock()
            if left <= 0 or self.connected() - there:
                return
            time.sleep(min(left, LOOK_UP_SECONDS))

    def _check_halt(self) -> None:
        if not self._record.should_run():
            raise JobStoppedError(self._job, is_for_good=self._record.is_over())

    def _push(
        self,
        requests: Mapping[str, Request],
        situation: Situation,
        key: str,
        arrays: Mapping[str, Mapping[str, bytes]],
    ) -> dict[str, str]:
        place = Place(self._job, situation.round or 0, situation.attempt or 0, f"{situation.phase}{key}")
        asks = []
        for firm, message in requests.items():
            node = self._firms.node_of(firm)
            if node is None:
                raise JobFailedError(f"{firm} has never connected; approve the firm and start its agent first")
            asks.append(Ask(node, place, encode(message), arrays.get(firm, {})))
        self.bytes_down += sum(len(ask.body) for ask in asks)
        return dict(zip(self._firms.push(asks), requests, strict=True))

    def _show(self, situation: Situation, missing: Iterable[str]) -> set[str]:
        """Show who is awaited. Returns who is connected."""
        names, connected = tuple(sorted(missing)), self.connected()
        sentence = situation.sentence
        if names:
            sentence += f": waiting for {told_awaited(names, connected)}"
        if self.aside:
            sentence += f"; {self.aside}"
        self._record.show(replace(situation, sentence=sentence, waiting_for=names))
        return connected


def _heard(firm: str, answer: Answer) -> Heard:
    size = len(answer.body) + sum(array.nbytes for array in answer.arrays.values())
    return Heard(firm, _message(firm, answer), answer.arrays, answer.digests, size)


def _message(firm: str, answer: Answer) -> Reply:
    if answer.error is not None:
        return Refusal(firm, RefusalCode.INTERNAL)
    try:
        message = decode(answer.body)
    except MessageError:
        return Refusal(firm, RefusalCode.MALFORMED)
    if not isinstance(message, Reply) or getattr(message, "firm", firm) != firm:
        return Refusal(firm, RefusalCode.MALFORMED)
    return message
