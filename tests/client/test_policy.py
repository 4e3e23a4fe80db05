"""The firm's policy: which jobs pass, which do not and with what code, and how the file is changed."""

import pytest

from dure_client.consent import Asks
from dure_client.jobs.approvals import By, Decision, Verdict
from dure_client.policy import DEFAULT_TEXT, ApproveJobs, Policy, PolicyError, allow_model, pin_firm
from dure_client.policy_checks import check_decision, check_job
from dure_client.policy_words import in_words
from dure_client.trainer.sandbox import SandboxLevel
from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.identity import Identity, grouped
from dure_protocols.job import Agreement, CodecTerms, JobFile, ModelTerms
from dure_protocols.vouching import Vouch

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
        pytest.param("allowed-models", None, RefusalCode.NOT_APPROVED, id="by itself, but nothing is listed"),
        pytest.param("ask", decision(Verdict.DAMAGED, job_of()), RefusalCode.NOT_APPROVED, id="damaged"),
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
    for name in set(Policy.model_fields) - {"allowed_models", "firms", "agreements", "shifts"}:
        assert f"\n{name} = " in DEFAULT_TEXT, "each field stands in the file, with its explanation above it"
    for table in ("agreements", "shifts"):
        assert f"#     [[{table}]]" in DEFAULT_TEXT
    with pytest.raises(RefusedError):
        check(Policy(), job_of())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("minimum_cohort = 1", "minimum_cohort", id="a sum of one"),
        pytest.param('approve_jobs = "always"', "ask", id="an unknown way to approve"),
        pytest.param('[firms]\nlee = "1234"', "64 hexadecimal", id="half a fingerprint"),
        pytest.param(f'[firms]\nLee = "{DIGEST}"', "firm's name", id="a name that is none"),
        pytest.param('[[allowed_models]]\nname = "tabular"', "digest", id="a model without digest"),
        pytest.param('[[allowed_models]]\nname = "*"\ndigest = "*"', "allowed_models", id="any model"),
        pytest.param('ask_person = ["a-new-moon"]', "ask_person", id="an unknown novelty"),
        pytest.param('[[agreements]]\nname = "A"\nversion = "1"', "sha256", id="an agreement without its text"),
        pytest.param('[[shifts]]\nwindow = "Mon 25:00-26:00"', "no time of a day", id="a shift at no time"),
        pytest.param('[[shifts]]\nwindow = "Mon 06:00-14:00"\nround = 3', "round", id="a misspelt limit"),
        pytest.param("vouchers_needed = -1", "vouchers_needed", id="fewer than no vouchers"),
        pytest.param("minimum_cohrt = 3", "minimum_cohrt: no such field; did you mean minimum_cohort", id="a slip"),
        pytest.param("[firms]\nminimum_cohort = 3", r"below \[firms\] and belongs above the first table", id="a stray"),
        pytest.param(
            '[firms]\nrequire_sandbox = "off"', r"below \[firms\] and belongs above", id="a stray that is a text"
        ),
        pytest.param(
            "[firms]\nminimum_cohrt = 3", r"mean minimum_cohort\? The line stands below \[firms\]", id="a stray slip"
        ),
        pytest.param(
            f'[[allowed_models]]\nname = "m"\ndigest = "{DIGEST}"\nminimum_rows = 3',
            r"below \[allowed_models\] and belongs above",
            id="a stray below another table",
        ),
        pytest.param('[[shifts]]\nwindw = "Mon 06:00-14:00"', "mean window", id="a slip in a table"),
        pytest.param("minimum_cohort = = 3", "not valid TOML", id="no TOML"),
    ],
)
def test_a_policy_that_is_none_says_where(text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        Policy.parse(text)


def test_a_stray_line_is_told_in_one_sentence() -> None:
    with pytest.raises(PolicyError, match=r"^policy.toml is not a valid policy:\n  - firms.minimum_cohort: no such"):
        Policy.parse("[firms]\nminimum_cohort = 3")


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


AGREEMENT = Agreement(name="Valley agreement", version="2", sha256="cd" * 32)
BY_ITSELF = Policy.parse(
    f"""
    approve_jobs = "allowed-models"
    purposes = ["predictive maintenance"]
    [[agreements]]
    name = "Valley agreement"
    version = "2"
    sha256 = "{AGREEMENT.sha256.upper()}"
    """
).model_copy(update={"firms": POLICY.firms, "allowed_models": POLICY.allowed_models})


def agreed_job(**changes: object) -> JobFile:
    terms = {"purpose": "predictive maintenance", "agreement": AGREEMENT, "minimum_cohort": 3}
    return JobFile.model_validate({**job_of().model_dump(), **terms, **changes})


BEFORE = [agreed_job(id="job-0")]


def test_a_job_under_a_listed_purpose_and_agreement_that_is_nothing_new_needs_no_person() -> None:
    check(BY_ITSELF, agreed_job())
    check_decision(BY_ITSELF, agreed_job(), None, BEFORE)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"purpose": "pricing"}, RefusalCode.PURPOSE, id="another purpose"),
        pytest.param({"purpose": None}, RefusalCode.PURPOSE, id="no purpose"),
        pytest.param({"agreement": None}, RefusalCode.AGREEMENT, id="no agreement"),
        pytest.param(
            {"agreement": AGREEMENT.model_copy(update={"version": "3"})}, RefusalCode.AGREEMENT, id="another version"
        ),
        pytest.param(
            {"agreement": AGREEMENT.model_copy(update={"sha256": "ef" * 32})}, RefusalCode.AGREEMENT, id="another text"
        ),
    ],
)
def test_what_is_not_listed_is_refused_even_if_a_person_approved(changes: dict[str, object], code: RefusalCode) -> None:
    with pytest.raises(RefusedError) as caught:
        check(BY_ITSELF, agreed_job(**changes))
    assert caught.value.code is code


