"""What a decoder did with one input, and whether it may."""

import logging
import re
import signal
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.fuzz.target import Target

PATIENCE_SECONDS = 10.0
"""Computing time after which an input counts as one that never ends."""

_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9a-f]{8,}|\d+|\\x..")


@dataclass(frozen=True)
class Outcome:
    """What one input came to.

    what: the type of the value or of the refusal; shape: the same and the refusal's words, without numbers and quotes.
    Inputs of equal shape went the same way, as far as one can see from outside. peak_bytes: what decoding took;
    failure: what must not be, or None.
    """

    what: str
    is_value: bool
    shape: str
    peak_bytes: int
    seconds: float
    failure: str | None = None


class EndlessError(Exception):
    """Decoding did not end."""


@contextmanager
def measuring() -> Iterator[None]:
    """What `judge` needs around it, in the main thread: memory is counted, and what never ends is ended.

    Counted is what Python's allocators hand out, numpy's arrays among it. Nothing is logged meanwhile.
    """
    was_on = tracemalloc.is_tracing()
    if not was_on:
        tracemalloc.start()
    handler = signal.signal(signal.SIGPROF, _end)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        signal.signal(signal.SIGPROF, handler)
        if not was_on:
            tracemalloc.stop()


def _end(_signal: int, _frame: object) -> None:
    raise EndlessError(f"not decoded after {PATIENCE_SECONDS:.0f} s of computing")


def judge(target: Target, data: bytes) -> Outcome:
    """Decode, measure, and compare with what the target may do.

    (1) No exception but its refusals. (2) At the peak no more memory than its limit; measured twice before it counts as
    a failure, because a first time fills caches. (3) A value fulfils the target's check. (4) Where a value has one
    encoding, it is written as the very bytes that it was read from.
    """
    outcome, value = _decoded(target, data)
    limit = target.limit_bytes(data)
    if outcome.failure is None and outcome.peak_bytes > limit:  # (2)
        del value
        outcome, value = _decoded(target, data)
    if outcome.failure is None and outcome.peak_bytes > limit:
        told = f"allocation of {outcome.peak_bytes} bytes for an input of {len(data)}; the limit is {limit}"
        return replace(outcome, failure=told, shape="allocation")
    if outcome.failure is None and outcome.is_value:
        return _about_value(target, data, value, outcome)
    return outcome


def _decoded(target: Target, data: bytes) -> tuple[Outcome, object]:
    value, is_value, failure = None, False, None
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_PROF, PATIENCE_SECONDS)  # pytest-timeout has the other timer
    try:
        value = target.decode(data)
    except target.refusals as refusal:
        what = type(refusal).__name__
        shape = f"{what}: {_VARYING.sub('#', str(refusal))[:120]}"
    except KeyboardInterrupt:
        raise
    except EndlessError as error:
        what = shape = type(error).__name__
        failure = f"{what} {_where(error)}: {error}"
    except BaseException as error:  # a Rust panic is no Exception  # noqa: BLE001
        what = type(error).__name__
        shape = f"{what} {_where(error)}"
        failure = f"{shape}: {str(error)[:300]}"  # (1)
    else:
        is_value, what = True, type(value).__name__
        shape = what
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
    seconds = time.perf_counter() - started
    peak = max(0, tracemalloc.get_traced_memory()[1] - before)
    return Outcome(what, is_value, shape, peak, seconds, failure), value


def _about_value(target: Target, data: bytes, value: object, outcome: Outcome) -> Outcome:
    try:
        target.check(value)  # (3)
        again = None if target.encode is None else target.encode(value)
    except Exception as error:  # noqa: BLE001  # whatever it is, it must not be
        shape = f"then {type(error).__name__} {_where(error)}"
        return replace(outcome, failure=f"{shape}: {str(error)[:300]}", shape=shape)
    if again is None or again == data:  # (4)
        return outcome
    told = f"not canonical: it is written as {again.hex()[:400]}"
    return replace(outcome, failure=told, shape="not canonical")


def _where(error: BaseException) -> str:
    """The last line of Dure's own on the way to where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/dure_" in frame.filename or "/fuzz/targets" in frame.filename] or frames
    return f"({ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno})" if ours else "(?)"


def smallest(target: Target, data: bytes, shape: str, tries: int = 300) -> bytes:
    """A shorter input that fails in the same way: regions are left out as long as it does."""
    width = len(data) // 2
    while width and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            shorter, tries = data[:at] + data[at + width :], tries - 1
            if judge(target, shorter).shape == shape:
                data = shorter
            else:
                at += width
        width //= 2
    return data
