"""The firm's whole side, request by request, over a home on disk and no network."""

from contextlib import closing

import numpy as np
import pytest

from dure_client.jobs.firm import Firm
from dure_client.jobs.side import Given
from dure_protocols.errors import RefusalCode
from dure_protocols.messages import Approval, AskKeys, Finish, KeyAdvertisement, Proposal, Refusal, encode
from tests.compatibility import three_firms


@pytest.fixture
def job_and_firm(tmp_path):
    """A job that firm-a has approved, with its first model at hand so that nothing here needs a trainer."""
    three_firms.write_data(tmp_path / "data")
    homes = three_firms.make_homes(tmp_path / "firms", tmp_path / "data")
    job, initial = three_firms.make_the_job()
    three_firms.approve(homes, job)
    name = sorted(homes)[0]
    np.ascontiguousarray(initial, "<f4").tofile(homes[name].job_folder(job.id) / "initial.f32")
    with closing(Firm(homes[name])) as firm:
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
