"""One firm's side of secure aggregation in retry mode (docs/protocol.md, sections 3 to 6).

A session takes messages and returns messages. It does no IO: the caller MUST store `snapshot()` durably before it sends
what a method returned, or a crash could reuse a mask. The method on each message lists what it verifies.

Follows Bonawitz et al. 2017 (double masking) with hybrid keys; departs from it in that pair keys last an epoch and are
ratcheted each round, and in that there is no secret sharing: self masks are opened only when every member has uploaded,
and a drop-out costs a fresh attempt instead of a recovery.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import numpy as np
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from dure_protocols.errors import MisuseError, RefusalCode, RefusedError
from dure_protocols.fields import TEXT, U64, Codec, Fields, Hash, Names, Seed, blob, fixed, many, nested, pair
from dure_protocols.identity import Identity
from dure_protocols.messages import (
    Cohort,
    Establish,
    Invitation,
    Join,
    KeyAdvertisement,
    KeyCiphertexts,
    MaskedUpdate,
    Release,
    ReleaseRequest,
    Roster,
)
from dure_protocols.secagg.codec import VectorLayout, Words
from dure_protocols.secagg.disclosure import Disclosures, Kind
from dure_protocols.secagg.keystream import apply_keystreams, derive
from dure_protocols.secagg.terms import Terms, mask_context, names, numbers
from dure_protocols.wire import Reader, Writer, digest

Randomness = Callable[[int], bytes]

_ROOTS = many(pair(TEXT, fixed(32)))
_NO_HASH = bytes(32)


class Phase(IntEnum):
    """How far the firm has gone in its newest attempt."""

    IDLE = 0
    ADVERTISED = 1
    ENCAPSULATED = 2
    JOINED = 3
    MASKED = 4
    UPLOADED = 5
    RELEASED = 6
    RETIRED = 7


@dataclass(repr=False)
class _State(Fields):
    """Everything a session must remember over a crash. Secret; written by `snapshot` only."""

    phase: Annotated[Phase, Codec(Writer.u8, lambda reader: Phase(reader.u8()))] = Phase.IDLE
    epoch: U64 = 0
    ephemeral: Annotated[bytes, blob(96)] = b""
    advertisements: Annotated[tuple[KeyAdvertisement, ...], many(nested(KeyAdvertisement))] = ()
    secrets: Annotated[tuple[tuple[str, bytes], ...], _ROOTS] = ()
    ciphertexts: Annotated[bytes, blob(8 << 20)] = b""
    roots: Annotated[tuple[tuple[str, bytes], ...], _ROOTS] = ()
    transcript: Hash = _NO_HASH
    root_round: U64 = 0
    round: U64 = 0
    attempt: U64 = 0
    model_hash: Hash = _NO_HASH
    join_signature: Annotated[bytes, blob(64)] = b""
    self_seed: Seed = _NO_HASH
    members: Names = ()
    context: Hash = _NO_HASH
    vector_digest: Hash = _NO_HASH
    released_round: U64 = 0
    released_members: Names = ()
    model_key: Hash = _NO_HASH


class FirmSession:
    """One firm in one job. Calls follow the messages: advertise, encapsulate, establish; then join, mask, upload,
    release for each attempt. Every method raises RefusedError for what a lying server may have sent.
    """

    def __init__(
        self, firm: str, identity: Identity, terms: Terms, randomness: Randomness, disclosures: Disclosures
    ) -> None:
        """disclosures: what this firm released over all its jobs; `release` notes to it, and the caller stores it."""
        if terms.firms.get(firm) != identity.public_bytes:
            raise RefusedError(
                RefusalCode.ROSTER, f"the job lists another identity key for {firm} than this firm's own"
            )
        self._firm, self._identity, self._terms, self._randomness = firm, identity, terms, randomness
        self._disclosures = disclosures
        self._state = _State()

    def use_terms(self, terms: Terms) -> None:
        """Take up what the firm's policy says now; the job behind it must be the same."""
        if terms.job_digest != self._terms.job_digest:
            raise MisuseError("a session's terms may change, its job may not")
        self._terms = terms

    def snapshot(self) -> bytes:
        """The state as bytes, to be stored (mode 0600) before anything is sent. Holds keys."""
        writer = Writer().u8(1).fixed(self._terms.job_digest, 32)
        self._state.write(writer)
        return bytes(writer)

    def restore(self, snapshot: bytes) -> None:
        """Go on from a stored snapshot. Raises MessageError if it is damaged, RefusedError if of another job."""
        reader = Reader(snapshot)
        if reader.u8() != 1 or reader.fixed(32) != self._terms.job_digest:
            raise RefusedError(RefusalCode.STATE_LOST, "the stored protocol state belongs to another job or version")
        state = _State.read(reader)
        reader.end()
        self._state = state

    @property
    def epoch(self) -> int:
        """The newest epoch this firm has made keys for; 0 before the first."""
        return self._state.epoch

    def advertise(self, epoch: int) -> KeyAdvertisement:
        """Begin an epoch with fresh keys. Verifies: (1) the epoch is newer than any before, and the job not over."""
        self._check_not_retired()
        if epoch <= self._state.epoch:  # (1)
            raise RefusedError(RefusalCode.REPLAY, f"epoch {epoch} is not newer than epoch {self._state.epoch}")
        old = self._state
        self._state = _State(
            phase=Phase.ADVERTISED,
            epoch=epoch,
            ephemeral=self._randomness(96),
            round=old.round,
            attempt=old.attempt,
            released_round=old.released_round,
            released_members=old.released_members,
        )
        x25519, mlkem = self._ephemeral_keys()
        public = x25519.public_key().public_bytes_raw(), mlkem.public_key().public_bytes_raw()
        signature = self._sign("dure advertisement", numbers(epoch), self._firm.encode(), *public)
        return KeyAdvertisement(self._firm, epoch, *public, signature)

    def encapsulate(self, roster: Roster) -> KeyCiphertexts:
        """Accept the roster and encapsulate to each firm behind this one in the alphabet.

        Verifies: (1) these are the keys we wait for; (2) the roster names exactly the job's firms, each once;
        (3) our own entry is what we sent; (4) every signature, against the pinned identities.
        """
        state = self._state
        if state.phase is not Phase.ADVERTISED or roster.epoch != state.epoch:  # (1)
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"no keys of epoch {roster.epoch} are waiting for a roster")
        self._check_whole((entry.firm for entry in roster.advertisements), "key roster")  # (2)
        x25519, mlkem = self._ephemeral_keys()
        peers = {entry.firm: entry for entry in roster.advertisements}
        own = peers[self._firm]
        if (own.x25519, own.mlkem) != (x25519.public_key().public_bytes_raw(), mlkem.public_key().public_bytes_raw()):
            raise RefusedError(RefusalCode.ROSTER, "the roster shows other keys for this firm than it sent")  # (3)
        for entry in peers.values():  # (4)
            if entry.epoch != state.epoch:
                raise RefusedError(RefusalCode.REPLAY, f"{entry.firm}'s keys are of epoch {entry.epoch}")
            parts = numbers(entry.epoch), entry.firm.encode(), entry.x25519, entry.mlkem
            self._terms.check(entry.firm, entry.signature, "dure advertisement", *parts)
        secrets, ciphertexts = [], []
        for name in sorted(peers):
            if name > self._firm:
                secret, ciphertext = _mlkem_public(peers[name]).encapsulate()
                secrets.append((name, secret))
                ciphertexts.append((name, ciphertext))
        state.phase = Phase.ENCAPSULATED
        state.advertisements = tuple(peers[name] for name in sorted(peers))
        state.secrets = tuple(secrets)
        message = KeyCiphertexts(self._firm, state.epoch, tuple(ciphertexts), bytes(64))
        state.ciphertexts = message.ciphertext_bytes()
        signature = self._sign("dure ciphertexts", self._roster_digest(), self._firm.encode(), state.ciphertexts)
        return KeyCiphertexts(self._firm, state.epoch, tuple(ciphertexts), signature)

    def establish(self, request: Establish) -> bytes:
        """Derive a root with every other firm, erase the ephemeral keys. Returns the transcript's digest (32 bytes).

        Verifies: (1) we encapsulated in this epoch; (2) exactly the job's firms answered; (3) our own ciphertexts are
        what we sent; (4) every signature, over the same roster that we saw; (5) each holds one ciphertext for us.
        """
        state = self._state
        if state.phase is not Phase.ENCAPSULATED or request.epoch != state.epoch:  # (1)
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"epoch {request.epoch} is not waiting for ciphertexts")
        self._check_whole((entry.firm for entry in request.ciphertexts), "list of ciphertexts")  # (2)
        sent = {entry.firm: entry for entry in request.ciphertexts}
        if sent[self._firm].ciphertext_bytes() != state.ciphertexts:  # (3)
            raise RefusedError(RefusalCode.ROSTER, "the server shows other ciphertexts for this firm than it sent")
        roster = self._roster_digest()
        for entry in sent.values():  # (4)
            parts = roster, entry.firm.encode(), entry.ciphertext_bytes()
            self._terms.check(entry.firm, entry.signature, "dure ciphertexts", *parts)
            if [name for name, _ in entry.ciphertexts] != sorted(n for n in sent if n > entry.firm):  # (5)
                raise RefusedError(RefusalCode.ROSTER, f"{entry.firm} did not encapsulate to each firm behind it")
        state.transcript = digest("dure transcript", roster, *(sent[n].ciphertext_bytes() for n in sorted(sent)))
        state.roots = tuple((peer, self._root(peer, sent)) for peer in sorted(sent) if peer != self._firm)
        state.root_round, state.phase = 0, Phase.IDLE
        state.ephemeral, state.advertisements, state.secrets, state.ciphertexts = b"", (), (), b""
        return state.transcript

    def join(self, invitation: Invitation, model_hash: bytes, model_key: bytes) -> Join:
        """Take part in an attempt on the global model with this hash.

        model_key: digest of the model alone, without the round, by which a firm knows that it has seen it before.

        Verifies: (1) keys of this epoch stand; (2) the attempt is newer than any before, and its round not released;
        (3) no sum was released on this model before. The ratchet moves to the round: older roots are gone.
        """
        state = self._state
        self._check_not_retired()
        if not state.roots or invitation.epoch != state.epoch:  # (1)
            raise RefusedError(RefusalCode.STATE_LOST, f"this firm holds no pair keys of epoch {invitation.epoch}")
        place = (invitation.round, invitation.attempt)
        if place <= (state.round, state.attempt):  # (2)
            raise RefusedError(RefusalCode.REPLAY, f"round and attempt {place} are not newer than the last")
        if state.released_members and invitation.round <= state.released_round:
            raise RefusedError(RefusalCode.ALREADY_RELEASED, f"round {invitation.round} was released already")
        self._disclosures.check_model(model_key)  # (3)
        while state.root_round < invitation.round:
            state.roots = tuple((peer, derive(root, "dure ratchet")) for peer, root in state.roots)
            state.root_round += 1
        state.phase, (state.round, state.attempt) = Phase.JOINED, place
        state.model_hash, state.model_key = model_hash, model_key
        state.self_seed, state.members = self._randomness(32), ()
        signature = self._sign("dure join", *self._join_parts(state.epoch, *place, self._firm, model_hash))
        state.join_signature = signature
        return Join(self._firm, state.epoch, *place, model_hash, signature)

    def accept_cohort(self, cohort: Cohort) -> "MaskKeys":
        """Accept the member set of the attempt and derive this attempt's mask keys.

        Verifies: (1) it is the attempt we joined and have not masked in; (2) members are firms of the job, each once,
        at least the minimum cohort, and we are one; (3) every member's signed Join for this very attempt; (4) all on
        our global model; (5) the differencing guard over earlier released cohorts.

        After this the attempt is spent: the caller stores the snapshot, and a crash costs a new attempt, never a mask.
        """
        state, terms = self._state, self._terms
        place = (cohort.epoch, cohort.round, cohort.attempt)
        if place != (state.epoch, state.round, state.attempt) or state.phase < Phase.JOINED:  # (1)
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"this firm did not join epoch, round and attempt {place}")
        if state.phase is not Phase.JOINED:
            raise RefusedError(
                RefusalCode.ATTEMPT_SPENT, "this attempt's masks were made before; ask for a new attempt"
            )
        members = {join.firm: join for join in cohort.joins}
        if len(members) != len(cohort.joins) or not set(members) <= set(terms.firms) or self._firm not in members:
            raise RefusedError(RefusalCode.ROSTER, "the cohort names a firm twice, a stranger, or leaves this firm out")
        if len(members) < terms.minimum_cohort:  # (2)
            raise RefusedError(
                RefusalCode.COHORT_TOO_SMALL,
                f"a cohort of {len(members)} is below the minimum of {terms.minimum_cohort}",
            )
        for join in members.values():  # (3)
            if (join.epoch, join.round, join.attempt) != place:
                raise RefusedError(RefusalCode.REPLAY, f"{join.firm}'s join is of another attempt")
            self._terms.check(
                join.firm, join.signature, "dure join", *self._join_parts(*place, join.firm, join.model_hash)
            )
            if join.model_hash != state.model_hash:  # (4)
                raise RefusedError(RefusalCode.GLOBAL_MODEL, f"{join.firm} stands on another global model")
        self._disclosures.check_cohort(  # (5)
            Kind.of(cohort.round), self._keys_of(members), terms.least_difference(Kind.of(cohort.round))
        )
        state.phase, state.members = Phase.MASKED, tuple(sorted(members))
        state.context = mask_context(terms, state.transcript, *place, members, state.model_hash)
        pair_keys = {
            peer: derive(root, "dure mask", numbers(state.attempt), state.context)
            for peer, root in state.roots
            if peer in members
        }
        self_key = self_mask_key(state.self_seed, state.context)
        return MaskKeys(
            add=(self_key, *(key for peer, key in pair_keys.items() if peer > self._firm)),
            subtract=tuple(key for peer, key in pair_keys.items() if peer < self._firm),
        )

    def sign_upload(self, vector_digest: bytes) -> MaskedUpdate:
        """Sign the receipt of the masked vector. Once an attempt: another vector under the same masks would leak."""
        state = self._state
        if state.phase is not Phase.MASKED:
            raise MisuseError("a masked vector is signed once, after the cohort was accepted")
        state.phase, state.vector_digest = Phase.UPLOADED, vector_digest
        signature = self._sign("dure masked update", state.context, self._firm.encode(), vector_digest)
        return MaskedUpdate(self._firm, state.context, vector_digest, signature)

    def release(self, request: ReleaseRequest) -> Release:
        """Open this firm's self mask of the attempt, once a round.

        Verifies: (1) we uploaded in this attempt; (2) the receipts are of exactly the members we masked for; (3) each
        is signed, for the same context; (4) ours names the vector we sent. The same request again, after a crash before
        the answer was stored, gets the same seed again until the next join: it tells nothing new.
        """
        state = self._state
        place = (request.epoch, request.round, request.attempt)
        may_release = state.phase in {Phase.UPLOADED, Phase.RELEASED}
        if place != (state.epoch, state.round, state.attempt) or not may_release:  # (1)
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"nothing was uploaded in epoch, round and attempt {place}")
        receipts = {upload.firm: upload for upload in request.uploads}
        if len(receipts) != len(request.uploads) or tuple(sorted(receipts)) != state.members:  # (2)
            raise RefusedError(RefusalCode.ROSTER, "not every member of the cohort, and no one else, has uploaded")
        for receipt in receipts.values():  # (3)
            parts = receipt.firm.encode(), receipt.vector_digest
            self._terms.check(receipt.firm, receipt.signature, "dure masked update", state.context, *parts)
        if receipts[self._firm].vector_digest != state.vector_digest:  # (4)
            raise RefusedError(RefusalCode.ROSTER, "the server shows another masked vector for this firm than it sent")
        state.phase, state.released_round, state.released_members = Phase.RELEASED, state.round, state.members
        self._disclosures.add(Kind.of(state.round), state.model_key, self._keys_of(state.members))
        signature = self._sign("dure release", state.context, self._firm.encode(), state.self_seed)
        return Release(self._firm, state.context, state.self_seed, signature)

    def retire(self) -> None:
        """The job is over: erase every key and take part no more. What was released stays known."""
        state = self._state
        state.phase, state.roots, state.self_seed = Phase.RETIRED, (), _NO_HASH
        state.ephemeral, state.secrets = b"", ()

    def may_have_published(self, round_: int, members: tuple[str, ...]) -> bool:
        """Whether a published sum over `members` fits what this firm did: it released to exactly them, or not at all.

        A release cannot be answered by another member set's sum, and no sum can hold a firm that did not release.
        """
        state = self._state
        if not state.released_members:
            return True
        if round_ == state.released_round:
            return tuple(sorted(members)) == state.released_members
        return round_ < state.released_round or self._firm not in members

    def _check_not_retired(self) -> None:
        if self._state.phase is Phase.RETIRED:
            raise RefusedError(RefusalCode.OUT_OF_ORDER, "the job is over at this firm; its keys are erased")

    def _sign(self, label: str, *parts: bytes) -> bytes:
        return self._identity.sign(label, self._terms.job_digest, *parts)

    def _join_parts(self, epoch: int, round_: int, attempt: int, firm: str, model_hash: bytes) -> tuple[bytes, ...]:
        return self._state.transcript, numbers(epoch, round_, attempt), firm.encode(), model_hash

    def _check_whole(self, firms: Iterable[str], what: str) -> None:
        listed = sorted(firms)
        if listed != sorted(self._terms.firms):
            raise RefusedError(
                RefusalCode.ROSTER, f"the {what} does not name each firm of the job exactly once: {listed}"
            )

    def _keys_of(self, members: Iterable[str]) -> list[str]:
        """Firms as identity keys: a name may change, a key says who it is."""
        return [self._terms.firms[name].hex() for name in members]

    def _ephemeral_keys(self) -> tuple[X25519PrivateKey, MLKEM768PrivateKey]:
        seed = self._state.ephemeral
        return X25519PrivateKey.from_private_bytes(seed[:32]), MLKEM768PrivateKey.from_seed_bytes(seed[32:])

    def _roster_digest(self) -> bytes:
        entries = self._state.advertisements
        return digest(
            "dure roster",
            numbers(self._state.epoch),
            names(e.firm for e in entries),
            *(part for e in entries for part in (e.x25519, e.mlkem)),
        )

    def _root(self, peer: str, sent: Mapping[str, KeyCiphertexts]) -> bytes:
        """The root K_ij: both a classical and a post-quantum secret must fall before it does."""
        x25519, mlkem = self._ephemeral_keys()
        first, second = sorted((self._firm, peer))
        ciphertext = dict(sent[first].ciphertexts)[second]
        kem = dict(self._state.secrets)[peer] if self._firm == first else mlkem.decapsulate(ciphertext)
        public = next(entry.x25519 for entry in self._state.advertisements if entry.firm == peer)
        try:
            shared = x25519.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:  # a point of small order, which would make the secret known
            raise RefusedError(
                RefusalCode.ROSTER, f"{peer} advertised an X25519 key that no honest firm has"
            ) from error
        return derive(shared + kem, "dure pair root", self._state.transcript, first.encode(), second.encode())

    def __repr__(self) -> str:
        state = self._state
        return (
            f"FirmSession({self._firm}, epoch={state.epoch}, round={state.round}.{state.attempt}, {state.phase.name})"
        )


@dataclass(frozen=True, repr=False)
class MaskKeys:
    """The keystream keys of one attempt, 32 bytes each. Secret, used once."""

    add: tuple[bytes, ...]
    subtract: tuple[bytes, ...]

    def mask(self, layout: VectorLayout) -> Words:
        """A vector of nothing but masks, to which the update is added. Runs while the firm trains."""
        words: Words = np.zeros(layout.words, np.uint64)
        apply_keystreams(words, add=self.add, subtract=self.subtract)
        return words


def self_mask_key(seed: bytes, context: bytes) -> bytes:
    """The keystream key of a self mask, from the seed that a release opens."""
    return derive(seed, "dure self mask", context)


def _mlkem_public(entry: KeyAdvertisement) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(entry.mlkem)
    except ValueError as error:
        raise RefusedError(RefusalCode.ROSTER, f"{entry.firm} advertised a malformed ML-KEM-768 key") from error
