"""A server that pushes code, another model, a smaller cohort, a forged roster or a changed agreement, over the firm's
whole side: each is refused by name, nothing is computed, and the firm is ready for the next job."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from dure_client.agent import Answer
from dure_client.flower import FlowerApp, client_app
from dure_client.home import AgentHome, write_file
from dure_client.jobs import firm as firm_module
from dure_client.jobs.approvals import Verdict, decide, known_job
from dure_client.jobs.firm import Firm
from dure_client.jobs.refusals import last_refusal
from dure_client.jobs.side import Given
from dure_client.packages.admission import installed_digest
from dure_client.policy import read_text
from dure_protocols.errors import RefusalCode
from dure_protocols.frames import DURE_MESSAGE_TYPE, Envelope
from dure_protocols.identity import Identity
from dure_protocols.job import Agreement, JobFile
from dure_protocols.messages import (
    Approval,
    AskKeys,
    Cohort,
    Invitation,
    Join,
    KeyAdvertisement,
    Proposal,
    Refusal,
    Roster,
    encode,
)
from tests.compatibility import three_firms
from tests.protocols.test_messages import SAMPLES

NAME = "firm-a"
AGREEMENT = Agreement(name="Valley agreement", version="2", sha256="cd" * 32)
STRANGER = Identity.from_seed(b"\x09" * 32)


class Uncalled:
    """A trainer that must not be asked for anything: it notes that it was."""

    def __init__(self, *_: object, **__: object) -> None:
        self.pid, self.asked = None, CALLS

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name in {"close", "shut", "use_threads"}:
            return lambda *_: None

        def asked(*_: object, **__: object) -> object:
            self.asked.append(name)
            raise AssertionError(f"the trainer was asked to {name}")

        return asked


CALLS: list[str] = []


@pytest.fixture(scope="module")
def agreed() -> JobFile:
    """The job that all have agreed on."""
    job, _ = three_firms.make_the_job()
    terms = {"purpose": "failure prediction", "agreement": AGREEMENT}
    return JobFile.model_validate(job.model_dump() | terms)


@pytest.fixture
def firm(tmp_path: Path, agreed: JobFile, monkeypatch: pytest.MonkeyPatch) -> Iterator[Firm]:
    """A firm whose people approved `agreed`; its first model is at hand, and its trainer must stay untouched."""
    CALLS.clear()
    monkeypatch.setattr(firm_module, "TrainerClient", Uncalled)
    three_firms.write_data(tmp_path / "data")
    home = three_firms.make_homes(tmp_path / "firms", tmp_path / "data")[NAME]
    listed = f'\n[[agreements]]\nname = "Valley agreement"\nversion = "2"\nsha256 = "{AGREEMENT.sha256}"\n'
    text = read_text(home.policy_file).replace("purposes = []", 'purposes = ["failure prediction"]') + listed
    write_file(home.policy_file, text.encode())
    decide(home, agreed, Verdict.APPROVED, datetime.now(UTC))
    _, initial = three_firms.make_the_job()
    np.ascontiguousarray(initial, "<f4").tofile(home.job_folder(agreed.id) / "initial.f32")
    with closing(Firm(home)) as made:
        assert isinstance(made.answer(encode(Proposal(agreed.to_bytes())), Given()).message, Approval)
        yield made


def is_ready(firm: Firm, job: JobFile) -> bool:
    """Whether the firm still takes part in the job that it approved."""
    return isinstance(firm.answer(encode(AskKeys(job.digest(), 7)), Given()).message, KeyAdvertisement)


def changed(job: JobFile, **terms: object) -> JobFile:
    return JobFile.model_validate(job.model_dump() | {"id": "job-2"} | terms)


def keys(job: JobFile, **others: bytes) -> dict[str, str]:
    return dict(job.firms) | {name.replace("_", "-"): key.hex() for name, key in others.items()}


PROPOSED = {
    "another model's digest": (
        lambda job: changed(job, model=job.model.model_copy(update={"digest": "ee" * 32})),
        RefusalCode.MODEL_DIGEST,
        "here .* is installed",
    ),
    "a model that is not installed": (
        lambda job: changed(job, model=job.model.model_copy(update={"name": "spyware"})),
        RefusalCode.UNKNOWN_MODEL,
        "'spyware' .* is not here",
    ),
    "a model that is installed and not allowed": (
        lambda job: changed(job, model=job.model.model_copy(update={"name": "rul", "digest": RUL})),
        RefusalCode.UNKNOWN_MODEL,
        "not on the allow-list",
    ),
    "a smaller cohort": (
        lambda job: changed(job, firms={n: k for n, k in job.firms.items() if n != "firm-c"}, minimum_cohort=2),
        RefusalCode.COHORT_TOO_SMALL,
        "sums of at least 3",
    ),
    "a roster with a changed key": (
        lambda job: changed(job, firms=keys(job, firm_b=STRANGER.public_bytes)),
        RefusalCode.ROSTER,
        "by phone",
    ),
    "a roster with an added firm": (
        lambda job: changed(job, firms=keys(job, firm_d=STRANGER.public_bytes)),
        RefusalCode.ROSTER,
        "'firm-d' is not accepted here",
    ),
    "a roster without this firm": (
        lambda job: changed(job, firms={**keys(job), NAME: STRANGER.public_bytes.hex()}),
        RefusalCode.ROSTER,
        "own key",
    ),
    "another purpose": (lambda job: changed(job, purpose="pricing"), RefusalCode.PURPOSE, "'pricing'"),
    "a changed agreement": (
        lambda job: changed(job, agreement=AGREEMENT.model_copy(update={"sha256": "ef" * 32})),
        RefusalCode.AGREEMENT,
        "efefefef",
    ),
    "another version of the agreement": (
        lambda job: changed(job, agreement=AGREEMENT.model_copy(update={"version": "3"})),
        RefusalCode.AGREEMENT,
        "version 3",
    ),
    "a job that is within the policy and that nobody has approved": (
        lambda job: changed(job, rounds=9),
        RefusalCode.NOT_APPROVED,
        "dure-agent approve job-2",
    ),
}
RUL = installed_digest("rul")["rul"]


@pytest.mark.parametrize("attack", PROPOSED)
def test_a_proposed_job_is_refused(firm: Firm, agreed: JobFile, attack: str) -> None:
    make, code, says = PROPOSED[attack]
    proposed = make(agreed)
    assert firm.answer(encode(Proposal(proposed.to_bytes())), Given()).message == Refusal(NAME, code)
    kept = last_refusal(firm._home, "job-2")
    assert kept is not None
    assert kept.code is code
    assert re.search(says, kept.reason)
    for request in (AskKeys(proposed.digest(), 1), Invitation(proposed.digest(), 1, 0, 1, ())):
        refused = firm.answer(encode(request), Given()).message
        assert refused == Refusal(NAME, code), "neither is anything computed for it without a proposal"
    assert CALLS == []
    assert is_ready(firm, agreed)


SWAPPED = {
    "the agreement": {"agreement": AGREEMENT.model_copy(update={"version": "3"})},
    "the model": {"model": {"digest": "ee" * 32}},
    "the cohort": {"minimum_cohort": 2},
    "the roster": {"firms": {"firm-b": STRANGER.public_bytes.hex()}},
}


@pytest.mark.parametrize("what", SWAPPED)
def test_what_was_approved_is_not_changed_under_the_same_name(firm: Firm, agreed: JobFile, what: str) -> None:
    terms = agreed.model_dump()
    for name, value in SWAPPED[what].items():
        terms[name] = {**terms[name], **value} if isinstance(value, dict) else value
    swapped = JobFile.model_validate(terms)
    for request in (Proposal(swapped.to_bytes()), AskKeys(swapped.digest(), 1)):
        assert firm.answer(encode(request), Given()).message == Refusal(NAME, RefusalCode.UNKNOWN_JOB)
    assert known_job(firm._home, agreed.id).job == agreed
    assert CALLS == []
    assert is_ready(firm, agreed)


def advertisements(firm: Firm, job: JobFile) -> dict[str, KeyAdvertisement]:
    """This firm's keys of epoch 1, and for the others keys that their own identities signed."""
    mine = firm.answer(encode(AskKeys(job.digest(), 1)), Given()).message
    assert isinstance(mine, KeyAdvertisement)
    return {name: mine if name == NAME else signed(name, job, mine) for name in job.firms}


