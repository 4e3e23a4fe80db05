"""Where a firm's identity key lives: one interface, behind which is a file of mode 0600 or a PKCS#11 token.

    FileKeyStore (home.py)   keys/identity.key, made of the operating system's randomness
    TokenKeyStore            an Ed25519 key made on the token (a smart card, an HSM, SoftHSM2) and never seen outside it

The link's TLS key is no part of it: gRPC takes it as PEM in memory, it lives for weeks at most, and it signs nothing
that other firms believe. It is a file of mode 0600 (docs/security/keys.md).

Errors: KeyStoreError and its PinError, with what to do. Never with a PIN.
"""

import contextlib
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dure_protocols.errors import DureError
from dure_protocols.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity

if TYPE_CHECKING:
    from pkcs11 import Session
    from pkcs11.types import SignMixin

DEFAULT_LABEL: Final = "dure-identity"
_ED25519: Final = bytes.fromhex("130c") + b"edwards25519"  # PrintableString curveName, as PKCS#11 3.0 names the curve
_OCTET_STRING: Final = bytes([0x04, PUBLIC_KEY_BYTES])

ReadPrivate = Callable[[Path], bytes]
RandomBytes = Callable[[int], bytes]


class KeyStoreError(DureError):
    """The identity key's token cannot be used as it is set."""


class PinError(KeyStoreError):
    """The token takes no PIN, or not this one. Nothing may try again by itself: it locks after a few tries."""


class KeyStore(Protocol):
    """Where the identity key lives."""

    def identity(self) -> Identity:
        """The key that is there. Raises KeyStoreError or HomeError if there is none."""
        ...

    def identity_or_new(self, random_bytes: RandomBytes) -> Identity:
        """The key that is there, or else a new one: a key is never overwritten."""
        ...

    def has_key(self) -> bool:
        """Whether a key is there. Raises KeyStoreError if that cannot be seen."""
        ...

    def erase(self) -> None:
        """Destroy the key, for good; once it is gone this changes nothing. Raises KeyStoreError, OSError."""
        ...


class KeyStoreSettings(BaseModel):
    """The part of agent.toml that says where the identity key lives. All of it unset: it is a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pkcs11_module: Path | None = None
    """Library of the PKCS#11 token that holds the identity key. None: it is the file keys/identity.key."""
    pkcs11_token: str | None = Field(default=None, min_length=1, max_length=32)
    """Label of the token."""
    pkcs11_key: str | None = Field(default=None, min_length=1, max_length=64)
    """Label of the key on the token; `dure-identity` if not given. A firm that is in two consortia has two."""
    pkcs11_pin_file: Path | None = None
    """File of mode 0600 with the token's PIN."""

    @model_validator(mode="after")
    def _token_is_whole(self) -> Self:
        if len({value is None for value in (self.pkcs11_module, self.pkcs11_token, self.pkcs11_pin_file)}) > 1:
            raise ValueError("pkcs11_module, pkcs11_token and pkcs11_pin_file belong together: set all three or none")
        return self


