"""An epoch's keys at one firm: a root with every other firm, and one tag key for all (docs/protocol.md, section 3).

Follows the hybrid pattern of X25519 beside ML-KEM-768: a root falls only when both do. Every two firms check each
other's keys against the identities that they pinned, so a server can substitute none.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.fields import TEXT, U64, Codec, Fields, Hash, blob, fixed, many, nested, pair
from dure_protocols.identity import Identity
from dure_protocols.messages import Establish, KeyAdvertisement, KeyCiphertexts, Roster, SealedKey
from dure_protocols.secagg.keystream import derive
from dure_protocols.secagg.terms import Randomness, Terms, names, numbers
from dure_protocols.wire import Reader, Writer, digest

Encapsulate = Callable[[bytes], tuple[bytes, bytes]]
"""From a raw ML-KEM-768 public key to a shared secret and its ciphertext. Raises ValueError for a malformed key."""

_SECRETS = many(pair(TEXT, fixed(32)))
_NO_KEY = bytes(32)
_NONCE = bytes(12)  # every key below seals one message


def mlkem_encapsulate(public_key: bytes) -> tuple[bytes, bytes]:
    """ML-KEM-768 (FIPS 203) with the operating system's randomness: `cryptography` takes none from outside."""
    return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()


@dataclass(frozen=True, repr=False)
class EpochKeys(Fields):
    """What an epoch leaves at a firm. roots: peer to root K_ij, before any ratchet; tag_key: shared by all firms."""

    epoch: U64
    transcript: Hash
    tag_key: Annotated[bytes, fixed(32)]
    roots: Annotated[tuple[tuple[str, bytes], ...], _SECRETS]


class _Step(IntEnum):
    IDLE = 0
    ADVERTISED = 1
    ENCAPSULATED = 2


def _read_step(reader: Reader) -> _Step:
    value = reader.u8()
    if value not in set(_Step):
        raise MessageError(f"a handshake has no step {value}")
    return _Step(value)


@dataclass(repr=False)
class HandshakeState(Fields):
    """What a handshake must remember over a crash. Secret; erased when it ends."""

    step: Annotated[_Step, Codec(Writer.u8, _read_step)] = _Step.IDLE
    epoch: U64 = 0
    ephemeral: Annotated[bytes, blob(96)] = b""
    advertisements: Annotated[tuple[KeyAdvertisement, ...], many(nested(KeyAdvertisement))] = ()
    secrets: Annotated[tuple[tuple[str, bytes], ...], _SECRETS] = ()
    ciphertexts: Annotated[tuple[SealedKey, ...], many(nested(SealedKey))] = ()
    tag_key: Annotated[bytes, fixed(32)] = _NO_KEY


