"""Which versions understand each other, and what those that do not are told."""

import pytest

from dure_protocols.versions import FIRST, SPOKEN, ProtocolRange, chosen_protocol, refusal_sentence


@pytest.mark.parametrize(
    ("agent", "server", "chosen"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 1), (1, 2), 1),
        ((1, 2), (1, 2), 2),
        ((1, 3), (2, 4), 3),
        ((2, 4), (1, 3), 3),
        ((1, 1), (2, 3), None),
        ((4, 5), (2, 3), None),
    ],
)
def test_the_highest_protocol_that_both_speak_is_chosen(
    agent: tuple[int, int], server: tuple[int, int], chosen: int | None
) -> None:
    assert chosen_protocol(ProtocolRange(*agent), ProtocolRange(*server)) == chosen


def test_this_version_understands_agents_that_know_no_choice() -> None:
    assert chosen_protocol(FIRST, SPOKEN) == 1


def test_an_older_agent_is_told_to_install_the_servers_minor_version() -> None:
    sentence = refusal_sentence("0.1.0", FIRST, "0.3.2", ProtocolRange(2, 3))
    assert "(Dure 0.1.0) speaks protocol 1 and the server (Dure 0.3.2) protocols 2 to 3" in sentence
    assert "install Dure 0.3 at the firm (`pip install 'dure[agent]==0.3.*'`)" in sentence
    assert "upgrade the server" not in sentence
    assert "\n" not in sentence


def test_a_newer_agent_is_told_that_the_server_may_be_upgraded_instead() -> None:
    sentence = refusal_sentence("0.9.0", ProtocolRange(7, 8), "0.3.2", ProtocolRange(2, 3))
    assert "install Dure 0.3" in sentence
    assert sentence.endswith("or ask the operator to upgrade the server")
