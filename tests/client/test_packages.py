"""Model packages at a firm: nothing of one runs before its people approved it, or that they did not."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dure_client.cli import app
from dure_client.home import AgentHome, write_file
from dure_client.jobs import review
from dure_client.jobs.approvals import KnownJob, Verdict, decide, decision_on, known_job
from dure_client.jobs.firm import Firm
from dure_client.jobs.side import Given
from dure_client.packages.admission import JobModel
from dure_client.packages.shelf import INSTALLED, PACKAGE_FILE, PackageChangedError, PackageError, PackageShelf
from dure_client.policy import Policy, PolicyError, allow_model, read_text
from dure_client.trainer.client import StatisticsSums, TrainerClient
from dure_client.trainer.messages import TrainerCode, TrainerError, TrainingSpec
from dure_client.trainer.process import TrainerPlaces
from dure_lab.homes import OWN_TERMS, by_itself
from dure_models.packages import WheelError, checked_files, unpacked
from dure_protocols.errors import RefusalCode
from dure_protocols.identity import grouped
from dure_protocols.job import CodecTerms, JobFile
from dure_protocols.messages import Approval, Proposal, Refusal, encode
from dure_protocols.model_package import ModelPackage
from dure_server.jobs import JobDraft, make_job
from tests.compatibility import three_firms
from tests.model_packages.made import AUTHOR, STRANGER, logit, pump
from tests.models.samples import PRESS

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
OWN = three_firms.FIRMS[0]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return logit(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def republished(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    def harder(source: str) -> str:
        return source.replace('reduction="none")', 'reduction="none") * 2')

    return logit(tmp_path_factory.mktemp("packed"), version="1.1", author=STRANGER, change=harder)


def job_of(package: ModelPackage, name: str = "pressed") -> JobFile:
    """The job that an operator would make of a published package."""
    draft = JobDraft(
        id=name,
        title="A job with a model of somebody else's",
        simulated=True,
        model="logit",
        contract="",
        rounds=1,
        seed=len(name),
        codec=CodecTerms(clip=0.05, count_cap=160),
        training={"learning_rate": 0.01, "local_epochs": 1},
    )
    firms = {firm: three_firms.public_key(firm).hex() for firm in three_firms.FIRMS}
    with unpacked(checked_files(package.wheel, package.manifest), package.manifest.module):
        return make_job(draft, PRESS, three_firms.CONSORTIUM, firms)[0]


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    three_firms.write_data(tmp_path / "data")
    return three_firms.make_homes(tmp_path / "firms", tmp_path / "data")[OWN]


@pytest.fixture
def firm(home: AgentHome) -> Iterator[Firm]:
    with closing(Firm(home)) as made:
        yield made


@pytest.fixture
def shelf(home: AgentHome) -> PackageShelf:
    return PackageShelf(home.models)


def approve(home: AgentHome, job: JobFile, package: ModelPackage) -> None:
    """Fetch and approve a package for a job, as the commands do."""
    shelf = PackageShelf(home.models)
    shelf.keep(package.to_bytes(), package.digest)
    shelf.install(package.digest, NOW)
    decide(home, job, Verdict.APPROVED, NOW, package=package.digest)


def said(firm: Firm, job: JobFile) -> RefusalCode | None:
    """What the firm answers to the proposal of a job: a refusal's code, None for an approval."""
    message = firm.answer(encode(Proposal(job.to_bytes())), Given()).message
    assert isinstance(message, Approval | Refusal)
    return message.code if isinstance(message, Refusal) else None


def is_ready_for_the_next_job(firm: Firm, home: AgentHome) -> bool:
    job, _ = three_firms.make_the_job()
    decide(home, job, Verdict.APPROVED, NOW)
    return said(firm, job) is None


def run(home: AgentHome, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, [*arguments, "--home", str(home.path)], env={"COLUMNS": "200", "NO_COLOR": "1"}, input="y\n"
    )


