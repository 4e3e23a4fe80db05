"""The firm's policy: which jobs pass, which do not and with what code, and how the file is changed."""

import pytest

from dure_client.jobs.approvals import Decision, Verdict
from dure_client.policy import (
    DEFAULT_TEXT,
    Policy,
    PolicyError,
    allow_model,
    check_decision,
    check_job,
    pin_firm,
)
from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.identity import Identity, grouped
from dure_protocols.job import CodecTerms, JobFile, ModelTerms

OWN, LEE, PARK = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
DIGEST = "ab" * 32
POLICY = Policy.parse(
    f"""
    [firms]
    lee = "{LEE.fingerprint}"
    park = "{grouped(PARK.fingerprint).upper()}"
    [[allowed_models]]
    name = "tabular"
    digest = "{DIGEST}"
    """
)
FIRMS = {"kim": OWN, "lee": LEE, "park": PARK}


def job_of(firms: dict[str, Identity] = FIRMS, model: str = "tabular", digest: str = DIGEST) -> JobFile:
    return JobFile(
        id="job-1",
        title="Milling",
        consortium="Test",
        firms={name: identity.public_bytes.hex() for name, identity in firms.items()},
        minimum_cohort=2,
        model=ModelTerms(name=model, digest=digest, parameters=10, initial_digest="00" * 32),
        contract={"name": "milling"},
        codec=CodecTerms(clip=1.0, count_cap=100),
        rounds=3,
        seed=1,
    )


def check(policy: Policy, job: JobFile, installed: dict[str, str] | None = None) -> None:
    here = {"tabular": DIGEST} if installed is None else installed
    check_job(policy, job, firm="kim", public_key=OWN.public_bytes, installed=here)


def test_a_job_within_the_policy_passes() -> None:
    check(POLICY, job_of())
    check(POLICY.model_copy(update={"allowed_models": (), "allow_any_installed_model": True}), job_of())


@pytest.mark.parametrize(
    ("job", "changes", "installed", "code", "says"),
    [
        pytest.param(
            job_of({"lee": LEE, "park": PARK, "choi": OWN}), {}, None,
            RefusalCode.ROSTER, "own key", id="we are not in the roster",
        ),
        pytest.param(
            job_of({"kim": Identity.from_seed(bytes(32)), "lee": LEE, "park": PARK}), {}, None,
            RefusalCode.ROSTER, "own key", id="we are there with another key",
        ),
        pytest.param(
            job_of({**FIRMS, "choi": Identity.from_seed(b"\x09" * 32)}), {}, None,
            RefusalCode.ROSTER, "dure-agent accept choi", id="a firm we have not accepted",
        ),
        pytest.param(
            job_of({**FIRMS, "lee": Identity.from_seed(b"\x09" * 32)}), {}, None,
            RefusalCode.ROSTER, "by phone", id="an accepted firm with another key",
        ),
        pytest.param(
            job_of({"kim": OWN, "lee": LEE}), {}, None,
            RefusalCode.COHORT_TOO_SMALL, "2 firms", id="fewer firms than the smallest sum we want",
        ),
        pytest.param(
            job_of(model="rul"), {}, None, RefusalCode.UNKNOWN_MODEL, "is not here", id="a model not installed",
        ),
        pytest.param(
            job_of(digest="cd" * 32), {}, None, RefusalCode.MODEL_DIGEST, "install the version", id="another digest",
        ),
        pytest.param(
            job_of(), {"allowed_models": ()}, None,
            RefusalCode.UNKNOWN_MODEL, "policy allow tabular", id="installed but not allowed",
        ),
        pytest.param(
            job_of(digest="cd" * 32), {}, {"tabular": "cd" * 32},
            RefusalCode.UNKNOWN_MODEL, "policy allow", id="allowed, but in another version",
        ),
    ],
)  # fmt: skip
def test_a_job_outside_the_policy_is_refused(
    job: JobFile, changes: dict[str, object], installed: dict[str, str] | None, code: RefusalCode, says: str
) -> None:
    with pytest.raises(RefusedError, match=says) as caught:
        check(POLICY.model_copy(update=changes), job, installed)
    assert caught.value.code is code


def decision(verdict: Verdict, job: JobFile) -> Decision:
    return Decision(job=job.id, digest=job.digest().hex(), verdict=verdict, time="2026-01-31T09:30:00+00:00")


@pytest.mark.parametrize(
    ("approve_jobs", "said", "code"),
    [
        pytest.param("ask", None, RefusalCode.NOT_APPROVED, id="asked, nothing said"),
        pytest.param("ask", decision(Verdict.APPROVED, job_of()), None, id="approved"),
        pytest.param("ask", decision(Verdict.REJECTED, job_of()), RefusalCode.REJECTED_BY_FIRM, id="rejected"),
        pytest.param(
            "ask", decision(Verdict.APPROVED, job_of(FIRMS, "rul")), RefusalCode.NOT_APPROVED, id="another file"
        ),
        pytest.param("allowed-models", None, None, id="by itself"),
        pytest.param(
            "allowed-models", decision(Verdict.REJECTED, job_of()), RefusalCode.REJECTED_BY_FIRM, id="a no counts"
        ),
    ],
)
def test_who_says_yes(approve_jobs: str, said: Decision | None, code: RefusalCode | None) -> None:
    policy = Policy.parse(f'approve_jobs = "{approve_jobs}"')
    if code is None:
        check_decision(policy, job_of(), said)
        return
    with pytest.raises(RefusedError) as caught:
        check_decision(policy, job_of(), said)
    assert caught.value.code is code


