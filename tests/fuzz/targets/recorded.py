"""Seeds from the test vectors: messages, snapshots of sessions, and sessions that wait for a message.

The vectors' randomness is fixed, so these bytes are the same in every run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from dure_protocols.identity import Identity
from dure_protocols.secagg.disclosure import Disclosures
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.terms import Terms
from tests.vectors import project_side
from tests.vectors.reader import files
from tests.vectors.reader.script import Stage

SCRIPTS = (
    ("keys", "three firms"),
    ("keys", "four firms"),
    ("retry_round", "a firm drops out, a fresh attempt without it"),
    ("threshold_round", "a firm drops out after it uploaded"),
    ("threshold_round", "a delivery that does not open is named in the receipt"),
)
LONGEST_SEED_BYTES = 6000


@dataclass(frozen=True)
class Situation:
    """A firm that waits for a message. state: its session's snapshot; released: its disclosures; step: what the firm
    knows beside the request, as the vectors give it."""

    firm: str
    identity: Identity
    terms: Terms
    state: bytes
    released: bytes
    request: bytes
    step: dict[str, Any]

    def session(self) -> FirmSession:
        """The firm as it waits. Its randomness is zeros."""
        released = Disclosures.from_bytes(self.released)
        made = FirmSession(self.firm, self.identity, self.terms, bytes, released)
        made.restore(self.state)
        return made


@dataclass(frozen=True)
class Recorded:
    """What the scripts said and left. states: snapshots of sessions, at every step and at the end."""

    messages: tuple[bytes, ...]
    situations: tuple[Situation, ...]
    states: tuple[bytes, ...]


@cache
def recorded() -> Recorded:
    """Every message of the scripts, and every firm before each request."""
    messages: dict[bytes, None] = {}
    states: dict[bytes, None] = {}
    situations: list[Situation] = []
    for name, title in SCRIPTS:
        inputs = files.case_of(name, title)["inputs"]
        stage = Stage(project_side, inputs)
        seeds = {firm: bytes.fromhex(seed) for firm, seed in _setup(inputs)["identity_seeds"].items()}
        for step in inputs["steps"]:
            waiting = stage.firms[step["firm"]]
            before = waiting.session.snapshot(), waiting.session._disclosures.to_bytes()
            stage.take(step)
            request = stage.known.get(f"{step['name']}: request")
            if request is not None:
                identity = Identity.from_seed(seeds[step["firm"]])
                terms = project_side.terms_of(stage.terms)
                situations.append(Situation(step["firm"], identity, terms, *before, request, step))
            states[waiting.session.snapshot()] = None
        messages |= dict.fromkeys(stage.known.values())
    states |= dict.fromkeys(situation.state for situation in situations)
    return Recorded(tuple(messages), tuple(situations), tuple(states))


def vector_messages() -> Iterator[bytes]:
    """Each kind of message once, from its fields; and bytes that are no message."""
    for case in files.load("messages")["cases"]:
        if case["operation"] == "message":
            yield bytes.fromhex(case["expected"]["bytes"])


def cases_of(name: str, operation: str) -> list[dict[str, Any]]:
    """The inputs of a file's cases of one operation."""
    return [case["inputs"] for case in files.load(name)["cases"] if case["operation"] == operation]


def _setup(inputs: dict[str, Any]) -> dict[str, Any]:
    while "begins_with" in inputs:
        inputs = files.case_of(*inputs["begins_with"])["inputs"]
    return inputs