class Handshake:
    """One firm's three steps to an epoch's keys: advertise, encapsulate, establish. `FirmSession` stores its state."""

    def __init__(
        self, firm: str, identity: Identity, terms: Terms, randomness: Randomness, encapsulate: Encapsulate
    ) -> None:
        self._firm, self._identity, self._terms = firm, identity, terms
        self._randomness, self._encapsulate = randomness, encapsulate

    def advertise(self, state: HandshakeState, epoch: int) -> KeyAdvertisement:
        """Make fresh keys for `epoch`; the caller has checked that it is newer than any before."""
        state.step, state.epoch, state.ephemeral = _Step.ADVERTISED, epoch, self._randomness(96)
        state.advertisements, state.secrets, state.ciphertexts, state.tag_key = (), (), (), _NO_KEY
        public = _public(state)
        signature = self._sign("dure advertisement", numbers(epoch), self._firm.encode(), *public)
        return KeyAdvertisement(self._firm, epoch, *public, signature)

    def encapsulate(self, state: HandshakeState, roster: Roster) -> KeyCiphertexts:
        """Accept the roster and encapsulate to each firm behind this one in the alphabet.

        Verifies: (1) these are the keys we wait for; (2) the roster names exactly the job's firms, each once;
        (3) our own entry is what we sent; (4) every signature, against the pinned identities. The first firm of the
        alphabet chooses the epoch's tag key and seals it for every other.
        """
        if state.step is not _Step.ADVERTISED or roster.epoch != state.epoch:  # (1)
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"no keys of epoch {roster.epoch} are waiting for a roster")
        self._check_listed((entry.firm for entry in roster.advertisements), self._terms.firms, "key roster")  # (2)
        peers = {entry.firm: entry for entry in roster.advertisements}
        if (peers[self._firm].x25519, peers[self._firm].mlkem) != _public(state):
            raise RefusedError(RefusalCode.ROSTER, "the roster shows other keys for this firm than it sent")  # (3)
        for entry in peers.values():  # (4)
            if entry.epoch != state.epoch:
                raise RefusedError(RefusalCode.REPLAY, f"{entry.firm}'s keys are of epoch {entry.epoch}")
            parts = numbers(entry.epoch), entry.firm.encode(), entry.x25519, entry.mlkem
            self._terms.check(entry.firm, entry.signature, "dure advertisement", *parts)
        state.advertisements = tuple(peers[name] for name in sorted(peers))
        state.tag_key = self._randomness(32) if self._is_first else _NO_KEY
        behind = [entry for entry in state.advertisements if entry.firm > self._firm]
        roster_digest = _roster_digest(state)
        sealed = [self._seal(state, roster_digest, entry) for entry in behind]
        state.step = _Step.ENCAPSULATED
        state.secrets = tuple((key.receiver, secret) for key, secret in sealed)
        state.ciphertexts = tuple(key for key, _ in sealed)
        return KeyCiphertexts(self._firm, state.epoch, state.ciphertexts)

    def establish(self, state: HandshakeState, request: Establish) -> EpochKeys:
        """Derive a root with every other firm and open the tag key.

        Verifies: (1) we encapsulated in this epoch; (2) exactly the firms before us in the alphabet sent a ciphertext,
        to us; (3) each is signed, over the same roster that we saw; (4) the first firm's tag key opens.
        """
        if state.step is not _Step.ENCAPSULATED or request.epoch != state.epoch:  # (1)
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"epoch {request.epoch} is not waiting for ciphertexts")
        roster_digest = _roster_digest(state)
        before = [name for name in self._terms.firms if name < self._firm]
        self._check_listed((key.sender for key in request.ciphertexts), before, "list of ciphertexts")  # (2)
        for key in request.ciphertexts:
            if key.receiver != self._firm:
                raise RefusedError(RefusalCode.ROSTER, f"{key.sender}'s ciphertext is for {key.receiver}")
            self._terms.check(key.sender, key.signature, "dure ciphertext", *_key_parts(roster_digest, key))  # (3)
        _, mlkem = _private(state)
        received = {key.sender: key for key in request.ciphertexts}
        roots = {
            name: self._root(state, roster_digest, key, mlkem.decapsulate(key.ciphertext))
            for name, key in received.items()
        }
        own_secrets = dict(state.secrets)
        roots |= {
            key.receiver: self._root(state, roster_digest, key, own_secrets[key.receiver]) for key in state.ciphertexts
        }
        tag_key = state.tag_key if self._is_first else self._open_tag_key(received, roots)  # (4)
        commitment = digest("dure tag key", tag_key)
        transcript = digest("dure transcript", roster_digest, commitment)
        return EpochKeys(state.epoch, transcript, tag_key, tuple(sorted(roots.items())))

    @property
    def _first(self) -> str:
        return min(self._terms.firms)

    @property
    def _is_first(self) -> bool:
        return self._firm == self._first

    def _seal(self, state: HandshakeState, roster_digest: bytes, peer: KeyAdvertisement) -> tuple[SealedKey, bytes]:
        """A ciphertext for a firm behind this one, and the KEM secret in it."""
        try:
            secret, ciphertext = self._encapsulate(peer.mlkem)
        except ValueError as error:
            raise RefusedError(RefusalCode.ROSTER, f"{peer.firm} advertised a malformed ML-KEM-768 key") from error
        key = SealedKey(self._firm, peer.firm, ciphertext, b"", bytes(64))
        if self._is_first:
            box_key = derive(self._root(state, roster_digest, key, secret), "dure tag key box")
            key = SealedKey(self._firm, peer.firm, ciphertext, _box(box_key).encrypt(_NONCE, state.tag_key, None), b"")
        signature = self._sign("dure ciphertext", *_key_parts(roster_digest, key))
        return SealedKey(self._firm, peer.firm, ciphertext, key.tag_box, signature), secret

    def _root(self, state: HandshakeState, roster_digest: bytes, key: SealedKey, secret: bytes) -> bytes:
        """The root K_ij: both a classical and a post-quantum secret must fall before it does."""
        peer = key.receiver if key.sender == self._firm else key.sender
        public = next(entry.x25519 for entry in state.advertisements if entry.firm == peer)
        try:
            shared = _private(state)[0].exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # a point of small order, which would make the secret known
            raise RefusedError(
                RefusalCode.ROSTER, f"{peer} advertised an X25519 key that no honest firm has"
            ) from error
        ends = key.sender.encode(), key.receiver.encode()
        return derive(shared + secret, "dure pair root", roster_digest, *ends, key.ciphertext)

    def _open_tag_key(self, received: dict[str, SealedKey], roots: dict[str, bytes]) -> bytes:
        box_key = derive(roots[self._first], "dure tag key box")
        try:
            return _box(box_key).decrypt(_NONCE, received[self._first].tag_box, None)
        except InvalidTag as error:
            raise RefusedError(RefusalCode.ROSTER, f"{self._first} sealed no tag key for this firm") from error

    def _check_listed(self, listed: Iterable[str], expected: Iterable[str], what: str) -> None:
        found = sorted(listed)
        if found != sorted(expected):
            raise RefusedError(
                RefusalCode.ROSTER, f"the {what} does not name each firm that it must exactly once: {found}"
            )

    def _sign(self, label: str, *parts: bytes) -> bytes:
        return self._identity.sign(label, self._terms.job_digest, *parts)


def _private(state: HandshakeState) -> tuple[X25519PrivateKey, MLKEM768PrivateKey]:
    seed = state.ephemeral
    return X25519PrivateKey.from_private_bytes(seed[:32]), MLKEM768PrivateKey.from_seed_bytes(seed[32:])


def _public(state: HandshakeState) -> tuple[bytes, bytes]:
    x25519, mlkem = _private(state)
    return x25519.public_key().public_bytes_raw(), mlkem.public_key().public_bytes_raw()


def _roster_digest(state: HandshakeState) -> bytes:
    entries = state.advertisements
    keys = (part for entry in entries for part in (entry.x25519, entry.mlkem))
    return digest("dure roster", numbers(state.epoch), names(entry.firm for entry in entries), *keys)


def _key_parts(roster_digest: bytes, key: SealedKey) -> tuple[bytes, ...]:
    return roster_digest, key.sender.encode(), key.receiver.encode(), key.ciphertext, key.tag_box


def _box(key: bytes) -> AESGCM:
    return AESGCM(key)
