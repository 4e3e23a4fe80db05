"""Which versions of Dure understand each other on the link (docs/protocol.md, section 10; ADR 0012).

A *protocol* is a number for everything that passes on the link: frames, methods, messages. Every program speaks a range
of them. The link chooses the highest that both speak; where there is none, the agent is told which version to install.
"""

import re
from typing import Final, NamedTuple

MAX_PROTOCOL: Final = 65_535


class ProtocolRange(NamedTuple):
    """The protocols that a program speaks, both ends included."""

    lowest: int
    highest: int

    def __str__(self) -> str:
        if self.lowest == self.highest:
            return f"protocol {self.lowest}"
        return f"protocols {self.lowest} to {self.highest}"


FIRST: Final = ProtocolRange(1, 1)
"""What agents spoke before there was a choice: they name no range."""

HEADS_FROM: Final = 3
"""The first protocol in which agents deposit where their ledgers end (`dure_protocols.heads`)."""

SPOKEN: Final = ProtocolRange(1, 3)
"""What this version speaks. A minor version raises the highest by one at most, and the lowest never passes the highest
of the minor version before: neighbours understand each other."""


def chosen_protocol(one: ProtocolRange, other: ProtocolRange) -> int | None:
    """The highest protocol that both speak, or None."""
    highest = min(one.highest, other.highest)
    return highest if highest >= max(one.lowest, other.lowest) else None


def refusal_sentence(agent_version: str, agent: ProtocolRange, server_version: str, server: ProtocolRange) -> str:
    """What an agent without a common protocol is told, and the operator sees: in one sentence, what to install."""
    wanted = _minor(server_version)
    otherwise = ", or ask the operator to upgrade the server" if agent.lowest > server.highest else ""
    return (
        f"this agent (Dure {agent_version}) speaks {agent} and the server (Dure {server_version}) {server}: install "
        f"Dure {wanted} at the firm (`pip install 'dure[agent]=={wanted}.*'`) and start the agent again{otherwise}"
    )


def _minor(version: str) -> str:
    """The first two numbers of a version, "0.3" of "0.3.1"; the whole of one that has another form."""
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else version
