"""What an opened escrow tells, and what it does not."""

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dure_protocols.secagg.keystream import derive
from dure_protocols.secagg.terms import numbers
from tests.protocols.secagg.parties import Parties


def test_an_opened_escrow_opens_no_share_of_the_self_seed():
    """Else a server that only says that a firm dropped out would get both of its secrets, and its vector.

    Everything derived from an opened attempt key in the ways of the protocol is tried on the boxes.
    """
    parties = Parties("abcde", threshold=4).establish()
    joins = {join.firm: join for join in parties.join()}
    sessions = parties.sessions
    victim = joins["e"]
    keys = {peer: sessions["e"]._attempt_keys()[peer] for peer in "abcd"}
    for part in victim.escrow.shares:
        key = keys[part.receiver]
        tries = [
            key,
            derive(key, "dure share box", b"e"),
            derive(key, "dure share box", numbers(1), b"e"),
            derive(key, "dure attempt", numbers(1)),
        ]
        for attempt in tries:
            with pytest.raises(InvalidTag):
                AESGCM(attempt).decrypt(bytes(12), part.box, None)
        right = derive(dict(sessions["e"]._state.roots)[part.receiver], "dure share box", numbers(1), b"e")
        assert len(AESGCM(right).decrypt(bytes(12), part.box, None)) == 66
