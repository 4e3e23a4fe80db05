"""What people see of a model package before they approve it: of the commands and of the firm's page."""

from collections.abc import Mapping
from dataclasses import dataclass

from dure_client.packages.reading import difference, shown, sources
from dure_client.packages.shelf import PackageShelf, Shelved
from dure_models.contract import DataContract
from dure_protocols.identity import grouped
from dure_protocols.job import JobFile
from dure_protocols.model_package import ModelManifest

SAID = "The author says so and signed it; only the source shows what the code does."


@dataclass(frozen=True)
class PackageView:
    """A package in words. Every text is plain: what would act or hide is written out.

    facts: what its manifest says, by name; warnings: what does not fit, a sentence each; before: the package of the
    same model that was approved last, None if none was; changes: the unified difference to it, lines without their
    ends; files: each file's text, by path; num_bytes: of all files.
    """

    digest: str
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    before: Shelved | None
    changes: tuple[str, ...]
    files: Mapping[str, str]
    num_bytes: int


def look(shelf: PackageShelf, digest: str, job: JobFile | None = None) -> PackageView:
    """Look at a package that was fetched. Nothing of it runs.

    job: the one that would run it, whose terms are held against what the package says. Raises PackageError.
    """
    manifest, files, before = shelf.package(digest).manifest, shelf.files(digest), shelf.approved_before(digest)
    changes = difference(before.manifest, shelf.files(before.digest), manifest, files) if before else ()
    return PackageView(
        digest=digest,
        facts=tuple((name, shown(value)) for name, value in _facts(digest, manifest)),
        warnings=tuple(map(shown, [*_of_author(manifest, before), *_of_job(manifest, job)])),
        before=before,
        changes=tuple(changes),
        files=sources(files),
        num_bytes=sum(map(len, files.values())),
    )


def _facts(digest: str, manifest: ModelManifest) -> list[tuple[str, str]]:
    privacy = manifest.privacy
    return [
        ("Package", f"{manifest.name} {manifest.version} · {manifest.title}"),
        ("Package digest", grouped(digest)),
        ("Code's digest", grouped(manifest.model_digest)),
        ("Author", f"{manifest.author}, key {grouped(manifest.author_fingerprint)}"),
        ("Reads", "all columns of the contract" if "*" in manifest.columns else ", ".join(manifest.columns)),
        ("Gives", manifest.outputs),
        ("Sums before training", privacy.statistics),
        ("Reports in each round", ", ".join(privacy.round_metrics) or "nothing"),
        ("Clipping norm", _number(privacy.clipping_norm)),
        ("Noise multiplier", _number(privacy.noise_multiplier)),
    ]


def _of_author(manifest: ModelManifest, before: Shelved | None) -> list[str]:
    if before is None or before.manifest.author_key == manifest.author_key:
        return []
    return [
        f"ANOTHER AUTHOR'S KEY: what was approved before is signed by {grouped(before.manifest.author_fingerprint)}"
        ". Ask the author, over a way of your own, before you approve"
    ]


def _of_job(manifest: ModelManifest, job: JobFile | None) -> list[str]:
    if job is None:
        return []
    told = []
    columns = {column.name for column in DataContract.of(job.contract).columns}
    if missing := sorted(set(manifest.columns) - columns - {"*"}):
        told.append(f"The job's contract lacks columns that the package says it reads: {', '.join(missing)}")
    if "*" not in manifest.columns and (more := sorted(columns - set(manifest.columns))):
        told.append(f"The job's contract hands the model more than it says it reads: {', '.join(more)}")
    if more := sorted(set(job.model.round_metrics) - set(manifest.privacy.round_metrics)):
        told.append(f"The job reports in each round what the package does not mention: {', '.join(more)}")
    return told


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
