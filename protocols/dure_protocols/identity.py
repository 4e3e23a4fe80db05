"""Who a firm is: an Ed25519 key that signs everything the firm says in the protocol.

The private half is made at the firm and never leaves it. Other firms *pin* the public half by its fingerprint, compared
by people over another way (a contract, a phone call), so an operator cannot introduce a firm of its own making.
"""

import hashlib
import re
import unicodedata
from typing import Protocol

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dure_protocols.errors import IdentityError
from dure_protocols.wire import digest

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, InternalError)
"""What cryptography raises for PEM that is no key, or a key of a kind that it does not know."""
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Unicode's categories of controls, formats and separators
_FIRM_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def check_firm_name(name: str) -> str:
    """Return `name` if it may be a firm's name (it becomes folder names and certificate subjects), else raise."""
    if not _FIRM_NAME.fullmatch(name):
        raise IdentityError(
            f"{name!r} cannot be a firm's name: use 1 to 63 lower-case letters, digits and hyphens,"
            " and begin with a letter or digit"
        )
    return name


def is_plain(name: str) -> bool:
    """Whether a name may be shown on a terminal: none of its characters acts there, turns the writing or is unseen."""
    return not any(unicodedata.category(character) in _ACTING for character in name)


def fingerprint(public_bytes: bytes) -> str:
    """SHA-256 of a public key's raw bytes (or a certificate's DER) as 64 hex digits."""
    return hashlib.sha256(public_bytes).hexdigest()


def grouped(value: str) -> str:
    """A fingerprint in groups of four digits, to be read over a phone."""
    return " ".join(value[i : i + 4] for i in range(0, len(value), 4))


def same_fingerprint(left: str, right: str) -> bool:
    """Compare two fingerprints as people write them: blanks, colons and case do not count. Short forms never match."""
    one, other = (re.sub(r"[\s:]", "", value).lower() for value in (left, right))
    return len(one) == 64 and one == other


class SigningKey(Protocol):
    """An Ed25519 key that signs (RFC 8032, so the same bytes always get the same signature), wherever it lives."""

    def sign(self, data: bytes, /) -> bytes:
        """64 bytes."""
        ...

    def public_key(self) -> Ed25519PublicKey:
        """The half that others know."""
        ...


class Identity:
    """A firm's own signing key. Its repr shows the fingerprint only."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self.public_bytes = key.public_key().public_bytes_raw()

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        """The identity of a 32-byte seed: from the operating system in production, fixed in a test vector."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes) -> "Identity":
        """Read a PKCS #8 key file. Raises IdentityError if it is something else."""
        try:
            key = serialization.load_pem_private_key(pem, None)
        except UNREADABLE as error:
            raise IdentityError("the identity key file is not an unencrypted PEM private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError("the identity key file holds a key of another kind; an Ed25519 key was expected")
        return cls(key)

    def to_pem(self) -> bytes:
        """The private key for its file of mode 0600, and for nothing else.

        Raises IdentityError for a key that does not leave the device it lives in.
        """
        if not isinstance(self._key, Ed25519PrivateKey):
            raise IdentityError("this identity's private key lives in a device and cannot be read out of it")
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, label: str, *parts: bytes) -> bytes:
        """Sign the digest of a label and parts. 64 bytes. The label keeps one message from passing for another."""
        return self._key.sign(digest(label, *parts))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, 64 hex digits."""
        return fingerprint(self.public_bytes)

    def __repr__(self) -> str:
        return f"Identity({self.fingerprint[:16]}…)"


def verify(public_bytes: bytes, signature: bytes, label: str, *parts: bytes) -> None:
    """Check a signature made by `Identity.sign`. Raises IdentityError; never returns a bool that could be ignored."""
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, digest(label, *parts))
    except (InvalidSignature, ValueError) as error:
        raise IdentityError(
            f"a signature on {label!r} does not belong to key {fingerprint(public_bytes)[:16]}…"
        ) from error
