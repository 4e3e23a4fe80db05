"""Where a firm keeps model packages: models/<package digest>/ of its home.

    package.dure-model   the file as fetched; its SHA-256 is the folder's name
    installed/           its files, unpacked: there from the moment that the firm's people said yes
    approved-at          when that was, UTC

Fetching runs and unpacks nothing. Only a person's command installs (`approve`, `policy allow`); the agent never does.
Whoever is about to run a package calls `verified` first, the trainer with the folder that it was given.

PackageError            a package is not here, or may not be let in
└── PackageChangedError the bytes that lie here are not those that were fetched and approved
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dure_client.home import write_file
from dure_models.packages import check_free_names, checked_files, on_import_path, write_files
from dure_models.packages.wheel import WheelError
from dure_protocols.errors import DureError
from dure_protocols.model_package import ModelManifest, ModelPackage, ModelPackageError

PACKAGE_FILE = "package.dure-model"
INSTALLED = "installed"
APPROVED_FILE = "approved-at"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class PackageError(DureError):
    """A model package is not here, or may not be let in."""


class PackageChangedError(PackageError):
    """The bytes that lie here are not those that were fetched, or not those that were approved."""


@dataclass(frozen=True)
class Shelved:
    """A fetched package. approved_at: when the firm's people approved it (UTC), None if they have not."""

    digest: str
    manifest: ModelManifest
    approved_at: datetime | None


class PackageShelf:
    """A firm's packages. `folder` is `AgentHome.models`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder_of(self, digest: str) -> Path:
        """Folder of one package. Raises PackageError for anything but 64 hex digits (it becomes a path)."""
        if not _DIGEST.fullmatch(digest):
            raise PackageError(f"{digest[:80]!r} is no package digest: 64 hexadecimal digits were expected")
        return self._folder / digest

    def keep(self, data: bytes, digest: str, *, allow_native_code: bool = False) -> Shelved:
        """Lay a package here, if it is the one asked for and may be let in. Nothing of it is unpacked.

        Raises PackageChangedError, ModelPackageError, WheelError.
        """
        package = ModelPackage.from_bytes(data)
        if package.digest != digest:
            raise PackageChangedError(f"the package {digest[:16]}… was asked for, {package.digest[:16]}… came")
        check_free_names(package.manifest)
        checked_files(package.wheel, package.manifest, allow_native_code=allow_native_code)
        folder = self.folder_of(digest)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(folder / PACKAGE_FILE, data)
        return Shelved(digest, package.manifest, _approved_at(folder))

    def all(self) -> Iterator[Shelved]:
        """Every package here that is as it was fetched, by digest."""
        for folder in sorted(self._folder.glob("*")) if self._folder.is_dir() else []:
            if _DIGEST.fullmatch(folder.name):
                try:
                    yield Shelved(folder.name, read_package(folder).manifest, _approved_at(folder))
                except PackageError:
                    continue  # `verified` says so to whoever wants to use it

    def package(self, digest: str) -> ModelPackage:
        """A package as it was fetched. Raises PackageError, PackageChangedError."""
        return read_package(self.folder_of(digest))

    def files(self, digest: str) -> Mapping[str, bytes]:
        """The files of a package's wheel, to be read. Raises PackageError, WheelError."""
        return _files(self.package(digest))

    def approved_before(self, digest: str) -> Shelved | None:
        """Of the packages of the same model, the one approved last, apart from this one."""
        name = self.package(digest).manifest.name
        others = [each for each in self.all() if each.manifest.name == name and each.digest != digest]
        approved = [(each.approved_at, each.digest, each) for each in others if each.approved_at is not None]
        return max(approved)[2] if approved else None

    def install(self, digest: str, now: datetime, *, allow_native_code: bool = False) -> None:
        """Unpack a package because the firm's people said yes to it; again if what lies here was changed since.

        No installer runs, nothing of the package does. What lies here stays until the new files are whole. Raises
        PackageError, WheelError, OSError.
        """
        package = self.package(digest)
        check_free_names(package.manifest)
        files = checked_files(package.wheel, package.manifest, allow_native_code=allow_native_code)
        folder = self.folder_of(digest)
        installed, aside, gone = (folder / f"{INSTALLED}{end}" for end in ("", ".new", ".old"))
        for rest in (aside, gone):
            shutil.rmtree(rest, ignore_errors=True)
        write_files(aside, files)
        if installed.exists():
            installed.rename(gone)
        aside.rename(installed)
        shutil.rmtree(gone, ignore_errors=True)
        write_file(folder / APPROVED_FILE, now.astimezone(UTC).isoformat().encode())

    def verified(self, digest: str) -> Path:
        """The folder of an installed package that is, byte for byte, what was fetched and approved.

        Raises PackageError, PackageChangedError.
        """
        folder = self.folder_of(digest)
        verify(folder)
        return folder


def read_package(folder: Path) -> ModelPackage:
    """The package of a folder that is named by its digest. Raises PackageError, PackageChangedError."""
    try:
        package = ModelPackage.from_bytes((folder / PACKAGE_FILE).read_bytes())
    except FileNotFoundError as error:
        raise PackageError(f"no package {folder.name[:16]}… was fetched here; run `dure-agent model fetch`") from error
    except (OSError, ModelPackageError) as error:
        raise _changed(folder, f"{PACKAGE_FILE} cannot be read as a package") from error
    if package.digest != folder.name:
        raise _changed(folder, f"{PACKAGE_FILE} now has the digest {package.digest[:16]}…")
    return package


def verify(folder: Path) -> ModelPackage:
    """Check that installed/ holds the files of the package and no other. Called by the trainer before it imports any.

    Raises PackageError, PackageChangedError.
    """
    package = read_package(folder)
    installed = folder / INSTALLED
    if not (folder / APPROVED_FILE).is_file() or not installed.is_dir():
        raise PackageError(f"{package.manifest.name} {package.manifest.version} is not installed: nobody approved it")
    expected = _files(package)
    found = [path for path in installed.rglob("*") if path.is_symlink() or not path.is_dir()]
    extra = {path.relative_to(installed).as_posix() for path in found} - expected.keys()
    if extra:
        raise _changed(folder, f"{sorted(extra)[0]!r} was added")
    for path, content in expected.items():
        file = installed / path
        if file.is_symlink() or not file.is_file() or file.read_bytes() != content:
            raise _changed(folder, f"{path!r} was changed or removed")
    return package


def load(folder: Path) -> None:
    """Let this process, a trainer, import an approved package, once it is verified. Raises as `verify`."""
    verify(folder)
    on_import_path(folder / INSTALLED)


def _files(package: ModelPackage) -> Mapping[str, bytes]:
    # Whether native code may be let in was asked when the package was fetched and installed.
    try:
        return checked_files(package.wheel, package.manifest, allow_native_code=True)
    except WheelError as error:
        raise PackageError(str(error)) from error


def _approved_at(folder: Path) -> datetime | None:
    try:
        return datetime.fromisoformat((folder / APPROVED_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _changed(folder: Path, what: str) -> PackageChangedError:
    return PackageChangedError(
        f"the model package in {folder} is not the one that was approved: {what}. Find out who did that, remove the "
        "folder, then `dure-agent model fetch`, `review` and `approve` again"
    )
