"""Targets of signed statements outside of jobs: vouches, statements of leaving and their receipts, also as files."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from dure_client.home import AgentHome, write_file
from dure_client.leaving import LeavingError, erase_job, leave_file, receipt_file, stored_leave, stored_receipt
from dure_client.policy import PolicyError
from dure_client.vouches import read_vouch
from dure_protocols.certificates import Authority
from dure_protocols.errors import DureError, IdentityError, MessageError
from dure_protocols.frames import Envelope
from dure_protocols.identity import Identity
from dure_protocols.leaving import EVERY_JOB, Leave, LeaveReceipt, Part
from dure_protocols.messages import encode
from dure_protocols.vouching import Vouch
from dure_server.link.membership import StoreMembership
from dure_server.store import Store
from tests.fuzz.target import Target
from tests.fuzz.targets.keys import ROOT_KEY
from tests.fuzz.targets.scratch import scratch
from tests.protocols.test_messages import SAMPLES

KIM, LEE = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
VOUCH = Vouch.make("valley", "lee", LEE.fingerprint, "kim", KIM)
ABOUT_JOB = Leave.make("valley", "kim", "job-1", b"\x0a" * 32, 1_800_000_000, KIM)
ABOUT_ALL = Leave.make("valley", "kim", "", EVERY_JOB, 1_800_000_000, KIM)
REFUSED = (MessageError, IdentityError)


def statement_targets() -> Iterator[Target]:
    """One for each decoder."""
    root = Authority.create("valley", datetime(2026, 1, 1, tzinfo=UTC), key=ROOT_KEY, serial=7)
    parts = (Part("job-1", b"\x0a" * 32, ((0, 2), (5, 5))),)
    receipts = [LeaveReceipt.make(ABOUT_JOB, 1, parts, root), LeaveReceipt.make(ABOUT_ALL, 2, (), root)]
    leaves = [ABOUT_JOB.encode(), ABOUT_ALL.encode()]
    told = [receipt.encode() for receipt in receipts]
    yield Target("leave/statement", Leave.decode, (MessageError,), leaves, 32, Leave.encode)
    yield Target("leave/receipt", LeaveReceipt.decode, (MessageError,), told, 48, LeaveReceipt.encode)
    yield Target("vouch/text", _vouch, REFUSED, [VOUCH.to_text().encode()], 16, check=Vouch.check)
    yield from _file_targets(root, told)
    yield Target("leave/served", _served(root), (*REFUSED, DureError), leaves, 64, base_bytes=1 << 20)


def _vouch(data: bytes) -> Vouch:
    return Vouch.from_text(data.decode(errors="replace"))


def _file_targets(root: Authority, receipts: list[bytes]) -> Iterator[Target]:
    home = AgentHome(scratch("leaver"))
    home.create()
    write_file(home.root_file, root.certificate_pem)
    home.job_folder("job-1").mkdir()
    file = leave_file(home, "job-1")

    def statement(data: bytes) -> Leave:
        file.write_bytes(data)
        return stored_leave(home, "job-1")

    def receipt(data: bytes) -> LeaveReceipt | None:
        file.write_bytes(ABOUT_JOB.encode())
        receipt_file(home, "job-1").write_bytes(data)
        return stored_receipt(home, "job-1")

    def vouch(data: bytes) -> Vouch:
        path = Path(home.path) / "a.vouch"
        path.write_bytes(data)
        return read_vouch(path)

    def answers(data: bytes) -> None:
        folder = home.state / "answers"
        folder.mkdir(exist_ok=True)
        (folder / "answer").write_bytes(data)
        erase_job(home, "job-1")

    yield Target("leave/statement-file", statement, (LeavingError,), [ABOUT_JOB.encode()], 32)
    yield Target("leave/receipt-file", receipt, (LeavingError,), receipts[:1], 64)
    yield Target("vouch/file", vouch, (PolicyError,), [VOUCH.to_text().encode()], 16)
    asked = Envelope.request(1, 2, "job-1/1/1/join", "query.dure", encode(SAMPLES[0]), (), 0.0, 60.0)
    yield Target("leave/answers", answers, (), [asked.reply(encode(SAMPLES[0]), created_at=0.0).encode()], 32)


def _served(root: Authority) -> "Serving":
    return Serving(root)


class Serving:
    """The server's side: whatever comes from a firm is receipted or refused."""

    def __init__(self, root: Authority) -> None:
        store = Store.create(f"sqlite:///{scratch('leaves') / 'store.sqlite'}")
        with store.transaction() as at:
            at.consortium.create("valley", root.fingerprint)
            at.firms.invite("kim")
            at.firms.join("kim", KIM.public_bytes, "test")
            at.firms.approve("kim")
        self._membership = StoreMembership(store, root)

    def __call__(self, data: bytes) -> LeaveReceipt:
        return LeaveReceipt.decode(self._membership.leave("kim", data))
