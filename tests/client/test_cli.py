"""`dure-agent` as a firm's people use it."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dure_client.absence import pause_in_force
from dure_client.cli import app
from dure_client.home import AgentConfig, AgentHome, keep_or_make_private
from dure_client.jobs.approvals import Verdict, decide, decision_on, known_job
from dure_client.jobs.folder import Progress
from dure_client.jobs.results import JobResult, Keeps, ModelReport
from dure_client.ledger import Ledger
from dure_client.policy import Policy
from dure_models.contract import DataContract
from dure_models.digest import model_digest
from dure_protocols.certificates import Authority, new_serial, new_tls_key
from dure_protocols.identity import Identity, grouped
from dure_protocols.job import CodecTerms, JobFile, ModelTerms
from dure_protocols.ledger import Entry, RecordKind

OWN, LEE, PARK = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
ROOT = Authority.create("Test", datetime.now(UTC), key=new_tls_key(), serial=new_serial())
CONTRACT = DataContract.from_toml(
    """
    name = "pumps"
    title = "Pumps, simulated"
    simulated = true
    [[columns]]
    name = "flow"
    type = "float"
    role = "feature"
    range = [0, 10]
    """
)


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    """The home of a firm that has joined, with one proposed job."""
    home = AgentHome(tmp_path / "home")
    home.create()
    keep_or_make_private(home.identity_key_file, OWN.to_pem())
    home.write_config(
        AgentConfig(
            consortium="Test", firm="kim", server_host="localhost", enrolment_port=1, link_port=2,
            root_fingerprint="00" * 32,
        )
    )  # fmt: skip
    home.root_file.write_bytes(ROOT.certificate_pem)
    save(home, job_of())
    return home


def job_of(**changes: object) -> JobFile:
    fields: dict[str, object] = {
        "id": "job-1",
        "title": "Milling [all plants]",
        "consortium": "Test",
        "firms": {"kim": OWN.public_bytes.hex(), "lee": LEE.public_bytes.hex(), "park": PARK.public_bytes.hex()},
        "minimum_cohort": 3,
        "model": ModelTerms(
            name="tabular", digest=model_digest("tabular"), parameters=10, initial_digest="00" * 32,
            round_metrics=("train_loss",),
        ),
        "contract": json.loads(CONTRACT.canonical_json()),
        "codec": CodecTerms(clip=1.0, count_cap=100),
        "rounds": 3,
        "seed": 1,
    }  # fmt: skip
    return JobFile.model_validate({**fields, **changes})


def save(home: AgentHome, job: JobFile) -> None:
    home.job_folder(job.id).mkdir(exist_ok=True)
    (home.job_folder(job.id) / "job.json").write_bytes(job.to_bytes())


def run(home: AgentHome, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(
        app, [*arguments, "--home", str(home.path)], input=answer, env={"COLUMNS": "200", "NO_COLOR": "1"}
    )


def fails(home: AgentHome, *arguments: str) -> str:
    result = run(home, *arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    return result.stderr


def accept_all(home: AgentHome) -> None:
    for firm, identity in {"lee": LEE, "park": PARK}.items():
        assert run(home, "accept", firm, grouped(identity.fingerprint)).exit_code == 0
    assert run(home, "policy", "allow", "tabular").exit_code == 0


def test_from_a_proposal_to_an_approval(home: AgentHome) -> None:
    assert "proposed" in run(home, "jobs").stdout
    assert "dure-agent accept lee" in fails(home, "approve", "job-1")
    accept_all(home)
    reviewed = run(home, "review", "job-1").stdout
    for expected in (
        *("Milling [all plants]", "tabular", "pumps", grouped(LEE.fingerprint), "The policy admits it"),
        *(grouped(job_of().digest().hex()), "no differential privacy", "train_loss"),
        *("Pumps, simulated", "0 … 10", grouped(CONTRACT.digest())),
    ):
        assert expected in reviewed
    assert run(home, "approve", "job-1", answer="n\n").exit_code == 1
    assert decision_on(home, job_of()) is None
    assert run(home, "approve", "job-1", answer="y\n").exit_code == 0
    stored = decision_on(home, job_of())
    assert stored is not None
    assert stored.verdict is Verdict.APPROVED
    assert "approved" in run(home, "jobs").stdout
    assert "To take part" in reviewed
    assert "Here it is approved" in run(home, "review", "job-1").stdout
    assert run(home, "reject", "job-1").exit_code == 0
    assert known_job(home, "job-1").state == "rejected"


def test_an_approval_is_for_one_digest(home: AgentHome) -> None:
    accept_all(home)
    reviewed = grouped(job_of().digest().hex())
    save(home, job_of(rounds=4))
    assert "not the job file you reviewed" in fails(home, "approve", "job-1", "--digest", reviewed)
    assert run(home, "approve", "job-1", "--digest", job_of(rounds=4).digest().hex()).exit_code == 0
    save(home, job_of(rounds=5))
    assert known_job(home, "job-1").state == "proposed"


@pytest.mark.parametrize("name", ["job-2", "../job-1", "/etc", ""])
def test_an_unknown_job_is_told_with_those_there_are(home: AgentHome, name: str) -> None:
    assert "known: job-1" in fails(home, "review", name)


def test_a_damaged_job_file_and_decision_are_told(home: AgentHome) -> None:
    decide(home, job_of(), Verdict.APPROVED, datetime(2026, 1, 31, tzinfo=UTC))
    (home.job_folder("job-1") / "approval.json").write_text("{")
    assert "proposed" in run(home, "jobs").stdout
    assert "decide again" in run(home, "review", "job-1").stdout
    (home.job_folder("job-1") / "job.json").write_text("{")
    assert "damaged" in fails(home, "review", "job-1")


def test_states_follow_the_job_folder(home: AgentHome) -> None:
    decide(home, job_of(), Verdict.APPROVED, datetime(2026, 1, 31, tzinfo=UTC))
    folder = home.job_folder("job-1")
    progress = Progress(round=2, digest="00" * 32, normalisation=None, best=None, clip=1.0, residual=None)
    (folder / "progress.json").write_text(progress.model_dump_json())
    assert "running (round 2 of 3)" in run(home, "jobs").stdout
    (folder / "final.f32").write_bytes(b"")
    both = {"rmse": 2.0, "undefined": None}
    result = JobResult(
        job="job-1", num_train=1, num_validation=1, num_test=1, primary_metric="rmse", higher_is_better=False,
        alone=ModelReport(validation={"rmse": 1.0}, test=both), federated=ModelReport(validation=both, test=both),
    )  # fmt: skip
    result.write(folder / "result.json")
    shown = " ".join(run(home, "jobs").stdout.split())
    assert "finished" in shown
    assert "rmse on validation rows, which decide 1 2" in shown
    assert "the alone model" in shown


@pytest.mark.parametrize(
    ("alone", "federated", "higher_is_better", "keeps"),
    [
        pytest.param(1.0, 2.0, False, Keeps.ALONE, id="a lower error alone"),
        pytest.param(2.0, 1.0, False, Keeps.FEDERATED, id="a lower error together"),
        pytest.param(1.0, 2.0, True, Keeps.FEDERATED, id="a higher score together"),
        pytest.param(2.0, 1.0, True, Keeps.ALONE, id="a higher score alone"),
        pytest.param(1.0, 1.0, True, Keeps.FEDERATED, id="no difference"),
        pytest.param(None, 1.0, True, Keeps.FEDERATED, id="undefined"),
    ],
)
def test_the_better_model_on_validation_rows_is_kept(
    alone: float | None, federated: float, higher_is_better: bool, keeps: Keeps, tmp_path: Path
) -> None:
    result = JobResult(
        job="job-1", num_train=1, num_validation=1, num_test=0, primary_metric="m", higher_is_better=higher_is_better,
        alone=ModelReport(validation={"m": alone}, test={}),
        federated=ModelReport(validation={"m": federated}, test={}),
    )  # fmt: skip
    result.write(tmp_path / "result.json")
    assert JobResult.read(tmp_path / "result.json").keeps is keeps


def test_accept_pins_a_firm_and_guards_the_pin(home: AgentHome) -> None:
    assert run(home, "accept", "lee", LEE.fingerprint).exit_code == 0
    assert "--replace" in fails(home, "accept", "lee", PARK.fingerprint)
    replaced = run(home, "accept", "lee", PARK.fingerprint, "--replace")
    assert replaced.exit_code == 0
    assert f"gives lee another key, {grouped(LEE.fingerprint)}" in replaced.stdout
    assert "job-1 has no firm le: kim, lee, park" in run(home, "accept", "le", LEE.fingerprint).stdout
    assert "job" not in run(home, "accept", "park", PARK.fingerprint).stdout
    pinned = {"lee": PARK.fingerprint, "le": LEE.fingerprint, "park": PARK.fingerprint}
    assert Policy.read(home.policy_file).firms == pinned
    assert home.policy_file.stat().st_mode & 0o777 == 0o600
    shown = run(home, "policy", "show").stdout
    assert grouped(PARK.fingerprint) in shown


def test_policy_init_writes_the_default_once(home: AgentHome) -> None:
    assert "strict default" in run(home, "policy", "show").stdout
    assert run(home, "policy", "init").exit_code == 0
    assert Policy.read(home.policy_file) == Policy()
    assert "already there" in fails(home, "policy", "init")
    assert "is not here" in fails(home, "policy", "allow", "no-such-model")
    assert run(home, "policy", "allow", "tabular").exit_code == 0
    assert Policy.read(home.policy_file).allowed_models[0].digest == model_digest("tabular")


def write_rows(folder: Path, num_rows: int) -> None:
    (folder / "rows.csv").write_text("\n".join(["flow", *("1" for _ in range(num_rows))]))


@pytest.mark.parametrize("against", ["job", "contract"])
def test_data_check_counts_the_rows_that_are_left_to_train_on(home: AgentHome, tmp_path: Path, against: str) -> None:
    contract = tmp_path / "contract.toml"
    contract.write_text(CONTRACT.to_toml())
    check = ("data", "check", *(("--job", "job-1") if against == "job" else ("--contract", str(contract))))
    home.data_file.write_text(f'[train]\npaths = ["{tmp_path}/rows.csv"]\n')
    write_rows(tmp_path, 20)
    told = fails(home, *check)
    for expected in (
        "16 of 20 rows",
        "minimum_rows = 100 of policy.toml",
        "refused with `data`",
        "[train] in data.toml",
    ):
        assert expected in " ".join(told.split())
    write_rows(tmp_path, 125)
    assert run(home, *check).exit_code == 0
    write_rows(tmp_path, 124)
    assert "99 of 124 rows" in fails(home, *check)
    home.policy_file.write_text("minimum_rows = 16")
    write_rows(tmp_path, 20)
    assert run(home, *check).exit_code == 0
    home.policy_file.write_text("minimum_rows = 1")
    write_rows(tmp_path, 2)
    assert "none is left to validate" in fails(home, *check)


def test_data_check_parts_the_rows_as_the_job_says(home: AgentHome, tmp_path: Path) -> None:
    home.data_file.write_text(f'[train]\npaths = ["{tmp_path}/rows.csv"]\n')
    write_rows(tmp_path, 125)
    save(home, job_of(training={"validation_fraction": 0.5}))
    assert "63 of 125 rows" in fails(home, "data", "check", "--job", "job-1")


def test_data_check_passes_and_fails_with_details(home: AgentHome, tmp_path: Path) -> None:
    assert "data init" in fails(home, "data", "check")
    assert run(home, "data", "init").exit_code == 0
    assert "already there" in fails(home, "data", "init")
    write_rows(tmp_path, 125)
    home.data_file.write_text(f'[train]\npaths = ["{tmp_path}/rows.csv"]\n')
    passed = run(home, "data", "check")
    assert passed.exit_code == 0
    assert "pumps" in passed.stdout
    assert "rows.csv" in passed.stdout
    (tmp_path / "rows.csv").write_text("flow\n1\n20\n")
    assert "outside [0, 10]" in fails(home, "data", "check", "--job", "job-1")
    contract = tmp_path / "contract.toml"
    contract.write_text(CONTRACT.to_toml().replace('"flow"', '"speed"'))
    assert "'speed'" in fails(home, "data", "check", "--contract", str(contract))
    (home.job_folder("job-1") / "job.json").unlink()
    assert "--contract" in fails(home, "data", "check")


def test_the_ledger_is_shown_verified_and_exported(home: AgentHome, tmp_path: Path) -> None:
    with Ledger(home.ledger_file, OWN) as ledger:
        for number in range(30):
            ledger.record(Entry(RecordKind.JOIN, 1000, hashlib.sha256(b"").digest(), "job-1", number))
        ledger.record(Entry(RecordKind.NOT_SENT, 500, hashlib.sha256(b"").digest(), "job-1", 29))
    shown = run(home, "ledger", "show", "--last", "2").stdout
    assert "29,500" in shown
    assert "job-1, 30 sums" in shown
    assert "31 records, 29,500 bytes" in run(home, "ledger", "verify").stdout
    export = tmp_path / "export.jsonl"
    assert run(home, "ledger", "export", str(export)).exit_code == 0
    assert run(home, "ledger", "verify", str(export), "--fingerprint", OWN.fingerprint).exit_code == 0
    assert "another firm's" in fails(home, "ledger", "verify", str(export), "--fingerprint", LEE.fingerprint)
    assert run(home, "ledger", "verify", str(export)).exit_code == 2
    home.ledger_file.write_bytes(home.ledger_file.read_bytes().replace(b'"round":7', b'"round":8'))
    assert "line 8 was changed" in fails(home, "ledger", "verify")


@pytest.mark.parametrize("name", ["out.html", "out.HTML", "home/ledger/ledger.jsonl", "home/ledger/out.jsonl", "home"])
def test_an_export_destroys_neither_itself_nor_the_ledger(home: AgentHome, tmp_path: Path, name: str) -> None:
    with Ledger(home.ledger_file, OWN) as ledger:
        ledger.record(Entry(RecordKind.JOIN, 1000, hashlib.sha256(b"").digest(), "job-1", 1))
    before = home.ledger_file.read_bytes()
    assert "name a" in fails(home, "ledger", "export", str(tmp_path / name))
    assert home.ledger_file.read_bytes() == before
    assert not list(tmp_path.glob("out*"))
    assert run(home, "ledger", "verify").exit_code == 0


def test_a_home_without_a_firm_says_what_to_do(tmp_path: Path) -> None:
    assert "dure-agent join" in fails(AgentHome(tmp_path), "run")


def test_running_with_damaged_settings_ends_with_the_status_that_starts_nothing_again(tmp_path: Path) -> None:
    home = AgentHome(tmp_path)
    home.config_file.write_text("firm = ")
    assert run(home, "run").exit_code == 78
    assert run(home, "server", "set", "other.example").exit_code == 1  # what a service manager does not start


def test_an_agent_with_a_bad_policy_says_so_once_at_its_start(home: AgentHome) -> None:
    home.policy_file.write_text("minimum_cohrt = 3")
    command = [sys.executable, "-m", "dure_client.cli", "run", "--home", str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1  # without a certificate; that comes after it
    assert done.stderr.count("every job is refused until policy.toml is valid") == 1
    assert "minimum_cohrt: no such field; did you mean minimum_cohort?" in done.stderr


def test_debug_shows_where_an_error_came_from(home: AgentHome) -> None:
    result = CliRunner().invoke(app, ["--debug", "review", "job-2", "--home", str(home.path)])
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "ApprovalError"


def test_the_program_starts_light() -> None:
    heavy = "{'torch', 'polars', 'flwr', 'numba', 'fastapi'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, dure_client.cli; print({heavy})"],
        stdout=subprocess.PIPE, check=True, timeout=60, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.stdout.strip() == b"set()"


@pytest.mark.parametrize("job", [[], ["job-1"]], ids=["every job", "one job"])
def test_a_pause_holds_until_resume_or_for_so_many_hours(home: AgentHome, job: list[str]) -> None:
    assert "until `dure-agent resume" in run(home, "pause", *job).stdout
    name, now = (job or [None])[0], datetime.now(UTC)
    held = pause_in_force(home, name, now)
    assert held is not None
    assert held.until is None
    assert run(home, "pause", *job, "--hours", "2").exit_code == 0
    assert pause_in_force(home, name, now + timedelta(minutes=119)) is not None
    assert pause_in_force(home, name, now + timedelta(minutes=121)) is None
    assert "goes on here" in run(home, "resume", *job).stdout
    assert "Nothing was paused" in run(home, "resume", *job).stdout


def test_a_pause_of_an_unknown_job_says_which_there_are(home: AgentHome) -> None:
    refused = run(home, "pause", "job-9")
    assert refused.exit_code != 0
    assert "known: job-1" in " ".join(refused.stderr.split())