def test_the_default_file_is_the_default_policy_and_strict() -> None:
    assert Policy.parse(DEFAULT_TEXT) == Policy()
    for name in set(Policy.model_fields) - {"allowed_models", "firms"}:
        assert f"\n{name} = " in DEFAULT_TEXT, "each field stands in the file, with its explanation above it"
    with pytest.raises(RefusedError):
        check(Policy(), job_of())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("minimum_cohort = 1", "minimum_cohort", id="a sum of one"),
        pytest.param("minimum_cohrt = 3", "minimum_cohrt", id="a misspelt field"),
        pytest.param('approve_jobs = "always"', "ask", id="an unknown way to approve"),
        pytest.param('[firms]\nlee = "1234"', "64 hexadecimal", id="half a fingerprint"),
        pytest.param(f'[firms]\nLee = "{DIGEST}"', "firm's name", id="a name that is none"),
        pytest.param('[[allowed_models]]\nname = "tabular"', "digest", id="a model without digest"),
        pytest.param('[[allowed_models]]\nname = "*"\ndigest = "*"', "allowed_models", id="any model"),
        pytest.param("minimum_cohort = = 3", "not valid TOML", id="no TOML"),
    ],
)
def test_a_policy_that_is_none_says_where(text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        Policy.parse(text)


def test_pinning_keeps_the_file_as_its_people_wrote_it() -> None:
    text = pin_firm(DEFAULT_TEXT, "lee", grouped(LEE.fingerprint))
    text = pin_firm(text, "park", PARK.fingerprint.upper())
    assert Policy.parse(text).firms == {"lee": LEE.fingerprint, "park": PARK.fingerprint}
    without = [line for line in text.splitlines() if not line.startswith(("lee", "park"))]
    assert without == DEFAULT_TEXT.splitlines()
    assert pin_firm(text, "lee", LEE.fingerprint) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="an empty file"),
        pytest.param("minimum_rows = 5", id="no table of firms, no newline"),
        pytest.param('[firms]  # ours\n"lee" = "' + DIGEST + '"\n', id="a comment behind the header"),
        pytest.param(f'[[allowed_models]]\nname = "a"\ndigest = "{DIGEST}"\n', id="a table behind"),
        pytest.param(f'[firms]\n[[allowed_models]]\nname = "a"\ndigest = "{DIGEST}"\n', id="firms before models"),
    ],
)
def test_pinning_works_in_any_layout(text: str) -> None:
    pinned = pin_firm(text, "park", PARK.fingerprint)
    assert Policy.parse(pinned).firms["park"] == PARK.fingerprint
    assert Policy.parse(pinned).allowed_models == Policy.parse(text).allowed_models


def test_a_pin_is_replaced_only_on_purpose() -> None:
    text = pin_firm(DEFAULT_TEXT, "lee", LEE.fingerprint)
    with pytest.raises(PolicyError, match="--replace"):
        pin_firm(text, "lee", PARK.fingerprint)
    replaced = pin_firm(text, "lee", PARK.fingerprint, replace=True)
    assert Policy.parse(replaced).firms == {"lee": PARK.fingerprint}


@pytest.mark.parametrize("came", ["", "1234", "zz" * 32, f"{LEE.fingerprint}00"])
def test_a_fingerprint_that_is_none_is_not_pinned(came: str) -> None:
    with pytest.raises(PolicyError, match="64 hexadecimal"):
        pin_firm(DEFAULT_TEXT, "lee", came)


def test_a_layout_that_cannot_be_changed_is_left_alone() -> None:
    with pytest.raises(PolicyError, match="by hand"):
        pin_firm(f'firms = {{ lee = "{LEE.fingerprint}" }}', "park", PARK.fingerprint)


def test_allowing_a_model_adds_it_once() -> None:
    text = allow_model(DEFAULT_TEXT, "tabular", DIGEST)
    assert allow_model(text, "tabular", DIGEST) == text
    text = pin_firm(allow_model(text, "tabular", "cd" * 32), "lee", LEE.fingerprint)
    policy = Policy.parse(text)
    assert [(model.name, model.digest) for model in policy.allowed_models] == [
        ("tabular", DIGEST),
        ("tabular", "cd" * 32),
    ]
    assert policy.firms == {"lee": LEE.fingerprint}
    with pytest.raises(PolicyError):
        allow_model(DEFAULT_TEXT, 'x"\nfoo = 1', DIGEST)
