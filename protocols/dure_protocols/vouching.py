"""Vouches: a firm says, signed, that another firm of the consortium has a certain identity key.

A vouch is worth what its signer is worth to the reader: whoever reads one MUST hold the signer's key against a pin of
its own. It says who somebody is, and nothing about whether to train with them. docs/protocol.md, section 3.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dure_protocols.errors import IdentityError, MessageError
from dure_protocols.fields import Fields, Hash, Signature, Text
from dure_protocols.identity import PUBLIC_KEY_BYTES, Identity, check_firm_name, fingerprint, verify
from dure_protocols.wire import Reader, Writer

_FORMAT = 1
_HEAD = "dure-vouch-1 "
MAX_VOUCH_TEXT = 8_192  # characters
LABEL = "dure vouch"


@dataclass(frozen=True)
class Vouch(Fields):
    """`voucher` says that `firm` of this consortium has the identity key with this fingerprint (SHA-256, 32 bytes).

    voucher_key: its public key, 32 bytes, by which whoever pinned it finds it.
    """

    consortium: Text
    firm: Text
    fingerprint: Hash
    voucher: Text
    voucher_key: Hash
    signature: Signature

    @classmethod
    def make(cls, consortium: str, firm: str, firm_fingerprint: str, voucher: str, identity: Identity) -> "Vouch":
        """Vouch for a firm's key, given by its fingerprint (64 hex digits). Raises IdentityError for a bad name."""
        check_firm_name(firm)
        digest = bytes.fromhex(firm_fingerprint)
        parts = _signed(consortium, firm, digest, voucher)
        return cls(consortium, firm, digest, voucher, identity.public_bytes, identity.sign(LABEL, *parts))

    def check(self) -> None:
        """The voucher's own key signed it. Raises IdentityError."""
        verify(
            self.voucher_key,
            self.signature,
            LABEL,
            *_signed(self.consortium, self.firm, self.fingerprint, self.voucher),
        )

    def to_text(self) -> str:
        """One line, for a file or a letter. Holds no secret."""
        writer = Writer().u8(_FORMAT)
        self.write(writer)
        return f"{_HEAD}{bytes(writer).hex()}\n"

    @classmethod
    def from_text(cls, text: str) -> "Vouch":
        """Read it back, signed by the key that it names. Raises MessageError or IdentityError."""
        body = text.strip()
        if len(body) > MAX_VOUCH_TEXT or not body.startswith(_HEAD):
            raise MessageError("this is no vouch: `dure-agent vouch` writes one")
        try:
            data = bytes.fromhex(body.removeprefix(_HEAD))
        except ValueError as error:
            raise MessageError("this vouch was cut or changed: it is not hexadecimal") from error
        reader = Reader(data)
        if (form := reader.u8()) != _FORMAT:
            raise MessageError(f"a vouch of format {form} came, {_FORMAT} was expected: update the older side")
        vouch = cls.read(reader)
        reader.end()
        for name in (vouch.firm, vouch.voucher):
            check_firm_name(name)
        vouch.check()
        return vouch


def vouchers(
    vouches: Iterable[Vouch], consortium: str, firm: str, public_key: bytes, pins: Mapping[str, str]
) -> frozenset[str]:
    """Which of the pinned firms vouch that `firm` has this key. Pure. pins: firm to fingerprint, 64 hex digits.

    (1) The vouch is about this consortium, firm and key. (2) Its signer is a firm that is pinned, with the pinned key,
    and not the firm itself. (3) It is signed by that key. A firm counts once, however often it vouches.
    """
    found = set()
    for vouch in vouches:
        about = (vouch.consortium, vouch.firm, vouch.fingerprint.hex())
        if about != (consortium, firm, fingerprint(public_key)):  # (1)
            continue
        is_pinned = pins.get(vouch.voucher) == fingerprint(vouch.voucher_key)
        if vouch.voucher == firm or len(vouch.voucher_key) != PUBLIC_KEY_BYTES or not is_pinned:  # (2)
            continue
        try:
            vouch.check()  # (3)
        except IdentityError:
            continue
        found.add(vouch.voucher)
    return frozenset(found)


def _signed(consortium: str, firm: str, digest: bytes, voucher: str) -> tuple[bytes, ...]:
    return consortium.encode(), firm.encode(), digest, voucher.encode()
