"""The consortium's registry of model packages: files by their digest, which firms fetch when their people ask for it.

Publishing puts a package on offer and does nothing else: no firm is told, and none runs it before its own people have
read and approved it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dure_models import registry
from dure_models.packages import check_free_names, checked_files, unpacked
from dure_protocols.errors import DureError
from dure_protocols.model_package import (
    FILE_SUFFIX,
    MAX_PUBLISHED,
    ModelPackage,
    ModelPackageError,
    PublishedModel,
    PublishedModels,
)
from dure_server.files import write_private


class RegistryError(DureError):
    """A package cannot be published, or is not in the registry."""


class ModelRegistry:
    """Published packages in one folder of the server's home. Any process may read it; commands write to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def publish(self, data: bytes) -> ModelPackage:
        """Put a package on offer; once more changes nothing. Raises RegistryError, ModelPackageError, WheelError.

        A name and version mean one package for good: a changed one needs another version. Native code may be published;
        it is each firm's policy that lets it in or not.
        """
        package = ModelPackage.from_bytes(data)
        check_free_names(package.manifest)
        checked_files(package.wheel, package.manifest, allow_native_code=True)
        offered = {each.digest: (each.manifest.name, each.manifest.version) for each in self.packages()}
        if package.digest in offered:
            return package
        name, version = package.manifest.name, package.manifest.version
        if (name, version) in offered.values():
            raise RegistryError(f"another package is published as {name} {version}; ask its author for a new version")
        if len(offered) >= MAX_PUBLISHED:
            raise RegistryError(f"the registry holds {MAX_PUBLISHED} packages, as many as it may; remove some files")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._file(package.digest), package.to_bytes())
        return package

    def packages(self) -> Iterator[ModelPackage]:
        """Every published package that is whole, the newest last. One after the other: they may be large."""
        files = sorted(self._folder.glob(f"*{FILE_SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
        for file in files:
            package = self._whole(file)
            if package is not None:
                yield package

    def read(self, digest: str) -> bytes:
        """A package's file. `digest` MUST be 64 hex digits. Raises RegistryError if it is not published."""
        package = self._whole(self._file(digest))
        if package is None:
            raise RegistryError(f"no package {digest[:16]}… is published; see `dure-server model list`")
        return package.to_bytes()

    def offer(self) -> PublishedModels:
        """What firms are told of all packages."""
        return PublishedModels(
            models=tuple(
                PublishedModel(
                    digest=package.digest,
                    name=package.manifest.name,
                    version=package.manifest.version,
                    size_bytes=len(package.to_bytes()),
                )
                for package in self.packages()
            )
        )

    @contextmanager
    def offering(self, name: str, digest: str | None) -> Iterator[None]:
        """Let this process import a published model while the block runs; nothing if there is none, or it is installed.

        `digest`: of the package, needed where several of that name are published. Raises RegistryError.
        """
        is_installed = name in registry.names() and digest is None
        named = [] if is_installed else [each for each in self.packages() if each.manifest.name == name]
        found = [each for each in named if digest in {None, each.digest}]
        if digest is not None and not found:
            raise RegistryError(f"no package {digest[:16]}… offers the model {name!r}; see `dure-server model list`")
        if len(found) > 1:
            listed = "".join(f"\n  - {each.manifest.version}: {each.digest}" for each in found)
            raise RegistryError(
                f'{len(found)} published packages offer the model {name!r}; name one in the draft, package = "DIGEST":'
                + listed
            )
        if not found:
            yield
            return
        (package,) = found
        check_free_names(package.manifest)
        files = checked_files(package.wheel, package.manifest, allow_native_code=True)
        with unpacked(files, package.manifest.module):
            yield

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest}{FILE_SUFFIX}"

    def _whole(self, file: Path) -> ModelPackage | None:
        try:
            package = ModelPackage.from_bytes(file.read_bytes())
        except (OSError, ModelPackageError):
            return None
        return package if self._file(package.digest) == file else None
