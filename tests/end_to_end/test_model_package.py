"""A researcher's model from its folder to a trained model at three firms, with the commands that people would use.

Real processes, real TLS. The agents run all the while; what the firms fetch, they fetch because a command asked for it.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dure_client.cli import app
from dure_client.home import AgentHome
from dure_client.jobs.approvals import Verdict, decide
from dure_client.ledger import read_records, verify_file
from dure_client.packages.shelf import INSTALLED, PackageShelf
from dure_lab.consortium import LocalConsortium
from dure_protocols.job import JobFile
from dure_protocols.ledger import RecordKind
from dure_server.store import JobState
from tests.end_to_end import tiny
from tests.end_to_end.tiny import ROWS, until
from tests.model_packages.made import LOGIT

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@dataclass
class Site:
    """Three mills that know each other and have approved nothing, and a researcher's folder."""

    consortium: LocalConsortium
    work: Path

    def command(self, program: str, *arguments: str, home: Path | None = None) -> str:
        """What a command prints; it must succeed."""
        where = ["--home", str(home)] if home else []
        command = [sys.executable, "-m", program, *arguments, *where]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=self.work)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def agent(self, firm: str, *arguments: str) -> str:
        """What a command of a firm prints: as a process at one firm, at the others, which do the same, in this one."""
        home = self.home(firm).path
        if firm == "alder":
            return self.command("dure_client.cli", *arguments, home=home)
        terminal = {"COLUMNS": "200", "NO_COLOR": "1"}
        done = CliRunner().invoke(app, [*arguments, "--home", str(home)], env=terminal)
        assert done.exit_code == 0, done.output
        return done.stdout

    def publish(self, version: str, old: str = "", new: str = "") -> str:
        """Pack the researcher's folder under a version, with a change in its source, and publish it. Its digest."""
        folder = self.work / f"logit-{version}"
        for file in sorted(LOGIT.rglob("*.*")):
            if file.is_file() and "__pycache__" not in file.parts:
                text = file.read_text().replace('version = "1.0"', f'version = "{version}"')
                target = folder / file.relative_to(LOGIT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text.replace(old, new) if old else text)
        said = self.command("dure_lab.cli", "model", "pack", folder.name, "--key", "author.key")
        digest = next(line.split()[-1] for line in said.splitlines() if "package digest" in line)
        file = f"logit-{version}.dure-model"
        assert digest in self.command("dure_server.cli", "model", "publish", file, home=self.consortium.home.path)
        return digest

    def home(self, firm: str) -> AgentHome:
        """A firm's home."""
        return self.consortium.agents[firm]

    def propose(self, name: str, **more: object) -> JobFile:
        """A job with the model of the package."""
        draft = tiny.draft(self.consortium, name, rounds=2, model="logit", options={}, **more)
        return self.consortium.propose(draft)

    def is_proposed_to(self, firm: str, job: JobFile) -> bool:
        """Whether a firm has the proposal."""
        return (self.home(firm).job_folder(job.id) / "job.json").exists()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with tiny.founded() as consortium:
        for firm in ROWS:
            tiny.give_data(consortium.enrol(firm), tiny.rows_of(firm))
        consortium.introduce("tabular")
        consortium.set_policy(minimum_cohort=2)
        for firm in ROWS:
            consortium.start_agent(firm)
        yield Site(consortium, tmp_path_factory.mktemp("researcher"))


@dataclass(frozen=True)
class First:
    """The first published package and the job that was trained with it."""

    digest: str
    job: JobFile


@pytest.fixture(scope="module")
def first(site: Site) -> First:
    """From pack to a trained model; the claims on the way are asserted here, the outcome's in the tests."""
    consortium = site.consortium
    digest = site.publish("1.0")
    job = site.propose("foreign")
    until(lambda: all(site.is_proposed_to(firm, job) for firm in ROWS), consortium)
    # Published and proposed, so the server did all it can do, and no firm has a byte of it.
    assert [list(PackageShelf(site.home(firm).models).all()) for firm in ROWS] == [[], [], []]
    until(lambda: "refused: unknown-model" in tiny.sentence(consortium, job), consortium)
    for firm in ROWS:
        assert digest in site.agent(firm, "model", "fetch", "logit")
        reviewed = site.agent(firm, "review", job.id, "--source")
        assert "=== logit_model/model.py" in reviewed
        assert "No package of this model was approved here before" in reviewed
    assert not any((PackageShelf(site.home(firm).models).folder_of(digest) / INSTALLED).exists() for firm in ROWS)
    for firm in ROWS:
        site.agent(firm, "approve", job.id, "--digest", job.digest().hex(), "--package", digest)
    until(lambda: tiny.is_finished(consortium, job), consortium)
    return First(digest, job)


