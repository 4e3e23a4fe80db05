"""The commands of consent, as people type them: vouch, vouches, policy check and explain, jobs, leave."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dure_client.cli import app
from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import APPROVAL_FILE, decision_on
from dure_client.jobs.folder import JobFolder
from dure_client.jobs.refusals import note_refusal
from dure_client.policy import read_text
from dure_protocols.certificates import Authority, key_to_pem, new_tls_key, signing_request
from dure_protocols.errors import RefusalCode
from dure_protocols.identity import Identity
from dure_protocols.job import JobFile
from tests.compatibility import three_firms

NEWCOMER = Identity.from_seed(b"\x09" * 32)


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, AgentHome]:
    three_firms.write_data(tmp_path / "data")
    return three_firms.make_homes(tmp_path / "firms", tmp_path / "data")


@pytest.fixture
def job(homes: dict[str, AgentHome]) -> JobFile:
    """A job with a newcomer, as firm-a was proposed it."""
    made, _ = three_firms.make_the_job()
    made = JobFile.model_validate(
        made.model_dump() | {"firms": {**made.firms, "newcomer": NEWCOMER.public_bytes.hex()}}
    )
    JobFolder(homes["firm-a"].job_folder(made.id)).save_job(made)
    return made


def agent(home: AgentHome, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--home", str(home.path)])


def test_a_newcomer_is_taken_once_enough_accepted_firms_have_vouched_for_it(
    homes: dict[str, AgentHome], job: JobFile, tmp_path: Path
) -> None:
    home = homes["firm-a"]
    text = read_text(home.policy_file)
    write_file(home.policy_file, text.replace("vouchers_needed = 0", "vouchers_needed = 2").encode())
    for voucher, says in (("firm-b", "the code roster"), ("firm-c", "a person's yes is missing")):
        refused = agent(home, "policy", "check", job.id)
        assert refused.exit_code == 1
        assert "the code roster" in refused.stdout
        file = tmp_path / f"{voucher}.vouch"
        assert agent(homes[voucher], "vouch", "newcomer", NEWCOMER.fingerprint, "--out", str(file)).exit_code == 0
        taken = agent(home, "vouches", str(file))
        assert "yes" in taken.stdout
        checked = agent(home, "policy", "check", job.id)
        assert (checked.exit_code, says in checked.stdout) == (int("roster" in says), True)
    assert "vouched for by firm-b, firm-c" in agent(home, "review", job.id).stdout
    assert agent(home, "approve", job.id, "--digest", job.digest().hex()).exit_code == 0
    assert "takes part" in agent(home, "policy", "check", job.id).stdout


def test_a_changed_vouch_is_not_taken(homes: dict[str, AgentHome], tmp_path: Path) -> None:
    file = tmp_path / "a.vouch"
    agent(homes["firm-b"], "vouch", "newcomer", NEWCOMER.fingerprint, "--out", str(file))
    file.write_text(file.read_text().replace(b"newcomer".hex(), b"newcomes".hex()))
    refused = agent(homes["firm-a"], "vouches", str(file))
    assert refused.exit_code == 1
    assert not homes["firm-a"].vouches.exists()


def test_the_policy_is_explained_in_sentences(homes: dict[str, AgentHome]) -> None:
    told = agent(homes["firm-a"], "policy", "explain").stdout
    assert "A person here approves every job before anything is computed." in told
    assert "accepted here by fingerprint: firm-b, firm-c" in told


def test_the_reason_of_a_refusal_is_shown_here(homes: dict[str, AgentHome], job: JobFile) -> None:
    note_refusal(homes["firm-a"], job.id, RefusalCode.PURPOSE, "the job is for [pricing]", datetime.now(UTC))
    for words in (("jobs",), ("review", job.id)):
        assert "(purpose): the job is for [pricing]" in agent(homes["firm-a"], *words).stdout


@pytest.mark.parametrize("word", ["approve", "reject"])
def test_a_damaged_decision_is_decided_again(homes: dict[str, AgentHome], job: JobFile, word: str) -> None:
    home = homes["firm-a"]
    write_file(home.policy_file, read_text(home.policy_file).replace("vouchers_needed = 0", "").encode())
    assert agent(home, "accept", "newcomer", NEWCOMER.fingerprint).exit_code == 0
    file = home.job_folder(job.id) / APPROVAL_FILE
    file.write_bytes(b'{"job": "pre')
    told = agent(home, "policy", "check", job.id)
    assert "approval.json is damaged: decide again" in " ".join(told.stdout.split())
    assert "proposed" in agent(home, "jobs").stdout
    options = ("--digest", job.digest().hex()) if word == "approve" else ()
    done = agent(home, word, job.id, *options)
    assert done.exit_code == 0, done.output
    decision = decision_on(home, job)
    assert decision is not None
    assert decision.verdict.value.startswith(word)


@pytest.mark.parametrize("words", [("leave",), ("leave", "press", "--consortium")])
def test_leaving_asks_for_one_thing_to_leave(homes: dict[str, AgentHome], words: tuple[str, ...]) -> None:
    assert agent(homes["firm-a"], *words).exit_code == 1


def test_leaving_is_asked_about_and_nothing_changes_on_a_no(homes: dict[str, AgentHome], job: JobFile) -> None:
    home = homes["firm-a"]
    said = CliRunner().invoke(app, ["leave", job.id, "--home", str(home.path)], input="n\n")
    assert said.exit_code == 1
    assert "cannot be taken back" in said.stdout
    assert not (home.job_folder(job.id) / "leave.bin").exists()


def test_without_agent_and_server_the_firm_has_left_all_the_same(homes: dict[str, AgentHome], job: JobFile) -> None:
    home, key = homes["firm-a"], new_tls_key()
    root = Authority.create("valley", datetime.now(UTC), key=new_tls_key(), serial=7)
    write_file(home.root_file, root.certificate_pem)
    write_file(home.tls_key_file, key_to_pem(key))
    pem = root.issue_client("firm-a", signing_request(key), datetime.now(UTC), serial=8)
    write_file(home.tls_certificate_file, pem)
    write_file(home.job_folder(job.id) / "session.bin", b"keys")
    left = agent(home, "leave", job.id, "--yes", "--seconds", "0.5")
    assert left.exit_code == 0
    assert "has not heard of it yet" in left.stdout
    assert not (home.job_folder(job.id) / "session.bin").exists()
    assert "the code left" in agent(home, "policy", "check", job.id).stdout
    assert "left" in agent(home, "jobs").stdout
