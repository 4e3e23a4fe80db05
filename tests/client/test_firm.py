"""The firm's whole side, request by request, over a home on disk and no network."""

import itertools
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from dure_client import absence
from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import Verdict, decide
from dure_client.jobs.firm import IDLE_SECONDS, Firm
from dure_client.jobs.side import Given
from dure_client.policy import Policy, read_text
from dure_client.trainer.sandbox import SandboxError, SandboxLevel
from dure_protocols.errors import RefusalCode
from dure_protocols.messages import (
    Absence,
    AbsenceReason,
    Approval,
    AskKeys,
    Finish,
    Invitation,
    KeyAdvertisement,
    Proposal,
    Refusal,
    encode,
)
from tests.compatibility import three_firms


class Clock:
    """Stands still until a test moves it. 2026-03-02 is a Monday."""

    now = 0.0

    def seconds(self):
        return self.now

    def local(self):
        return datetime(2026, 3, 2, 8).astimezone() + timedelta(seconds=self.now)


CLOCK = Clock()


@pytest.fixture
def job_and_firm(tmp_path):
    """A job that firm-a has approved, with its first model at hand so that nothing here needs a trainer."""
    three_firms.write_data(tmp_path / "data")
    homes = three_firms.make_homes(tmp_path / "firms", tmp_path / "data")
    job, initial = three_firms.make_the_job()
    three_firms.approve(homes, job)
    name = sorted(homes)[0]
    np.ascontiguousarray(initial, "<f4").tofile(homes[name].job_folder(job.id) / "initial.f32")
    with closing(Firm(homes[name], clock=CLOCK.local, monotonic=CLOCK.seconds)) as firm:
        assert isinstance(firm.answer(encode(Proposal(job.to_bytes())), Given()).message, Approval)
        yield job, name, firm


def test_a_job_that_is_not_over_is_not_concluded_because_a_server_says_so(job_and_firm):
    """Else the firm would judge an unfinished model, and never the one it ends with."""
    job, name, firm = job_and_firm
    answer = firm.answer(encode(Finish(job.digest(), ())), Given()).message
    assert answer == Refusal(name, RefusalCode.GLOBAL_MODEL, 0)
    assert [opened.result for opened in firm._jobs.values()] == [None]
    assert isinstance(firm.answer(encode(AskKeys(job.digest(), 1)), Given()).message, KeyAdvertisement)


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff" * 40, encode(Refusal("x", RefusalCode.DATA, 0))])
def test_what_is_no_request_gets_a_code(job_and_firm, body):
    _, name, firm = job_and_firm
    assert firm.answer(body, Given()).message == Refusal(name, RefusalCode.MALFORMED)


def test_a_job_that_was_never_proposed_is_unknown(job_and_firm):
    _, name, firm = job_and_firm
    assert firm.answer(encode(AskKeys(bytes(32), 1)), Given()).message == Refusal(name, RefusalCode.UNKNOWN_JOB)


class NoSandbox:
    """Found when the agent started, and cannot be made for this trainer."""

    level = SandboxLevel.FULL
    why_not_more = ""

    def confine(self, command, grants, limits):
        raise SandboxError("the home holds Python's files")


def test_a_sandbox_that_cannot_be_made_for_a_trainer_is_told_by_its_code(job_and_firm):
    job, name, firm = job_and_firm
    home = firm._home
    (home.job_folder(job.id) / "initial.f32").unlink()  # so that the trainer is asked for it
    with closing(Firm(home, sandbox=NoSandbox())) as other:
        answer = other.answer(encode(Finish(job.digest(), ())), Given()).message
    assert answer == Refusal(name, RefusalCode.SANDBOX)


class FakeTrainer:
    """Runs until it is closed."""

    pid, has_ended = 1, False

    def close(self):
        self.pid = None

    shut = close

    def use_threads(self, num_threads):
        self.num_threads = num_threads

    def grant(self, devices, limits):
        self.granted = devices, limits.memory_bytes
        self.close()


def opened(job, firm):
    """The job as the firm's process holds it, with a trainer that runs."""
    assert isinstance(firm.answer(encode(AskKeys(job.digest(), 1)), Given()).message, KeyAdvertisement)
    (held,) = firm._jobs.values()
    held.trainer = FakeTrainer()
    return held


def test_a_trainer_that_nobody_has_asked_for_long_is_ended(job_and_firm):
    """A firm is not told that a job is paused, has failed or was stopped."""
    job, _, firm = job_and_firm
    trainer = opened(job, firm).trainer
    CLOCK.now += IDLE_SECONDS - 1
    assert firm.close_idle() == 0
    firm.answer(encode(AskKeys(job.digest(), 2)), Given())
    CLOCK.now += IDLE_SECONDS - 1
    assert firm.close_idle() == 0
    assert trainer.pid == 1
    CLOCK.now += 1
    assert firm.close_idle() == 1
    assert trainer.pid is None
    assert firm.close_idle() == 0