def test_a_model_that_no_firm_had_is_trained_at_all_of_them_once_their_people_approved_it(
    site: Site, first: First
) -> None:
    rounds = tiny.published(site.consortium, first.job)
    assert {tuple(row.members) for row in rounds} == {tuple(sorted(ROWS))}
    finals = [np.fromfile(site.home(firm).job_folder(first.job.id) / "final.f32", "<f4") for firm in ROWS]
    assert all(np.array_equal(final, finals[0]) for final in finals)
    assert np.any(finals[0])
    for firm in ROWS:
        until(lambda firm=firm: tiny.result(site.home(firm), first.job), site.consortium)  # type: ignore[misc]


def test_what_was_asked_of_the_registry_is_in_each_ledger(site: Site, first: First) -> None:
    for firm in ROWS:
        home = site.home(firm)
        kinds = [record.entry.kind for record in read_records(home.ledger_file)]
        assert kinds.count(RecordKind.ENROLMENT) == 4  # root and join; the list and the package
        verify_file(home.ledger_file, home.identity().public_bytes)


def test_a_republished_model_shows_what_is_new_and_runs_nowhere_before_it_is_approved_too(
    site: Site, first: First
) -> None:
    consortium = site.consortium
    digest = site.publish("1.1", 'reduction="none")', 'reduction="none") * 2.0')
    job = site.propose("republished", package=digest)
    assert job.model.digest != first.job.model.digest
    until(lambda: all(site.is_proposed_to(firm, job) for firm in ROWS), consortium)
    for firm in ROWS:
        site.agent(firm, "model", "fetch", digest)
    until(lambda: tiny.sentence(consortium, job).startswith("waiting for alder, birch, cedar to approve"), consortium)
    reviewed = site.agent("alder", "review", job.id)
    assert "New since 1.0" in reviewed
    line = "        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, "
    assert f'-{line}reduction="none")\n+{line}reduction="none") * 2.0' in reviewed
    for firm in ("alder", "birch"):
        site.agent(firm, "approve", job.id, "--digest", job.digest().hex(), "--package", digest)
    site.agent("cedar", "reject", job.id)
    until(lambda: tiny.state(consortium, job)[0] is not JobState.RUNNING, consortium)
    assert tiny.state(consortium, job)[1].startswith("cedar refused the job (rejected-by-firm)")


def test_a_package_that_was_changed_at_a_firm_is_refused_there_and_the_firm_takes_the_next_job(
    site: Site, first: First
) -> None:
    consortium, home = site.consortium, site.home("alder")
    file = PackageShelf(home.models).folder_of(first.digest) / INSTALLED / "logit_model" / "model.py"
    file.write_bytes(file.read_bytes() + b"\n# more\n")
    job = site.propose("tampered", package=first.digest)
    until(lambda: all(site.is_proposed_to(firm, job) for firm in ROWS), consortium)
    decide(home, job, Verdict.APPROVED, datetime.now(UTC), package=first.digest)  # the command would mend the file
    for firm in ("birch", "cedar"):
        site.agent(firm, "approve", job.id, "--digest", job.digest().hex(), "--package", first.digest)
    until(lambda: tiny.state(consortium, job)[0] is not JobState.RUNNING, consortium)
    assert "alder refused the job (model-digest)" in tiny.state(consortium, job)[1]
    assert "is not the one that was approved" in (home.logs / "agent.log").read_text()
    following = consortium.propose(tiny.draft(consortium, "following", rounds=1))
    tiny.approve(consortium, following)
    until(lambda: tiny.is_finished(consortium, following), consortium)