FOUR_FIRMS = {**job_of().firms, "yu": "99" * 32}
NEW_FIRM = {**job_of().firms, "lee": Identity.from_seed(b"\x09" * 32).public_bytes.hex()}


@pytest.mark.parametrize(
    ("asks", "before", "says"),
    [
        pytest.param("new-model", {"model": {**job_of().model.model_dump(), "digest": "ee" * 32}}, "the model", id="m"),
        pytest.param("new-firm", {"firms": NEW_FIRM}, "roster, or with another key: lee", id="another key"),
        pytest.param("new-agreement", {"agreement": None}, "the agreement is new: Valley", id="agreement"),
        pytest.param("weaker-cohort", {"firms": FOUR_FIRMS, "minimum_cohort": 4}, "sums of 3", id="cohort"),
    ],
)  # fmt: skip
def test_a_person_is_asked_about_what_is_new_unless_the_policy_says_not_to(
    asks: str, before: dict[str, object], says: str
) -> None:
    earlier = [agreed_job(id="job-0", **before)]
    with pytest.raises(RefusedError, match=says) as caught:
        check_decision(BY_ITSELF, agreed_job(), None, earlier)
    assert caught.value.code is RefusalCode.NOT_APPROVED
    others = tuple(kind for kind in Asks if kind != asks)
    check_decision(BY_ITSELF.model_copy(update={"ask_person": others}), agreed_job(), None, earlier)


def test_before_any_job_was_approved_everything_is_new() -> None:
    with pytest.raises(RefusedError, match=r"the model .* new in the roster.*: kim, lee, park; the agreement"):
        check_decision(BY_ITSELF, agreed_job(), None, [])


def test_a_yes_of_the_policy_stands_only_as_long_as_it_would_say_so_again() -> None:
    given = decision(Verdict.APPROVED, agreed_job()).model_copy(update={"by": By.POLICY})
    check_decision(BY_ITSELF, agreed_job(), given, BEFORE)
    with pytest.raises(RefusedError):
        check_decision(BY_ITSELF.model_copy(update={"approve_jobs": "ask"}), agreed_job(), given, BEFORE)
    check_decision(POLICY, agreed_job(), given.model_copy(update={"by": By.PERSON}), BEFORE)