def test_a_trainer_at_work_is_not_idle_however_long_it_takes(job_and_firm):
    job, _, firm = job_and_firm
    held = opened(job, firm)

    def look_meanwhile():
        CLOCK.now += 10 * IDLE_SECONDS
        return firm.close_idle()

    assert held.side.conclude(look_meanwhile) == 0
    assert held.trainer.pid == 1


def an_invitation(job):
    return encode(Invitation(job.digest(), 1, 0, 1, ()))


def test_a_firm_in_maintenance_declines_an_invitation_and_frees_its_machine(job_and_firm):
    job, name, firm = job_and_firm
    held = opened(job, firm)
    policy = firm._home.policy_file
    policy.write_text(policy.read_text().replace("maintenance = []", 'maintenance = ["Mon-Fri 06:00-14:00"]'))
    answer = firm.answer(an_invitation(job), Given()).message
    until = int(CLOCK.local().replace(hour=14, minute=0, second=0, microsecond=0).timestamp())
    assert answer == Absence(name, AbsenceReason.MAINTENANCE, until)
    assert held.trainer.pid is None


def test_a_paused_firm_declines_invitations_and_nothing_else(job_and_firm):
    job, name, firm = job_and_firm
    held = opened(job, firm)
    absence.pause(firm._home, job.id, None)
    assert firm.answer(an_invitation(job), Given()).message == Absence(name, AbsenceReason.PAUSED, 0)
    held.trainer = FakeTrainer()
    assert isinstance(firm.answer(encode(AskKeys(job.digest(), 2)), Given()).message, KeyAdvertisement)
    assert held.trainer.pid == 1
    absence.resume(firm._home, job.id)
    assert firm.answer(an_invitation(job), Given()).message == Refusal(name, RefusalCode.STATE_LOST)


def test_what_the_firm_decides_in_the_middle_of_a_job_holds_from_the_next_request_on(job_and_firm, tmp_path):
    job, name, firm = job_and_firm
    home = AgentHome(tmp_path / "firms" / name)
    ask = (encode(AskKeys(job.digest(), epoch)) for epoch in itertools.count(1))
    assert isinstance(firm.answer(next(ask), Given()).message, KeyAdvertisement)
    policy = read_text(home.policy_file)
    write_file(home.policy_file, policy.replace("minimum_cohort =", "minimum_cohort = 9 #").encode())
    assert firm.answer(next(ask), Given()).message == Refusal(name, RefusalCode.COHORT_TOO_SMALL)
    write_file(home.policy_file, policy.encode())
    assert isinstance(firm.answer(next(ask), Given()).message, KeyAdvertisement)
    decide(home, job, Verdict.REJECTED, datetime.now(UTC))
    assert firm.answer(next(ask), Given()).message == Refusal(name, RefusalCode.REJECTED_BY_FIRM)
    decide(home, job, Verdict.APPROVED, datetime.now(UTC))
    assert isinstance(firm.answer(next(ask), Given()).message, KeyAdvertisement)


def test_what_a_policy_grants_the_trainer_changes_with_the_next_request(job_and_firm):
    """A GPU that was withdrawn would else stay granted until the agent's next start."""
    job, _, firm = job_and_firm
    held, policy = opened(job, firm), firm._home.policy_file
    text = policy.read_text()
    write_file(policy, text.replace("minimum_rows = ", "minimum_rows = 1 #").encode())
    firm.answer(encode(AskKeys(job.digest(), 2)), Given())
    assert held.trainer.pid == 1, "what does not concern the trainer ends none"
    changed = text.replace("gpu_devices = []", 'gpu_devices = ["/dev/gpu0"]').replace(
        "memory_gib = 0", "memory_gib = 2"
    )
    write_file(policy, changed.encode())
    firm.answer(encode(AskKeys(job.digest(), 3)), Given())
    assert held.trainer.granted == ((Path("/dev/gpu0"),), 2 << 30)
    assert held.trainer.pid is None


def test_a_grant_that_comes_while_the_trainer_works_is_made_with_a_later_request(job_and_firm):
    job, _, firm = job_and_firm
    held, policy = opened(job, firm), firm._home.policy_file
    write_file(policy, policy.read_text().replace("trainer_memory_gib = 0", "trainer_memory_gib = 1").encode())
    held.side.conclude(lambda: firm._policy_on(held))
    assert held.trainer.pid == 1
    firm.answer(encode(AskKeys(job.digest(), 2)), Given())
    assert held.trainer.granted == ((), 1 << 30)


def test_what_a_trainer_left_that_ended_by_itself_is_removed(job_and_firm):
    job, _, firm = job_and_firm
    held = opened(job, firm)
    held.trainer.has_ended = True
    firm.close_idle()
    assert held.trainer.pid is None


def test_a_firm_that_has_decided_nothing_new_does_not_read_its_policy_again(job_and_firm, monkeypatch):
    job, _, firm = job_and_firm
    assert isinstance(firm.answer(encode(AskKeys(job.digest(), 1)), Given()).message, KeyAdvertisement)
    monkeypatch.setattr(Policy, "read", lambda _: pytest.fail("the policy was read again"))
    assert isinstance(firm.answer(encode(AskKeys(job.digest(), 2)), Given()).message, KeyAdvertisement)