def signed(name: str, job: JobFile, like: KeyAdvertisement, by: Identity | None = None) -> KeyAdvertisement:
    identity = by or Identity.from_seed(three_firms.seed_of(name))
    parts = ((1).to_bytes(8, "big"), name.encode(), like.x25519, like.mlkem)
    signature = identity.sign("dure advertisement", job.digest(), *parts)
    return replace(like, firm=name, signature=signature)


ROSTERS = {
    "with a key that another signed": (
        lambda shown, job: shown | {"firm-b": signed("firm-b", job, shown["firm-b"], STRANGER)},
        "signature",
    ),
    "with a signature missing": (
        lambda shown, _: shown | {"firm-b": replace(shown["firm-b"], signature=bytes(64))},
        "signature",
    ),
    "with an added firm": (
        lambda shown, job: shown | {"firm-d": signed("firm-d", job, shown["firm-b"], STRANGER)},
        "roster",
    ),
    "without a firm": (lambda shown, _: {name: each for name, each in shown.items() if name != "firm-c"}, "roster"),
}


@pytest.mark.parametrize("roster", ROSTERS)
def test_a_roster_of_keys_is_refused(firm: Firm, agreed: JobFile, roster: str) -> None:
    change, code = ROSTERS[roster]
    shown = change(advertisements(firm, agreed), agreed)
    answer = firm.answer(encode(Roster(agreed.digest(), 1, tuple(shown.values()))), Given()).message
    assert answer == Refusal(NAME, RefusalCode(code))
    assert CALLS == []
    assert is_ready(firm, agreed)