def test_a_job_whose_package_was_not_fetched_is_refused(firm: Firm, home: AgentHome, packed: ModelPackage) -> None:
    job = job_of(packed)
    decide(home, job, Verdict.APPROVED, NOW, package=None)
    assert said(firm, job) is RefusalCode.UNKNOWN_MODEL
    assert is_ready_for_the_next_job(firm, home)


def test_a_package_that_was_only_fetched_does_not_run_though_the_job_was_approved(
    firm: Firm, home: AgentHome, shelf: PackageShelf, packed: ModelPackage
) -> None:
    shelf.keep(packed.to_bytes(), packed.digest)
    job = job_of(packed)
    decide(home, job, Verdict.APPROVED, NOW)
    assert said(firm, job) is RefusalCode.NOT_APPROVED
    assert not (shelf.folder_of(packed.digest) / INSTALLED).exists()
    assert is_ready_for_the_next_job(firm, home)


def test_a_job_with_the_very_package_that_was_approved_is_taken(
    firm: Firm, home: AgentHome, packed: ModelPackage
) -> None:
    job = job_of(packed)
    approve(home, job, packed)
    assert said(firm, job) is None


def test_a_package_approved_for_one_job_is_not_approved_for_another(
    firm: Firm, home: AgentHome, packed: ModelPackage
) -> None:
    approve(home, job_of(packed), packed)
    other = job_of(packed, "another")
    assert said(firm, other) is RefusalCode.NOT_APPROVED
    decide(home, other, Verdict.APPROVED, NOW)
    assert said(firm, other) is RefusalCode.NOT_APPROVED
    decide(home, other, Verdict.APPROVED, NOW, package=packed.digest)
    assert said(firm, other) is None


def test_a_package_that_is_on_the_allow_list_by_the_digest_of_its_code_is_taken(
    firm: Firm, home: AgentHome, shelf: PackageShelf, packed: ModelPackage
) -> None:
    job = job_of(packed)
    write_file(home.policy_file, allow_model(read_text(home.policy_file), "logit", job.model.digest).encode())
    decide(home, job, Verdict.APPROVED, NOW)
    shelf.keep(packed.to_bytes(), packed.digest)
    assert said(firm, job) is RefusalCode.NOT_APPROVED  # listed, but no person's command has installed it
    shelf.install(packed.digest, NOW)
    assert said(firm, job) is None


def test_a_job_that_means_another_version_than_the_approved_one_is_refused(
    firm: Firm, home: AgentHome, packed: ModelPackage, republished: ModelPackage
) -> None:
    approve(home, job_of(packed), packed)
    changed = job_of(republished, "changed")
    decide(home, changed, Verdict.APPROVED, NOW, package=packed.digest)
    assert said(firm, changed) is RefusalCode.MODEL_DIGEST
    assert is_ready_for_the_next_job(firm, home)


def one_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))


def linked(file: Path) -> None:
    target = file.with_name("elsewhere")
    file.rename(target.parent.parent.parent / "elsewhere")
    file.symlink_to(target.parent.parent.parent / "elsewhere")


def added(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "one byte of an installed source": (f"{INSTALLED}/logit_model/model.py", one_byte),
    "a source taken away": (f"{INSTALLED}/logit_model/model.py", Path.unlink),
    "a source that is a link": (f"{INSTALLED}/logit_model/model.py", linked),
    "byte-code that Python would take for the source": (
        f"{INSTALLED}/logit_model/__pycache__/model.cpython-311.pyc", added,
    ),
    "the list of files, which is never unpacked": (f"{INSTALLED}/logit_model-1.0.dist-info/RECORD", added),
    "a module beside the package": (f"{INSTALLED}/sitecustomize.py", added),
    "one byte of the fetched file": (PACKAGE_FILE, one_byte),
    "the fetched file taken away": (PACKAGE_FILE, Path.unlink),
}  # fmt: skip