class TokenKeyStore:
    """A PKCS#11 token. `read_private` reads the file with the PIN and refuses one that others may read."""

    def __init__(self, settings: KeyStoreSettings, read_private: ReadPrivate) -> None:
        """`settings` MUST name a token."""
        self._module, self._token = str(settings.pkcs11_module), str(settings.pkcs11_token)
        self._label = settings.pkcs11_key or DEFAULT_LABEL
        self._pin_file, self._read_private = Path(str(settings.pkcs11_pin_file)), read_private

    def identity(self) -> Identity:
        """The token's key. Raises KeyStoreError, or HomeError for the PIN's file."""
        found = self._find(self._session())
        if found is None:
            raise KeyStoreError(
                f"the token {self._token!r} holds no Ed25519 key {self._label!r}: `dure-agent join` makes it there; "
                "check pkcs11_token and pkcs11_key"
            )
        return found

    def identity_or_new(self, random_bytes: RandomBytes) -> Identity:
        """The token's key, or a new one that the token makes of its own randomness. Raises KeyStoreError."""
        del random_bytes  # a key that was ever in this process would not be the token's alone
        session = self._session()
        return self._find(session) or self._make(session)

    def has_key(self) -> bool:
        """Whether the token holds the key. Raises KeyStoreError, or HomeError for the PIN's file."""
        return self._find(self._session()) is not None

    def erase(self) -> None:
        """Have the token destroy both halves of the key. Raises KeyStoreError if it does not."""
        import pkcs11  # noqa: PLC0415

        session = self._session()
        try:
            for kind in (pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.ObjectClass.PUBLIC_KEY):
                with contextlib.suppress(pkcs11.NoSuchKey):
                    session.get_key(kind, pkcs11.KeyType.EC_EDWARDS, self._label).destroy()
        except pkcs11.PKCS11Error as error:
            raise self._failed("it does not destroy its key", error) from error

    def _find(self, session: "Session") -> Identity | None:
        import pkcs11  # noqa: PLC0415
        from pkcs11.types import SignMixin  # noqa: PLC0415

        kinds = (pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.ObjectClass.PUBLIC_KEY)
        try:
            private, public = (session.get_key(kind, pkcs11.KeyType.EC_EDWARDS, self._label) for kind in kinds)
            if not isinstance(private, SignMixin):
                raise KeyStoreError(f"the token {self._token!r} does not let its key {self._label!r} sign")
            return Identity(_TokenKey(private, public[pkcs11.Attribute.EC_POINT]))
        except pkcs11.NoSuchKey:
            return None
        except (pkcs11.PKCS11Error, ValueError) as error:
            raise self._failed("its key cannot be used", error) from error

    def _make(self, session: "Session") -> Identity:
        import pkcs11  # noqa: PLC0415

        own = {pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False, pkcs11.Attribute.PRIVATE: True}
        try:
            curve = session.create_domain_parameters(
                pkcs11.KeyType.EC_EDWARDS, {pkcs11.Attribute.EC_PARAMS: _ED25519}, local=True
            )
            curve.generate_keypair(
                mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
                store=True,
                label=self._label,
                private_template=own,
            )
        except pkcs11.PKCS11Error as error:
            raise self._failed("it could not make an Ed25519 key", error) from error
        made = self._find(session)
        if made is None:
            raise KeyStoreError(f"the token {self._token!r} made a key {self._label!r} and does not show it")
        return made

    def _session(self) -> "Session":
        pin = self._read_private(self._pin_file).decode("utf-8", "replace").strip("\r\n")
        try:
            import pkcs11  # noqa: F401, PLC0415
        except ImportError as error:
            raise KeyStoreError("agent.toml names a PKCS#11 token: install the extra `dure[pkcs11]`") from error
        with _one_at_a_time:
            return _open(self._module, self._token, pin)

    def _failed(self, what: str, error: Exception) -> KeyStoreError:
        return KeyStoreError(
            f"the token {self._token!r}: {what} ({type(error).__name__}); does it know Ed25519 (EDDSA)?"
        )


class _TokenKey:
    """An Ed25519 key on a token. Sessions do one thing at a time, and the agent signs in several threads."""

    def __init__(self, private: "SignMixin", point: bytes) -> None:
        # Tokens wrap the point as PKCS#11 2.40 says, or give it bare as 3.0 does.
        raw = point.removeprefix(_OCTET_STRING) if len(point) > PUBLIC_KEY_BYTES else point
        self._private, self._public = private, Ed25519PublicKey.from_public_bytes(raw)
        self._public_bytes = raw

    def sign(self, data: bytes, /) -> bytes:
        """64 bytes, made by the token. Raises KeyStoreError, such as when it was pulled out."""
        from pkcs11 import Mechanism, PKCS11Error  # noqa: PLC0415

        try:
            with _one_at_a_time:
                signature = self._private.sign(data, mechanism=Mechanism.EDDSA)
        except PKCS11Error as error:
            raise KeyStoreError(
                f"the token with the identity key does not sign ({type(error).__name__}): is it still there? Start the "
                "agent again once it is"
            ) from error
        if len(signature) != SIGNATURE_BYTES:
            raise KeyStoreError(f"the token signed with {len(signature)} bytes, {SIGNATURE_BYTES} were expected")
        return bytes(signature)

    def public_key(self) -> Ed25519PublicKey:
        """The half that others know."""
        return self._public


_one_at_a_time = threading.Lock()


@lru_cache(maxsize=4)  # a process may log in to a token once
def _open(module: str, token: str, pin: str) -> "Session":
    """A session with a token. Raises PinError, KeyStoreError."""
    import pkcs11  # noqa: PLC0415

    try:
        return pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=pin)
    except pkcs11.NoSuchToken as error:
        raise KeyStoreError(
            f"{module} knows no token {token!r}: check pkcs11_token, and that it is plugged in"
        ) from error
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange) as error:
        raise PinError(f"the token {token!r} refuses the PIN in pkcs11_pin_file; it locks after a few tries") from error
    except (pkcs11.PinLocked, pkcs11.PinExpired, pkcs11.UserPinNotInitialized) as error:
        raise PinError(
            f"the token {token!r} takes no PIN now ({type(error).__name__}): have it unlocked, or given a new PIN"
        ) from error
    except (pkcs11.PKCS11Error, RuntimeError) as error:
        raise KeyStoreError(
            f"the token {token!r} of {module} cannot be opened ({type(error).__name__}): check pkcs11_module"
        ) from error
