"""The invitation's text: what survives the mail, and what says that it did not."""

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_protocols.invitation import Invitation, InvitationError, read_invitation, secret_hash, server_of

FIELDS: dict[str, Any] = {
    "invitation_id": "0123456789abcdef" * 2,
    "consortium": "경남 Millers",
    "firm": "firm-a",
    "enrolment_url": "https://dure.example.org:7444",
    "root_fingerprint": "ab" * 32,
    "expires_at": datetime(2026, 3, 8, 9, 30, tzinfo=UTC),
    "secret": bytes(range(32)),
}
INVITATION = Invitation(**FIELDS)
TEXT = INVITATION.to_text()
TOKEN = TEXT.splitlines()[1]


def test_the_text_is_a_line_for_people_and_one_token() -> None:
    first, token = TEXT.splitlines()
    assert first == (
        "Dure invitation for firm-a to the consortium 경남 Millers, valid until 2026-03-08 09:30 UTC. "
        "It works once; keep it secret."
    )
    assert token.startswith("dure1_")
    assert token.endswith(".")
    fields = (
        bytes.fromhex("0123456789abcdef" * 2)
        + b"\x00\x00\x00\x0e" + "경남 Millers".encode()
        + b"\x00\x00\x00\x06" + b"firm-a"
        + b"\x00\x00\x00\x1d" + b"https://dure.example.org:7444"
        + b"\xab" * 32
        + b"\x00\x00\x00\x00\x69\xad\x41\x98"
        + bytes(range(32))
    )  # fmt: skip
    checksum = hashlib.sha256(b"dure1" + fields).digest()[:8]
    assert base64.urlsafe_b64decode(token[6:-1] + "==") == fields + checksum


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TOKEN,
        f"Dear Ms Kim,\n\n{TEXT}\nRegards. Park",
        f"> {TEXT.replace(TOKEN, TOKEN[:70])}\n{TOKEN[70:140]}\r\n  {TOKEN[140:]}",
    ],
    ids=["as written", "token alone", "in a letter", "wrapped by a mail program"],
)
def test_what_was_written_is_read(text: str) -> None:
    assert read_invitation(text) == INVITATION


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no invitation"),
        ("Dure invitation for firm-a", "holds no invitation"),
        (TEXT + TEXT, "holds 2 invitations"),
        (TOKEN[:-1], "cut short"),
        (TOKEN[:100], "cut short"),
        (TOKEN[:100] + ".", "altered"),
        ("dure1_.", "altered"),
        (TOKEN.replace("ASNFZ", "ASNFY"), "altered"),
        ("x" * 10_000, "characters"),
    ],
)
def test_a_damaged_text_says_how(text: str, says: str) -> None:
    with pytest.raises(InvitationError, match=says) as caught:
        read_invitation(text)
    assert "ASNF" not in str(caught.value)


@given(place=st.integers(6, len(TOKEN) - 2), letter=st.sampled_from("ABCXYZabcxyz0189-_"))
def test_any_one_changed_letter_shows(place: int, letter: str) -> None:
    changed = TOKEN[:place] + letter + TOKEN[place + 1 :]
    if _content(changed) == _content(TOKEN):  # the same letter, or one that differs in padding bits only
        assert read_invitation(changed) == INVITATION
        return
    with pytest.raises(InvitationError, match="altered"):
        read_invitation(changed)


def _content(token: str) -> bytes:
    return base64.urlsafe_b64decode(token[6:-1] + "==")


def test_neither_repr_nor_str_shows_the_secret() -> None:
    for text in (repr(INVITATION), str(INVITATION), f"{INVITATION}"):
        assert "firm-a" in text
        assert "secret" not in text
        assert "\\x01" not in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("invitation_id", "xyz"),
        ("consortium", ""),
        ("consortium", "a\x1b[2Jb"),
        ("consortium", "a" * 65),
        ("firm", "Firm A"),
        ("enrolment_url", "http://dure.example.org:7444"),
        ("enrolment_url", "https://dure.example.org"),
        ("enrolment_url", "https://dure.example.org:7444/path"),
        ("enrolment_url", "https://user:password@dure.example.org:7444"),
        ("enrolment_url", "https://dure.example.org:99999"),
        ("root_fingerprint", "AB" * 32),
        ("expires_at", datetime(2026, 3, 8)),
        ("secret", b"short"),
    ],
)
def test_an_impossible_invitation_cannot_be_built(field: str, value: object) -> None:
    with pytest.raises(Exception, match=r"malformed|zone|firm's name"):
        Invitation(**{**FIELDS, field: value})


@pytest.mark.parametrize(
    ("url", "place"), [("https://a.example:1", ("a.example", 1)), ("https://[2001:db8::1]:443", ("2001:db8::1", 443))]
)
def test_the_server_is_read_from_the_url(url: str, place: tuple[str, int]) -> None:
    assert server_of(url) == place


def test_the_stored_hash_is_bound_to_the_invitation() -> None:
    one, other = secret_hash("00" * 16, b"s" * 32), secret_hash("01" * 16, b"s" * 32)
    assert one != other
    assert len(one) == 32
