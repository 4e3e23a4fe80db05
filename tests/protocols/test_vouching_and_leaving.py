"""Signed statements outside of jobs: a firm vouches for another's key, a firm leaves, the consortium receipts it."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dure_protocols.certificates import Authority, new_tls_key
from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.identity import Identity
from dure_protocols.leaving import EVERY_JOB, Leave, LeaveReceipt, Part, runs_of, told_runs
from dure_protocols.vouching import Vouch, vouchers

KIM, LEE, PARK, CHOI = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3, 4))
PINS = {"lee": LEE.fingerprint, "park": PARK.fingerprint}
VOUCH = Vouch.make("valley", "choi", CHOI.fingerprint, "lee", LEE)
OTHER = Vouch.make("valley", "choi", CHOI.fingerprint, "park", PARK)


def test_a_vouch_is_the_same_after_its_file() -> None:
    assert Vouch.from_text(VOUCH.to_text()) == VOUCH


def test_each_pinned_firm_that_vouches_counts_once() -> None:
    found = vouchers([VOUCH, VOUCH, OTHER], "valley", "choi", CHOI.public_bytes, PINS)
    assert found == {"lee", "park"}


@pytest.mark.parametrize(
    "vouch",
    [
        pytest.param(replace(VOUCH, consortium="hill"), id="of another consortium"),
        pytest.param(replace(VOUCH, firm="kim"), id="for another firm"),
        pytest.param(replace(VOUCH, fingerprint=KIM.public_bytes), id="for another key"),
        pytest.param(replace(VOUCH, signature=bytes(64)), id="not signed"),
        pytest.param(replace(VOUCH, voucher="park"), id="in another firm's name"),
        pytest.param(replace(OTHER, voucher_key=LEE.public_bytes, voucher="lee"), id="signed by another than it says"),
        pytest.param(Vouch.make("valley", "choi", CHOI.fingerprint, "kim", KIM), id="of a firm that is not pinned"),
        pytest.param(Vouch.make("valley", "choi", CHOI.fingerprint, "lee", KIM), id="with a key that is not the pin"),
        pytest.param(Vouch.make("valley", "choi", CHOI.fingerprint, "choi", CHOI), id="of the firm for itself"),
    ],
)
def test_a_vouch_does_not_count(vouch: Vouch) -> None:
    pins = PINS | {"choi": CHOI.fingerprint} if vouch.voucher == "choi" else PINS
    assert vouchers([vouch], "valley", "choi", CHOI.public_bytes, pins) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(VOUCH.to_text()[:-20], id="cut"),
        pytest.param(VOUCH.to_text().replace("vouch-1 01", "vouch-1 02"), id="of another format"),
        pytest.param(VOUCH.to_text().replace("vouch-1 ", "vouch-1 zz"), id="not hexadecimal"),
        pytest.param(VOUCH.to_text().strip() + "00", id="too long"),
        pytest.param(replace(VOUCH, signature=bytes(64)).to_text(), id="not signed"),
        pytest.param(replace(VOUCH, firm="../x").to_text(), id="for no firm's name"),
    ],
)
def test_a_text_that_is_no_vouch_is_refused(text: str) -> None:
    with pytest.raises((MessageError, IdentityError)):
        Vouch.from_text(text)


AUTHORITY = Authority.create("valley", datetime(2026, 1, 1, tzinfo=UTC), key=new_tls_key(), serial=7)
ROOT = AUTHORITY.certificate_pem
STATEMENT = Leave.make("valley", "kim", "job-1", b"\x0a" * 32, 1_800_000_000, KIM)
FAREWELL = Leave.make("valley", "kim", "", EVERY_JOB, 1_800_000_000, KIM)
PARTS = (Part("job-1", b"\x0a" * 32, runs_of((0, 1, 2, 5))),)
RECEIPT = LeaveReceipt.make(STATEMENT, 1_800_000_009, PARTS, AUTHORITY)


@pytest.mark.parametrize("leave", [STATEMENT, FAREWELL])
def test_a_statement_and_its_receipt_are_the_same_after_their_bytes_and_hold(leave: Leave) -> None:
    assert Leave.decode(leave.encode()) == leave
    leave.check(KIM.public_bytes)
    receipt = LeaveReceipt.make(leave, 1_800_000_009, PARTS, AUTHORITY)
    assert LeaveReceipt.decode(receipt.encode()) == receipt
    receipt.check(leave, ROOT)


@pytest.mark.parametrize(
    "changes",
    [{"firm": "lee"}, {"job": "job-2"}, {"job_digest": bytes(31) + b"\x01"}, {"at": 1}, {"consortium": "hill"}],
)
def test_a_changed_statement_is_not_the_firms(changes: dict[str, object]) -> None:
    with pytest.raises(IdentityError):
        replace(STATEMENT, **changes).check(KIM.public_bytes)


@pytest.mark.parametrize(
    ("receipt", "root"),
    [
        pytest.param(replace(RECEIPT, parts=()), ROOT, id="sums left out"),
        pytest.param(replace(RECEIPT, at=1), ROOT, id="another time"),
        pytest.param(replace(RECEIPT, leave=FAREWELL), ROOT, id="for another statement"),
        pytest.param(
            RECEIPT,
            Authority.create("valley", datetime(2026, 1, 1, tzinfo=UTC), key=new_tls_key(), serial=7).certificate_pem,
            id="of another consortium of this name",
        ),
    ],
)
def test_a_changed_receipt_is_not_the_consortiums(receipt: LeaveReceipt, root: bytes) -> None:
    with pytest.raises(IdentityError):
        receipt.check(STATEMENT, root)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        STATEMENT.encode()[:-1],
        STATEMENT.encode() + b"\0",
        b"\x02" + STATEMENT.encode()[1:],
        replace(STATEMENT, job="").encode(),
        replace(FAREWELL, job="job-1").encode(),
    ],
)
def test_bytes_that_are_no_statement_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        Leave.decode(data)


@pytest.mark.parametrize("rounds", [((3, 2),), ((1, 2), (3, 4)), ((5, 6), (1, 2))])
def test_a_receipt_whose_rounds_are_no_runs_in_order_is_refused(rounds: tuple[tuple[int, int], ...]) -> None:
    part = Part("job-1", b"\x0a" * 32, rounds)
    with pytest.raises(MessageError, match="runs"):
        LeaveReceipt.decode(replace(RECEIPT, parts=(part,)).encode())


def test_rounds_are_told_as_runs() -> None:
    assert runs_of((7, 1, 2, 3, 2)) == ((1, 3), (7, 7))
    assert told_runs(runs_of((7, 1, 2, 3))) == "1 to 3, 7"
    assert told_runs(()) == "none"
    assert PARTS[0].num_sums == 4