@pytest.mark.parametrize(
    ("verdict", "code"), [(Verdict.LEFT, RefusalCode.LEFT), (Verdict.DAMAGED, RefusalCode.NOT_APPROVED)]
)
def test_a_job_that_was_left_or_whose_decision_is_damaged_is_refused_whatever_the_policy_says(
    verdict: Verdict, code: RefusalCode
) -> None:
    with pytest.raises(RefusedError) as caught:
        check_decision(BY_ITSELF, agreed_job(), decision(verdict, agreed_job()), BEFORE)
    assert caught.value.code is code


CHOI = Identity.from_seed(b"\x09" * 32)
BY_LEE, BY_PARK = (
    Vouch.make("Test", "choi", CHOI.fingerprint, name, identity) for name, identity in (("lee", LEE), ("park", PARK))
)


@pytest.mark.parametrize(
    ("needed", "vouches", "pins", "passes"),
    [
        pytest.param(2, [BY_LEE, BY_PARK], {}, True, id="two of two"),
        pytest.param(1, [BY_LEE], {}, True, id="one of one"),
        pytest.param(2, [BY_LEE, BY_LEE], {}, False, id="one twice"),
        pytest.param(0, [BY_LEE, BY_PARK], {}, False, id="vouching is off"),
        pytest.param(1, [BY_LEE], {"choi": "77" * 32}, False, id="accepted here with another key"),
    ],
)
def test_a_firm_that_is_not_accepted_passes_on_enough_vouches(
    needed: int, vouches: list[Vouch], pins: dict[str, str], passes: bool
) -> None:
    policy = POLICY.model_copy(update={"vouchers_needed": needed, "firms": {**POLICY.firms, **pins}})
    job, ours = job_of({**FIRMS, "choi": CHOI}), {"firm": "kim", "public_key": OWN.public_bytes}
    if passes:
        check_job(policy, job, **ours, installed={"tabular": DIGEST}, vouches=vouches)
        return
    with pytest.raises(RefusedError) as caught:
        check_job(policy, job, **ours, installed={"tabular": DIGEST}, vouches=vouches)
    assert caught.value.code is RefusalCode.ROSTER


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        pytest.param(Policy(), "A person here approves every job", id="the default"),
        pytest.param(BY_ITSELF, "takes part by itself", id="by itself"),
        pytest.param(BY_ITSELF.model_copy(update={"agreements": ()}), "whatever approve_jobs says", id="not listed"),
        pytest.param(POLICY, "accepted here by fingerprint: lee, park", id="with whom"),
        pytest.param(POLICY, "and model packages that a person here approved with their job", id="what runs"),
        pytest.param(Policy.parse('maintenance = ["Fri 22:00-06:00"]'), "Not in Fri 22:00-06:00", id="when"),
    ],
)
def test_a_policy_can_be_read_aloud(policy: Policy, says: str) -> None:
    assert any(says in sentence for sentence in in_words(policy))


CHANGED = {
    "approve_jobs": ApproveJobs.ASK,
    "minimum_cohort": 9,
    "minimum_difference": 9,
    "minimum_statistics_difference": 9,
    "minimum_rows": 9,
    "ask_person": (),
    "purposes": ("forecasting",),
    "vouchers_needed": 9,
    "allow_any_installed_model": True,
    "allow_native_code": True,
    "require_sandbox": SandboxLevel.OFF,
    "trainer_memory_gib": 9.0,
    "trainer_processors": 9,
    "gpu_devices": ("/dev/nvidia0",),
    "maintenance": ("Fri 22:00-06:00",),
    "shifts": Policy.parse('[[shifts]]\nwindow = "Mon-Fri 06:00-14:00"\nrounds = 4').shifts,
    "agreements": Policy.parse(f'[[agreements]]\nname = "Other"\nversion = "1"\nsha256 = "{DIGEST}"').agreements,
    "allowed_models": (),
    "firms": {},
}


@pytest.mark.parametrize("field", Policy.model_fields)
def test_every_field_of_the_policy_has_its_say(field: str) -> None:
    changed = BY_ITSELF.model_copy(update={field: CHANGED[field]})
    assert in_words(changed) != in_words(BY_ITSELF)


def test_the_default_file_says_what_the_list_of_models_does_not_bind() -> None:
    said = " ".join(line.removeprefix("# ") for line in DEFAULT_TEXT.splitlines() if line.startswith("# "))
    assert "and model packages that a person here approved with their job" in said