@pytest.mark.parametrize(("path", "change"), CHANGES.values(), ids=CHANGES)
def test_a_package_whose_bytes_changed_since_is_refused_by_agent_and_trainer(
    firm: Firm, home: AgentHome, shelf: PackageShelf, packed: ModelPackage, path: str, change: Callable[[Path], None]
) -> None:
    job = job_of(packed)
    approve(home, job, packed)
    change(shelf.folder_of(packed.digest) / path)
    assert said(firm, job) is RefusalCode.MODEL_DIGEST
    with pytest.raises(PackageError):
        shelf.verified(packed.digest)
    assert is_ready_for_the_next_job(firm, home)


def test_the_trainer_loads_the_package_and_refuses_it_once_it_was_changed(
    home: AgentHome, shelf: PackageShelf, packed: ModelPackage, tmp_path: Path
) -> None:
    job = job_of(packed)
    approve(home, job, packed)
    folder = shelf.folder_of(packed.digest)
    places = TrainerPlaces(tmp_path / "scratch", home.data_file, tmp_path / "log" / "trainer.log", package=folder)
    assert folder in places.readable
    with TrainerClient(TrainingSpec.of(job), places) as trainer:
        statistics = trainer.statistics()
        trained = trainer.train(
            np.array(trainer.initial()),
            StatisticsSums(statistics.sums, statistics.count),
            round_number=1,
            seed=1,
        )
        assert np.any(trained.update)
    added(folder / INSTALLED / "logit_model" / "more.py")
    with TrainerClient(TrainingSpec.of(job), places) as trainer, pytest.raises(TrainerError) as caught:
        trainer.open()
    assert caught.value.code is TrainerCode.MODEL_DIGEST
    assert caught.value.refusal is RefusalCode.MODEL_DIGEST
    assert "more.py" not in str(caught.value)
    assert "more.py" in places.log.read_text()


def test_what_came_is_kept_only_if_it_is_what_was_asked_for_and_may_be_let_in(
    shelf: PackageShelf, packed: ModelPackage
) -> None:
    with pytest.raises(PackageChangedError, match="was asked for"):
        shelf.keep(packed.to_bytes(), pump().digest)
    with pytest.raises(PackageError, match="no package digest"):
        shelf.folder_of("../../etc")
    for hostile, why in (
        (pump({"evil.pth": b"import os"}), "never installed"),
        (pump({"../evil.py": b""}), "plain path"),
        (pump({"pump_model/fast.so": b"\x7fELF"}), "native code"),
        (pump(name="tabular"), "installed here already"),
    ):
        with pytest.raises(WheelError, match=why):
            shelf.keep(hostile.to_bytes(), hostile.digest)
    assert list(shelf.all()) == []


def test_people_read_a_package_and_what_is_new_in_it_and_approve_exactly_that(
    firm: Firm, home: AgentHome, shelf: PackageShelf, packed: ModelPackage, republished: ModelPackage
) -> None:
    first, second = job_of(packed), job_of(republished, "repressed")
    for job, package in ((first, packed), (second, republished)):
        said(firm, job)
        shelf.keep(package.to_bytes(), package.digest)
    seen = run(home, "review", first.id, "--source")
    assert seen.exit_code == 0, seen.output
    for expected in (
        *("logit 1.0", grouped(packed.digest), grouped(packed.manifest.model_digest), grouped(AUTHOR.fingerprint)),
        *("all columns of the contract", "probability that the target is 1", "train_loss, validation_loss"),
        *("No package of this model was approved here before", "=== logit_model/model.py", "class Logit(Model):"),
        "The policy admits it",
    ):
        assert expected in seen.stdout
    bare = run(home, "approve", first.id, "--digest", first.digest().hex())
    assert bare.exit_code == 1
    assert f"--package {packed.digest}" in bare.stderr
    done = run(home, "approve", first.id, "--digest", first.digest().hex(), "--package", packed.digest)
    assert done.exit_code == 0, done.output
    decision = decision_on(home, first)
    assert decision is not None
    assert decision.package == packed.digest
    assert said(firm, first) is None
    again = run(home, "review", second.id).stdout
    for expected in (
        "ANOTHER AUTHOR'S KEY",
        "--- approved/manifest",
        '+ "version": "1.1",',
        "+++ new/logit_model/model.py",
        '-        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")',
        '+        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none") * 2',
    ):
        assert expected in again
    assert said(firm, second) is RefusalCode.NOT_APPROVED
    assert run(home, "reject", second.id).exit_code == 0
    assert said(firm, second) is RefusalCode.REJECTED_BY_FIRM
    assert run(home, "approve", second.id).exit_code == 0
    assert said(firm, second) is None


