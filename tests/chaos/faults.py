"""Faults as data: what goes wrong, with whom, at which point of a job.

A *point* is a place that a process of the consortium passes: (process, phase, round, moment). Processes are started
with hooks (`points`) that tell the harness when they get there and wait for its word, so a fault happens at its point
and nowhere else: no fault is triggered by time.
"""

import random
from dataclasses import dataclass, replace
from enum import StrEnum

FIRMS = ("firm-a", "firm-b", "firm-c", "firm-d")
EVERY_ROUND = ("join", "update", "vote", "release", "publish")
ONCE = ("proposal", "keys", "roster", "establish", "finish")
PHASES = ("proposal", "keys", "roster", "establish", *EVERY_ROUND, "finish")
PROCESSES = ("link", "coordinator", "agent:firm-b", "trainer:firm-b", "console", "server")

MOMENTS = {
    "coordinator": ("asking", "asked", "heard"),
    "agent": ("asked", "made", "kept", "sent"),
    "link": ("pushed", "storing", "stored", "answered"),
    "trainer": ("training",),
}
"""By kind of process, where in a phase it can be met.

coordinator  before its requests leave; once they are on the link's disk; when the first answer is here
agent        before it answers; when the answer is made; when it is on disk; when the link has confirmed it
link         requests recorded; a chunk of a vector came; the vector is whole; the answer is recorded, not acknowledged
"""


class Action(StrEnum):
    """What goes wrong."""

    KILL = "kill -9"
    CUT = "cut link"  # connections are closed, new ones refused
    STALL = "stall link"  # connections stay and carry nothing, as when a VPN loses its way
    SLOW = "slow link"  # 64 KiB a second
    FULL_DISK = "full disk"
    READ_ONLY = "read-only store"
    DUPLICATE = "duplicate"  # the messages of this phase come twice
    DELAY = "delay"
    REORDER = "reorder"
    SECOND_COORDINATOR = "second coordinator"
    RESTART_STORE = "restart postgresql"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    target: "link", "coordinator", "console", "server" (all of it), "agent:FIRM", "trainer:FIRM", and for link faults
    "link:FIRM" or "link" (everybody's). phase, round: of the point at which it happens; a phase that comes once has no
    round. at: "PROCESS MOMENT" of that point; empty: where the target's kind of process is met first.
    seconds: how long it lasts, or until an agent is started again.
    """

    target: str
    action: Action
    phase: str
    round: int = 1
    at: str = ""
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        """The kind of process that is hit."""
        return self.target.partition(":")[0]

    @property
    def firm(self) -> str:
        """The firm that is hit; empty for the server's side."""
        return self.target.partition(":")[2]

    @property
    def point(self) -> tuple[str, str]:
        """(process, moment) at which it happens."""
        if self.at:
            process, _, moment = self.at.rpartition(" ")
            return process, moment
        if self.phase == "publish":
            return "coordinator", "asking"
        if self.action is Action.KILL and self.kind == "agent":
            return self.target, "asked"
        if self.action in {Action.DUPLICATE, Action.DELAY, Action.REORDER}:
            return "link", "delivering"
        return "coordinator", "asked"

    def happens_at(self, process: str, phase: str, number: int, moment: str) -> bool:
        """Whether a process that is at this point meets this fault."""
        return (process, moment) == self.point and phase == self.phase and (phase in ONCE or number == self.round)

    def __str__(self) -> str:
        where = self.phase if self.phase in ONCE else f"{self.phase} of round {self.round}"
        lasting = f" for {self.seconds:g} s" if self.seconds else ""
        return f"{self.action} {self.target}{lasting} in {where}" + (f" ({self.at})" if self.at else "")


def kills_of(process: str, mode: str) -> list[Fault]:
    """One kill -9 of a process in every phase that a job of this mode has, a round apart."""
    phases = [phase for phase in PHASES if phase != "vote" or mode == "threshold"]
    faults = []
    number = 1
    for phase in phases:
        at = f"{process} training" if process.startswith("trainer") and phase == "update" else ""
        faults.append(Fault(process, Action.KILL, phase, number, at))
        number += phase in EVERY_ROUND
    return faults


def random_faults(seed: int, mode: str, rounds: int) -> list[Fault]:
    """One to four faults of a job with so many rounds; the same for the same seed."""
    chance = random.Random(seed)
    return [_random_fault(chance, mode, rounds) for _ in range(chance.choice((1, 2, 2, 3, 4)))]


def _random_fault(chance: random.Random, mode: str, rounds: int) -> Fault:
    phases = [phase for phase in PHASES if phase != "vote" or mode == "threshold"]
    phase, number = chance.choice(phases), chance.randint(1, rounds)
    firm = chance.choice(FIRMS)
    action = chance.choices(
        (Action.KILL, Action.CUT, Action.STALL, Action.DUPLICATE, Action.DELAY, Action.REORDER, Action.SLOW),
        weights=(10, 3, 1, 1, 1, 1, 1),
    )[0]
    fault = Fault("link", action, phase, number)
    match action:
        case Action.KILL:
            target = chance.choice(("link", "coordinator", "server", f"agent:{firm}", f"trainer:{firm}", "console"))
            return replace(fault, target=target, at=_random_point(chance, target, phase))
        case Action.CUT | Action.STALL | Action.SLOW:
            target = chance.choice(("link", f"link:{firm}"))
            seconds = chance.choice((0.3, 2.0)) if action is not Action.SLOW else 2.0
            return replace(fault, target=target, seconds=seconds, at=_random_point(chance, "link", phase))
    if phase == "publish":
        return replace(fault, phase="release", seconds=0.5)
    return replace(fault, seconds=0.5)


def _random_point(chance: random.Random, target: str, phase: str) -> str:
    kind, _, firm = target.partition(":")
    if phase == "publish":
        return f"coordinator {chance.choice(('asking', 'asked'))}"
    if kind not in {"link", "coordinator", "agent"}:
        kind = chance.choice(("link", "coordinator"))
    moments = [m for m in MOMENTS[kind] if m not in {"storing", "stored"} or phase == "update"]
    return f"{kind}:{firm} {chance.choice(moments)}" if kind == "agent" else f"{kind} {chance.choice(moments)}"