def test_a_cohort_that_was_never_joined_is_refused_before_training(firm: Firm, agreed: JobFile) -> None:
    join = next(each for each in SAMPLES if isinstance(each, Join))
    answer = firm.answer(encode(Cohort(agreed.digest(), 1, 1, 1, (join, join))), Given()).message
    assert isinstance(answer, Refusal)
    assert CALLS == []
    assert is_ready(firm, agreed)


PACKAGE = np.frombuffer(b"import os; os.system('id')", np.uint8)


@pytest.mark.parametrize("body", [b"\xfe" + bytes(8), b"PK\x03\x04 a wheel", b"\x80\x04\x95 a pickle", b""])
def test_a_message_of_an_unknown_kind_is_refused(firm: Firm, agreed: JobFile, body: bytes) -> None:
    answer = firm.answer(body, Given({"package": PACKAGE}, {"package": bytes(32)}))
    assert answer.message == Refusal(NAME, RefusalCode.MALFORMED)
    assert CALLS == []
    assert is_ready(firm, agreed)


def test_code_that_comes_beside_a_message_is_neither_run_nor_kept(firm: Firm, agreed: JobFile) -> None:
    before = kept(firm._home)
    given = Given({"package": PACKAGE}, {"package": bytes(32)})
    proposed = encode(Proposal(changed(agreed, rounds=9).to_bytes()))
    assert firm.answer(proposed, given).message == Refusal(NAME, RefusalCode.NOT_APPROVED)
    assert {file for file in kept(firm._home) - before if PACKAGE.tobytes() in file.read_bytes()} == set()
    assert CALLS == []
    assert is_ready(firm, agreed)


@pytest.mark.parametrize("message_type", ["train", "evaluate", "query", "train.dure", "query.install"])
def test_flowers_own_messages_run_nothing_here(firm: Firm, agreed: JobFile, message_type: str) -> None:
    app = FlowerApp(client_app(firm.answer))
    body = encode(Proposal(agreed.to_bytes()))
    message = Envelope.request(1, 2, "job/1/1/x", message_type, body, (), 0.0, 60.0)
    try:
        answer = app(message, {})
    except Exception:  # noqa: BLE001  # the agent answers it with a code
        answer = Answer(error_code=RefusalCode.INTERNAL)
    assert answer.error_code is not None
    assert CALLS == []
    assert is_ready(firm, agreed)
    assert message_type != DURE_MESSAGE_TYPE


def kept(home: AgentHome) -> set[Path]:
    return {file for file in home.path.rglob("*") if file.is_file()}