def test_what_is_approved_is_the_package_that_was_printed_though_another_fits_better_by_now(
    monkeypatch: pytest.MonkeyPatch, firm: Firm, home: AgentHome, shelf: PackageShelf, packed: ModelPackage
) -> None:
    job = job_of(packed)
    said(firm, job)
    shelf.keep(packed.to_bytes(), packed.digest)
    other = ModelPackage.sign(packed.manifest.model_copy(update={"title": "Other words"}), packed.wheel, AUTHOR)
    checked = review.check

    def meanwhile(home: AgentHome, known: KnownJob, model: JobModel) -> None:
        shelf.keep(other.to_bytes(), other.digest)
        shelf.install(other.digest, NOW)  # goes before what nobody approved yet
        checked(home, known, model)

    monkeypatch.setattr(review, "check", meanwhile)
    done = run(home, "approve", job.id)
    assert done.exit_code == 0, done.output
    decision = decision_on(home, job)
    assert decision is not None
    assert decision.package is not None
    assert grouped(decision.package) in done.stdout


def test_a_job_file_that_changed_while_it_was_read_is_not_approved(
    firm: Firm, home: AgentHome, shelf: PackageShelf, packed: ModelPackage
) -> None:
    job = job_of(packed)
    said(firm, job)
    shelf.keep(packed.to_bytes(), packed.digest)
    found = review.review(home, known_job(home, job.id))
    changed = job.model_copy(update={"title": "Another job"})
    (home.job_folder(job.id) / "job.json").write_bytes(changed.to_bytes())
    with pytest.raises(PolicyError, match="not the job file you reviewed"):
        review.approve(home, found, NOW)
    assert decision_on(home, job) is None
    assert decision_on(home, changed) is None
    assert not any(each.approved_at for each in shelf.all())


def test_approving_again_mends_installed_files_that_were_changed(
    firm: Firm, home: AgentHome, shelf: PackageShelf, packed: ModelPackage
) -> None:
    job = job_of(packed)
    said(firm, job)
    approve(home, job, packed)
    added(shelf.folder_of(packed.digest) / INSTALLED / "more.py")
    assert said(firm, job) is RefusalCode.MODEL_DIGEST
    assert run(home, "approve", job.id).exit_code == 0
    assert said(firm, job) is None


def test_the_allow_list_takes_a_fetched_package_by_its_name(
    firm: Firm, home: AgentHome, shelf: PackageShelf, packed: ModelPackage
) -> None:
    shelf.keep(packed.to_bytes(), packed.digest)
    assert "no" in run(home, "model", "list").stdout
    assert run(home, "policy", "allow", "logit").exit_code == 0
    (kept,) = shelf.all()
    assert kept.approved_at is not None
    (allowed,) = (each for each in Policy.read(home.policy_file).allowed_models if each.name == "logit")
    assert allowed.digest == packed.manifest.model_digest
    job = job_of(packed)
    job = JobFile.model_validate({**job.model_dump(), **OWN_TERMS})
    write_file(home.policy_file, by_itself(read_text(home.policy_file)).encode())
    assert said(firm, job) is None


def test_decisions_of_earlier_versions_are_still_read(home: AgentHome) -> None:
    job, _ = three_firms.make_the_job()
    decision = decide(home, job, Verdict.APPROVED, NOW)
    file = home.job_folder(job.id) / "approval.json"
    older = {key: value for key, value in json.loads(file.read_text()).items() if key != "package"}
    file.write_text(json.dumps(older))
    assert decision_on(home, job) == decision
