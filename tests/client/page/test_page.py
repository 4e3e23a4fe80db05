"""The firm's own page: what it shows, and that each button does what its command does."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dure_client import absence
from dure_client.home import AgentHome
from dure_client.jobs.approvals import Verdict, decision_on
from dure_client.jobs.refusals import note_refusal
from dure_client.jobs.results import JobResult, ModelReport
from dure_client.ledger import Ledger
from dure_client.packages.looking import look
from dure_client.packages.shelf import PackageShelf
from dure_client.page.access import Access
from dure_client.page.left import LedgerAccount
from dure_client.page.serve import PageError, serve
from dure_client.policy import Policy
from dure_client.policy_words import in_words
from dure_client.vouches import keep_vouch
from dure_protocols.errors import RefusalCode
from dure_protocols.identity import grouped
from dure_protocols.ledger import RecordKind
from dure_protocols.vouching import Vouch
from tests.client.page_firm import (
    HARBOUR,
    NOW,
    OWN,
    PUMP_SOURCE,
    RIVER,
    WAITING,
    Browser,
    browser,
    entry_of,
    files,
    job_of,
    make_home,
    offer_package,
    save,
    words,
)
from tests.model_packages.made import pump

# What it shows


def test_the_first_page_tells_everything_at_a_glance(person: Browser) -> None:
    text = words(person.client.get("/").text)
    for expected in (
        *("The agent does not run", "1 job waits for your word", "Tool wear, second season", "Round 8 of 20"),
        *("62 % better than your own model", "0.822 kept", "0.506", "1,022,168 bytes in 114 records"),
        *("sums of fewer than 3 firms", "fewer than 100 rows", "Pause everything", "A masked update:"),
        *("dure-agent leave --consortium", "valid until"),
    ):
        assert expected in text


def test_the_gain_says_so_where_the_test_rows_disagree_with_the_choice(person: Browser) -> None:
    file = person.home.job_folder("wear-1") / "result.json"
    result = JobResult.read(file)
    own = ModelReport(validation={"pr_auc": 0.9}, test=result.alone.test)
    result.model_copy(update={"alone": own}).write(file)
    text = words(person.client.get("/").text)
    assert "You keep your own model , the better one on the validation rows" in text
    assert "On the test rows below it is the other way round" in text
    assert "is better here" not in text


def test_a_job_shows_what_review_shows(person: Browser) -> None:
    text = words(person.client.get("/jobs/wear-2").text)
    for expected in (
        "air_temperature",
        "290 … 310",
        "L, M, H",
        "18,433 parameters",
        "harbour-mill yes",
        "no differential",
    ):
        assert expected in text


def test_a_job_shows_purpose_agreement_news_vouchers_and_what_was_refused_last(person: Browser) -> None:
    job, _ = offer_package(person.home)
    note_refusal(person.home, job.id, RefusalCode.ROSTER, "the firm 'x' is not accepted here", NOW)
    text = words(person.client.get(f"/jobs/{job.id}").text)
    for expected in (
        *("fewer standstills", "Valley mills data agreement, version 2", f"SHA-256 {'ab' * 32}"),
        *("New here", "the model 'pump' is new in this version", "the agreement is new"),
        *("Refused last", "the firm 'x' is not accepted here", "roster"),
    ):
        assert expected in text
    assert "none named" in words(person.client.get("/jobs/wear-2").text)


def test_who_vouches_for_a_firm_is_shown(person: Browser) -> None:
    policy = person.home.policy_file
    pin = f'harbour-mill = "{HARBOUR.fingerprint}"'
    policy.write_text(policy.read_text().replace(pin, "").replace("vouchers_needed = 0", "vouchers_needed = 1"))
    assert "harbour-mill no" in words(person.client.get("/jobs/wear-2").text)
    keep_vouch(person.home, Vouch.make("Valley mills", "harbour-mill", HARBOUR.fingerprint, "river-mill", RIVER))
    assert "harbour-mill vouched for by river-mill" in words(person.client.get("/jobs/wear-2").text)


def test_a_job_with_a_package_shows_all_that_review_shows_of_it(person: Browser) -> None:
    job, package = offer_package(person.home)
    html = person.client.get(f"/jobs/{job.id}").text
    text = words(html)
    for name, value in look(PackageShelf(person.home.models), package.digest, job).facts:
        assert f"{name} {value}" in text
    for expected in (
        *(
            "does not fit, in 3 points",
            "ANOTHER AUTHOR'S KEY",
            "hands the model more than it says it reads: air_temperature, failure, product",
        ),
        *("New since 0.9", '- "version": "0.9"', "pump_model/__init__.py", "only the source shows what the code does"),
    ):
        assert expected in text
    collapsed, paths = (
        re.findall(r"<details(?![^>]* open)", html),
        PackageShelf(person.home.models).files(package.digest),
    )
    assert len(collapsed) == len(paths)
    for path in paths:
        assert path in text


def test_a_packages_source_neither_acts_nor_hides(person: Browser) -> None:
    job, _ = offer_package(person.home)
    html = person.client.get(f"/jobs/{job.id}").text
    assert "    # \\u202e hidden\\u001b[2J &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script>alert" not in html
    assert not {"\x1b", "\u202e"} & set(html)


def test_what_the_operator_wrote_is_never_markup(person: Browser) -> None:
    save(person.home, job_of("bold", "Wear <b>&</b>"))
    for path in ("/", "/jobs/bold"):
        html = person.client.get(path).text
        assert "Wear &lt;b&gt;&amp;&lt;/b&gt;" in html
        assert "<b>" not in html


def test_the_policy_is_told_as_the_command_tells_it(person: Browser) -> None:
    text = words(person.client.get("/").text)
    for sentence in in_words(Policy.read(person.home.policy_file)):
        assert sentence in text


def test_what_an_auditor_needs_is_told(person: Browser) -> None:
    text = words(person.client.get("/left").text)
    for expected in ("dure-agent ledger export FILE", grouped(OWN.fingerprint), grouped("00" * 32)):
        assert expected in text


def test_damaged_files_are_told_and_hide_nothing_else(person: Browser) -> None:
    person.home.policy_file.write_text("minimum_cohort = 'many'")
    (person.home.job_folder("heat-1") / "job.json").write_text("{}")
    text = words(person.client.get("/").text)
    assert "policy.toml is not a valid policy" in text
    assert "the stored job file of 'heat-1' is damaged" in text
    assert "62 % better" in text


def test_a_job_that_is_not_there_has_a_page_that_says_so(person: Browser) -> None:
    for path in ("/jobs/none", "/jobs/%2e%2e%2fkeys"):
        assert person.client.get(path).status_code == 404


def test_the_account_reads_on_where_it_stopped_and_waits_for_a_whole_line(home: AgentHome) -> None:
    account = LedgerAccount(home.ledger_file)
    first = account.read()
    with home.ledger_file.open("ab") as file:
        file.write(b'{"number":')
    assert account.read() == first
    with Ledger(home.ledger_file, OWN) as ledger:  # removes the torn line and records that
        ledger.record(entry_of(RecordKind.JOIN, 1000, "wear-2", 1))
    later = account.read()
    assert later.totals.num_records == first.totals.num_records + 2
    assert later.totals.sent_bytes == first.totals.sent_bytes + 1000
    assert later.newest[0].entry.job == "wear-2"


def test_a_changed_record_is_told(home: AgentHome) -> None:
    content = home.ledger_file.read_bytes()
    home.ledger_file.write_bytes(content.replace(b'"size_bytes":61', b'"size_bytes":16'))
    person = browser(home)
    person.sign_in()
    assert "record 2 was changed" in person.client.get("/").text
    assert "line 2 was changed" in person.act("verify")


# Each button does what its command does


def test_approve_is_for_the_job_file_that_was_shown(person: Browser) -> None:
    shown = person.client.get("/jobs/wear-2").text
    digest = re.search(r'name="digest" value="(\w+)"', shown)
    assert digest is not None
    save(person.home, changed := job_of("wear-2", "Tool wear, second season", rounds=21))
    assert "it is not the job file you reviewed" in person.act("approve", job="wear-2", digest=digest[1])
    assert decision_on(person.home, changed) is None
    assert "You approved wear-2" in person.act("approve", job="wear-2", digest=changed.digest().hex())
    stored = decision_on(person.home, changed)
    assert stored is not None
    assert stored.verdict is Verdict.APPROVED


def test_approve_is_for_the_package_that_was_shown(person: Browser) -> None:
    job, package = offer_package(person.home)
    form = {"job": job.id, "digest": job.digest().hex()}
    shown = person.client.get(f"/jobs/{job.id}").text
    assert re.findall(r'name="package" value="(\w*)"', shown) == [package.digest]
    other = pump({"pump_model/__init__.py": PUMP_SOURCE}, outputs="something else")  # the same code, in other words
    PackageShelf(person.home.models).keep(other.to_bytes(), other.digest)
    before = files(person.home)
    for wrong in ({}, {"package": ""}, {"package": "00" * 32}, {"package": "../keys"}):
        assert "notice bad" in person.act("approve", **form, **wrong)
        assert files(person.home) == before
    assert "You approved pumps-1" in person.act("approve", **form, package=package.digest)
    stored = decision_on(person.home, job)
    assert stored is not None
    assert (stored.verdict, stored.package) == (Verdict.APPROVED, package.digest)
    assert PackageShelf(person.home.models).verified(package.digest)


def test_a_job_whose_model_comes_with_dure_takes_no_package(person: Browser) -> None:
    form = {"job": "wear-2", "digest": WAITING.digest().hex(), "package": "00" * 32}
    assert "notice bad" in person.act("approve", **form)
    assert decision_on(person.home, WAITING) is None


def test_what_the_policy_does_not_admit_cannot_be_approved(tmp_path: Path) -> None:
    person = browser(make_home(tmp_path / "strange", accepts=False))
    person.sign_in()
    shown = person.client.get("/jobs/wear-2").text
    assert "Your policy does not admit it" in words(shown)
    assert "dure-agent accept" in words(shown)
    assert 'action="/acts/approve"' not in shown
    digest = WAITING.digest().hex()
    assert "is not accepted here" in person.act("approve", job="wear-2", digest=digest)
    assert decision_on(person.home, WAITING) is None


def test_reject(person: Browser) -> None:
    assert "You rejected wear-2" in person.act("reject", job="wear-2")
    stored = decision_on(person.home, WAITING)
    assert stored is not None
    assert stored.verdict is Verdict.REJECTED


@pytest.mark.parametrize("job", ["", "heat-1"])
def test_pause_and_resume(person: Browser, job: str) -> None:
    assert "is paused here" in person.act("pause", job=job, hours="8")
    kept = absence.pause_in_force(person.home, job or None, NOW)
    assert kept is not None
    assert kept.until is not None
    assert (kept.until - NOW).total_seconds() == 8 * 3600
    assert "goes on here" in person.act("resume", job=job)
    assert absence.pause_in_force(person.home, job or None, NOW) is None
    person.act("pause", job=job)
    assert absence.pause_in_force(person.home, job or None, NOW) == absence.Pause()


@pytest.mark.parametrize("form", [{"job": "../state"}, {"job": "none"}, {"hours": "-1"}, {"hours": "9" * 30}])
def test_a_form_that_no_page_wrote_pauses_nothing(person: Browser, form: dict[str, str]) -> None:
    before = files(person.home)
    person.act("pause", **form)
    assert files(person.home) == before


def test_verify_tells_the_ledgers_end(person: Browser) -> None:
    assert "The ledger holds: 114 records" in words(person.act("verify"))


@contextmanager
def another_writes(home: AgentHome) -> Iterator[None]:
    with Ledger(home.ledger_file, OWN):
        yield


def test_asking_the_server_is_left_to_the_agent_while_it_runs(person: Browser) -> None:
    with another_writes(person.home):
        assert "the agent runs here and is the one that speaks to the server" in words(person.act("ask"))


def test_leaving_is_a_command_until_the_page_can_do_it(person: Browser) -> None:
    assert "dure-agent leave heat-1" in words(person.client.get("/jobs/heat-1").text)
    assert 'action="/acts/leave"' not in person.client.get("/jobs/heat-1").text
    assert "leave by typing the command" in person.act("leave", job="heat-1", typed="heat-1")


def test_leaving_wants_the_jobs_name(home: AgentHome) -> None:
    left: list[str] = []

    def leave(_: AgentHome, job: str) -> str:
        left.append(job)
        return "What is in 7 sums stays there."

    person = browser(home, leave)
    person.sign_in()
    assert 'action="/acts/leave"' in person.client.get("/jobs/heat-1").text
    assert "type the job&#39;s name" in person.act("leave", job="heat-1", typed="heat")
    assert left == []
    assert "What is in 7 sums stays there." in person.act("leave", job="heat-1", typed="heat-1")
    assert left == ["heat-1"]


def test_a_taken_port_is_told(home: AgentHome) -> None:
    taken: list[str] = []

    def tell(address: str, _: Access) -> None:
        taken.append(address)
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(PageError, match="Name another with --port"):
            serve(home, port, lambda *_: None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(home, 0, tell)
    assert taken
