"""Firms in the middle of a round, and what one that lies, or a server with its key, can sign for them."""

from dataclasses import replace

from dure_protocols.secagg.terms import join_parts
from tests.vectors.make_rounds import LATE, LATE_SEED, RETRY, RETRY_SEED, handshake
from tests.vectors.make_scene import FOUR, THREE, Scene


def three_firms():
    """What the others send is what they send in round 3 of the script of retry mode."""
    return Scene(THREE, ["keys", "three firms"], seed=RETRY_SEED, only=["firm-a"], bytes_of=["retry_round", RETRY])


def four_firms(*also, policy=None):
    """What the others send is what they send in round 1 of a script of threshold mode."""
    begun, of = ["keys", "four firms"], ["threshold_round", LATE]
    return Scene(FOUR, begun, policy, seed=LATE_SEED, only=["firm-a", *also], bytes_of=of)


def resigned(firms, firm, label, message, parts):
    """A message with a good signature of a firm that lies."""
    return replace(message, signature=firms.sign(firm, label, *parts))


def established(name):
    """The transcript in an Established of the handshake that a script begins with."""
    return handshake(name).reply(f"{name.names[0]} establishes").transcript


def rejoined(firms, join, **changes):
    """A join with other fields, signed by its firm."""
    changed = replace(join, **changes)
    return resigned(firms, join.firm, "dure join", changed, join_parts(established(firms), changed))
