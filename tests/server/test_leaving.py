"""The server is told that a firm leaves: it checks, records, receipts, and shuts it out where it leaves everything."""

from datetime import timedelta

import pytest

from dure_protocols.certificates import Authority, new_tls_key, read_certificate, signing_request
from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.leaving import EVERY_JOB, Leave, LeaveReceipt
from dure_server.console.views import job_view
from dure_server.link.membership import StoreMembership
from dure_server.store import FirmStatus, Store
from tests.server.conftest import Clock
from tests.server.samples import FIRMS, identity, job_file

JOB = job_file("job-1")


class Site:
    """A store with two approved firms, their certificates, and a job with two published sums."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.authority = Authority.create("Millers", clock.now, key=new_tls_key(), serial=7)
        self.membership = StoreMembership(store, self.authority)
        self.certificates = {}
        with store.transaction() as at:
            for number, firm in enumerate(FIRMS):
                at.firms.invite(firm)
                at.firms.join(firm, identity(firm).public_bytes, "test")
                at.firms.approve(firm)
                csr = signing_request(new_tls_key())
                pem = self.authority.issue_client(firm, csr, clock.now + timedelta(seconds=1), serial=100 + number)
                self.certificates[firm] = at.certificates.add(read_certificate(pem), pem).fingerprint
            at.jobs.propose(JOB)
            for number, members in ((0, FIRMS), (1, ("firm-b",)), (2, FIRMS)):
                at.rounds.begin("job-1", number, 1, members, 1)
                at.rounds.finish(
                    "job-1", number, 1, count=1, metrics={}, model_digest="aa" * 32, sum_digest="bb" * 32,
                    seconds={}, bytes_up=0, bytes_down=0,
                )  # fmt: skip

    def leave(self, statement: Leave) -> LeaveReceipt:
        receipt = LeaveReceipt.decode(self.membership.leave("firm-a", statement.encode()))
        receipt.check(statement, self.authority.certificate_pem)
        return receipt


@pytest.fixture
def site(store: Store, clock: Clock) -> Site:
    return Site(store, clock)


def statement(
    job: str = "job-1", *, at: int = 5, firm: str = "firm-a", digest: bytes | None = None, **of: str
) -> Leave:
    about = (JOB.digest() if job else EVERY_JOB) if digest is None else digest
    return Leave.make(of.get("consortium", "Millers"), firm, job, about, at, identity(of.get("signer", firm)))


def test_a_receipt_says_which_published_sums_hold_the_firm_and_the_same_is_answered_again(site: Site) -> None:
    told = site.leave(statement())
    assert [(part.job, part.rounds) for part in told.parts] == [("job-1", ((0, 0), (2, 2)))]
    again = LeaveReceipt.decode(site.membership.leave("firm-a", statement().encode()))
    assert again == told
    with site.store.reading() as at:
        assert at.departures.from_job("job-1", pins()) == {"firm-a"}
        assert [event.action for event in at.audit.all()].count("firm.leave") == 1
        assert {seat.firm: seat.standing for seat in job_view(at, "job-1").seats} == {
            "firm-a": "left",
            "firm-b": "idle",
        }
    site.membership.admit("firm-a", site.certificates["firm-a"])  # it is still in the consortium


def pins() -> dict[str, str]:
    return {firm: identity(firm).fingerprint for firm in FIRMS}


def test_who_leaves_the_consortium_is_out_at_once_and_may_only_ask_for_its_receipt(site: Site) -> None:
    told = site.leave(statement(""))
    certificate = site.certificates["firm-a"]
    with pytest.raises(IdentityError):
        site.membership.admit("firm-a", certificate)
    assert ("firm-a", certificate) not in site.membership.admitted()
    site.membership.admit_leaver("firm-a", certificate)
    assert LeaveReceipt.decode(site.membership.leave("firm-a", statement("").encode())) == told
    with site.store.reading() as at:
        assert at.firms.get("firm-a").status is FirmStatus.LEFT
        assert at.departures.from_job("job-1", pins()) == {"firm-a"}
    site.membership.admit("firm-b", site.certificates["firm-b"])


@pytest.mark.parametrize("revoked", ["firm-a", "firm-b"])
def test_the_way_for_leavers_is_open_to_nobody_else(site: Site, revoked: str) -> None:
    with site.store.transaction() as at:
        at.firms.revoke(revoked)
        at.certificates.revoke_all(revoked)
    with pytest.raises(IdentityError):
        site.membership.admit_leaver(revoked, site.certificates[revoked])
    with pytest.raises(IdentityError):
        site.membership.admit_leaver("firm-a", site.certificates["firm-b"])


def test_a_firm_that_joined_anew_is_not_the_one_that_left(site: Site) -> None:
    site.leave(statement(""))
    with site.store.reading() as at:
        assert at.departures.from_job("job-1", pins() | {"firm-a": "99" * 32}) == set()


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(statement(firm="firm-b"), id="another firm's"),
        pytest.param(statement(consortium="Hill"), id="another consortium's"),
        pytest.param(statement(signer="firm-b"), id="signed by another"),
        pytest.param(statement(digest=b"\x01" * 32), id="of another job file"),
        pytest.param(statement("job-9"), id="of an unknown job"),
    ],
)
def test_a_statement_that_is_not_the_firms_is_refused_and_changes_nothing(site: Site, bad: Leave) -> None:
    with pytest.raises(IdentityError):
        site.membership.leave("firm-a", bad.encode())
    with site.store.reading() as at:
        assert at.departures.all() == []
        assert at.firms.get("firm-a").status is FirmStatus.APPROVED


def test_bytes_that_are_no_statement_are_refused(site: Site) -> None:
    with pytest.raises(MessageError):
        site.membership.leave("firm-a", b"\x01")
