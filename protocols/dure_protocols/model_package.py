"""A model package as it travels and is stored: one file, a line with the signed manifest and after it the wheel.

    {"manifest":{…},"signature":"…"}\n
    PK…                                    the wheel, byte for byte

Its digest is the SHA-256 of the file, so everyday tools tell it (`sha256sum`), show the manifest (`head -1`) and list
the wheel (`python -m zipfile -l`). What a wheel may hold is checked by `dure_models.packages`; nothing here opens it.

ModelPackageError    bytes that are no model package, or one that was changed after its author signed it
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dure_protocols.errors import DureError, IdentityError
from dure_protocols.identity import Identity, fingerprint, verify
from dure_protocols.job import Digest, MetricName, PublicKey, Shown, canonical_json

FILE_SUFFIX = ".dure-model"
MAX_MANIFEST_BYTES = 64 << 10
MAX_PACKAGE_BYTES = 16 << 20
MAX_PUBLISHED = 256
_LABEL = "dure model package"

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
ModelVersion = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){0,3}((a|b|rc)[0-9]{1,4})?$")]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
ClassName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ModelPackageError(DureError):
    """Bytes are no model package, or one that was changed after its author signed it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrivacySettings(_Frozen):
    """What the author says of privacy. All sums travel masked, whatever stands here.

    statistics: which sums over rows are taken before training; round_metrics: what is reported in every round, as the
    model's code says; clipping_norm, noise_multiplier: of differential privacy in the model's own training, None where
    it has none.
    """

    statistics: Shown
    round_metrics: Annotated[tuple[MetricName, ...], Field(max_length=64)] = ()
    clipping_norm: Positive | None = None
    noise_multiplier: Positive | None = None


class ModelManifest(_Frozen):
    """What a package says of itself, under its author's signature.

    name: by which jobs name the model; module, model_class: where it is in the wheel; wheel: SHA-256; model_digest: of
    the code, as jobs name it and allow-lists list it, under Dure of `dure_version`; columns: those of a contract that
    the model reads, "*" for all; outputs: what it predicts, in words.
    """

    format: Literal["dure-model-1"] = "dure-model-1"
    name: ModelName
    version: ModelVersion
    title: Shown
    author: Shown
    author_key: PublicKey
    module: ModuleName
    model_class: ClassName
    wheel: Digest
    model_digest: Digest
    dure_version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,64}$")]
    columns: Annotated[tuple[Shown, ...], Field(min_length=1, max_length=1000)]
    outputs: Shown
    privacy: PrivacySettings

    @property
    def author_fingerprint(self) -> str:
        """SHA-256 of the author's public key, 64 hex digits."""
        return fingerprint(bytes.fromhex(self.author_key))


class SignedManifest(_Frozen):
    """A package's first line."""

    manifest: ModelManifest
    signature: Signature


@dataclass(frozen=True)
class ModelPackage:
    """A package whose signature holds and whose wheel is the signed one. Made by `sign` and `from_bytes` only."""

    signed: SignedManifest
    wheel: bytes

    @classmethod
    def sign(cls, manifest: ModelManifest, wheel: bytes, author: Identity) -> Self:
        """Sign a manifest with the author's key. Raises ModelPackageError if it names another key or another wheel."""
        signature = author.sign(_LABEL, _signed_bytes(manifest)).hex()
        return cls._checked(SignedManifest(manifest=manifest, signature=signature), wheel)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a package from anywhere. Raises ModelPackageError.

        (1) It is not too large. (2) Its first line is a manifest in canonical form. (3) The key that the manifest names
        signed it. (4) What follows is the wheel that it names.
        The caller MUST hold `digest` against the one that it asked for or that was approved.
        """
        if len(data) > MAX_PACKAGE_BYTES:  # (1)
            raise ModelPackageError(f"a model package has at most {MAX_PACKAGE_BYTES} bytes, this one {len(data)}")
        end = data.find(b"\n", 0, MAX_MANIFEST_BYTES)
        if end < 0:  # (2)
            raise ModelPackageError(
                "this is no model package: its first line must be a manifest; make one with `dure model pack`"
            )
        signed = _parsed(data[:end])
        return cls._checked(signed, data[end + 1 :])

    @classmethod
    def _checked(cls, signed: SignedManifest, wheel: bytes) -> Self:
        manifest = signed.manifest
        key = bytes.fromhex(manifest.author_key)
        try:  # (3)
            verify(key, bytes.fromhex(signed.signature), _LABEL, _signed_bytes(manifest))
        except IdentityError as error:
            raise ModelPackageError(
                f"the manifest of {manifest.name} {manifest.version} is not signed by the key that it names: it was "
                "changed after its author signed it; ask for the author's own file"
            ) from error
        came = hashlib.sha256(wheel).hexdigest()
        if came != manifest.wheel:  # (4)
            raise ModelPackageError(
                f"{manifest.name} {manifest.version} names a wheel with SHA-256 {manifest.wheel[:16]}…, and "
                f"{came[:16]}… came: it was changed after its author signed it; ask for the author's own file"
            )
        return cls(signed, wheel)

    @property
    def manifest(self) -> ModelManifest:
        """What the package says of itself."""
        return self.signed.manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the file, 64 hex digits: what a firm approves, and the package's name in every store."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file."""
        return canonical_json(self.signed.model_dump(mode="json")) + b"\n" + self.wheel


class PublishedModel(_Frozen):
    """One package that a consortium's registry offers. To be believed only once the package itself was read."""

    digest: Digest
    name: ModelName
    version: ModelVersion
    size_bytes: Annotated[int, Field(gt=0, le=MAX_PACKAGE_BYTES)]


class PublishedModels(_Frozen):
    """GET …/certificates/{fingerprint}/models: what the registry offers, the newest last."""

    models: Annotated[tuple[PublishedModel, ...], Field(max_length=MAX_PUBLISHED)]


def _signed_bytes(manifest: ModelManifest) -> bytes:
    return canonical_json(manifest.model_dump(mode="json"))


def _parsed(line: bytes) -> SignedManifest:
    try:
        signed = SignedManifest.model_validate_json(line)
    except ValidationError as error:
        listed = error.errors(include_url=False, include_context=False, include_input=False)
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in listed[:5])
        raise ModelPackageError(f"the first line is no manifest of a model package: {problems[:2000]}") from error
    if canonical_json(signed.model_dump(mode="json")) != line:
        raise ModelPackageError("the manifest is not in canonical form (sorted keys, no blanks); write it with Dure")
    return signed
