"""One firm's side of secure aggregation, in retry mode and in threshold mode (docs/protocol.md, sections 3 to 6).

A session takes messages and returns messages. It does no IO: the caller MUST store `snapshot()` durably before it sends
what a method returned, or a crash could reuse a mask. The method on each message lists what it verifies.

Follows Bonawitz et al. 2017 (double masking) with hybrid keys; departs from it in that pair keys last an epoch and are
ratcheted each round. In retry mode there is no secret sharing: self masks are opened only when every member has
uploaded, and a drop-out costs a fresh attempt. In threshold mode the survivors open the sum; see `escrow`.
"""

from collections.abc import Iterable

from dure_protocols.errors import MisuseError, RefusalCode, RefusedError
from dure_protocols.identity import Identity
from dure_protocols.job import MAX_ROUNDS
from dure_protocols.messages import (
    Cohort,
    EscrowedJoin,
    Establish,
    Invitation,
    Join,
    KeyAdvertisement,
    KeyCiphertexts,
    MaskedUpdate,
    PublishedSum,
    Release,
    ReleaseRequest,
    Roster,
    Vote,
    VoteRequest,
)
from dure_protocols.secagg.codec import VectorLayout, Words
from dure_protocols.secagg.disclosure import Disclosures, Kind
from dure_protocols.secagg.escrow import deal, escrow_digest, open_delivery
from dure_protocols.secagg.handshake import Encapsulate, Handshake, HandshakeState, mlkem_encapsulate
from dure_protocols.secagg.keystream import derive
from dure_protocols.secagg.masks import MaskKeys, mask_key, self_mask_key, tag_key
from dure_protocols.secagg.published import awaits_sum, check_sum, check_witnesses
from dure_protocols.secagg.session_state import MAX_EPOCHS, NO_HASH, EpochMemory, HeldFrom, Phase, SessionState
from dure_protocols.secagg.terms import (
    Randomness,
    Terms,
    check_join,
    check_receipt,
    check_vote,
    join_parts,
    mask_context,
    names_digest,
    numbers,
    receipt_parts,
    release_parts,
    vote_parts,
)
from dure_protocols.wire import Reader, Writer

_FORMAT = 3
"""Of a stored session."""


class FirmSession:
    """One firm in one job. Calls follow the messages: advertise, encapsulate, establish; then for each attempt join,
    accept_cohort, sign_upload, in threshold mode vote, and release. Every method raises RefusedError for what a lying
    server may have sent.
    """

    def __init__(
        self,
        firm: str,
        identity: Identity,
        terms: Terms,
        randomness: Randomness,
        disclosures: Disclosures,
        encapsulate: Encapsulate = mlkem_encapsulate,
    ) -> None:
        """disclosures: what this firm released over all its jobs; the session notes to it, and the caller stores it.

        `randomness(n)` gives n bytes; encapsulate: another than the library's is for test vectors.
        """
        if terms.firms.get(firm) != identity.public_bytes:
            raise RefusedError(
                RefusalCode.ROSTER, f"the job lists another identity key for {firm} than this firm's own"
            )
        self._firm, self._identity, self._terms, self._randomness = firm, identity, terms, randomness
        self._disclosures = disclosures
        self._handshake = Handshake(firm, identity, terms, randomness, encapsulate)
        self._state = SessionState()

    def use_terms(self, terms: Terms) -> None:
        """Take up what the firm's policy says now; the job behind it must be the same."""
        if terms.job_digest != self._terms.job_digest:
            raise MisuseError("a session's terms may change, its job may not")
        self._terms = terms

    def snapshot(self) -> bytes:
        """The state as bytes, to be stored (mode 0600) before anything is sent. Holds keys."""
        writer = Writer().u8(_FORMAT).fixed(self._terms.job_digest, 32)
        self._state.write(writer)
        return bytes(writer)

    def restore(self, snapshot: bytes) -> None:
        """Go on from a stored snapshot. Raises MessageError if it is damaged, RefusedError if of another job."""
        reader = Reader(snapshot)
        if reader.u8() != _FORMAT or reader.fixed(32) != self._terms.job_digest:
            raise RefusedError(RefusalCode.STATE_LOST, "the stored protocol state belongs to another job or version")
        state = SessionState.read(reader)
        reader.end()
        self._state = state

    @property
    def epoch(self) -> int:
        """The newest epoch this firm has made keys for; 0 before the first."""
        return self._state.handshake.epoch

    def advertise(self, epoch: int) -> KeyAdvertisement:
        """Begin an epoch with fresh keys. Verifies: (1) the epoch is newer than any before, and the job not over."""
        self._check_not_retired()
        if epoch <= self.epoch:  # (1)
            raise RefusedError(RefusalCode.REPLAY, f"epoch {epoch} is not newer than epoch {self.epoch}")
        state = self._state
        state.phase, state.roots, state.self_seed, state.held = Phase.IDLE, (), NO_HASH, ()
        return self._handshake.advertise(state.handshake, epoch)

    def encapsulate(self, roster: Roster) -> KeyCiphertexts:
        """Accept the roster and encapsulate to each firm behind this one; see `Handshake.encapsulate`."""
        return self._handshake.encapsulate(self._state.handshake, roster)

    def establish(self, request: Establish) -> bytes:
        """Derive a root with every other firm, erase the ephemeral keys. Returns the transcript's digest (32 bytes).

        See `Handshake.establish` for what is verified.
        """
        state = self._state
        keys = self._handshake.establish(state.handshake, request)
        state.handshake = HandshakeState(epoch=keys.epoch)
        state.roots, state.root_round = keys.roots, 0
        known = (*state.epochs, EpochMemory(keys.epoch, keys.transcript, keys.tag_key))
        state.epochs = known[-MAX_EPOCHS:]
        return keys.transcript

    def join(self, invitation: Invitation, model_hash: bytes, model_key: bytes) -> Join | EscrowedJoin:
        """Take part in an attempt on the global model with this hash.

        model_key: digest of the model alone, without the round, by which a firm knows that it has seen it before.

        Verifies: (1) keys of this epoch stand; (2) the attempt is newer than any before, its round not released, and
        one that a job may have; (3) nothing was contributed on this model before, in threshold mode but in this very
        round. The ratchet moves to the round: older roots are gone.
        """
        state = self._state
        self._check_not_retired()
        if not state.roots or invitation.epoch != state.epochs[-1].epoch:  # (1)
            raise RefusedError(RefusalCode.STATE_LOST, f"this firm holds no pair keys of epoch {invitation.epoch}")
        place = (invitation.round, invitation.attempt)
        if place <= (state.round, state.attempt):  # (2)
            raise RefusedError(RefusalCode.REPLAY, f"round and attempt {place} are not newer than the last")
        if invitation.round > MAX_ROUNDS + 1:  # the ratchet would move for ever
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"no job has a round {invitation.round}")
        if state.released_members and invitation.round <= state.released_round:
            raise RefusedError(RefusalCode.ALREADY_RELEASED, f"round {invitation.round} was released already")
        self._check_model(model_key, invitation.round)  # (3)
        while state.root_round < invitation.round:
            state.roots = tuple((peer, derive(root, "dure ratchet")) for peer, root in state.roots)
            state.root_round += 1
        state.phase, (state.round, state.attempt) = Phase.JOINED, place
        state.model_hash, state.model_key = model_hash, model_key
        state.self_seed, state.members, state.survivors, state.held = self._randomness(32), (), (), ()
        return self._signed_join()

    def accept_cohort(self, cohort: Cohort) -> MaskKeys:
        """Accept the member set of the attempt and derive this attempt's mask keys.

        Verifies: (1) it is the attempt we joined and have not masked in; (2) members are firms of the job, each once,
        at least as many as a sum must hold, and we are one; (3) every member's signed Join for this very attempt;
        (4) all on our global model; (5) the differencing guard over earlier released cohorts; (6) in threshold mode one
        delivery from each other member: what is wrong with one is named in the receipt, and does not stop us.

        After this the attempt is spent: the caller stores the snapshot, and a crash costs a new attempt, never a mask.
        """
        state, terms = self._state, self._terms
        place = (cohort.epoch, cohort.round, cohort.attempt)
        if place != self._place or state.phase < Phase.JOINED:  # (1)
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"this firm did not join epoch, round and attempt {place}")
        if state.phase is not Phase.JOINED:
            raise RefusedError(
                RefusalCode.ATTEMPT_SPENT, "this attempt's masks were made before; ask for a new attempt"
            )
        members = {join.firm: join for join in cohort.joins}
        if len(members) != len(cohort.joins) or not set(members) <= set(terms.firms) or self._firm not in members:
            raise RefusedError(RefusalCode.ROSTER, "the cohort names a firm twice, a stranger, or leaves this firm out")
        self._check_size(members, "cohort")  # (2)
        for join in members.values():  # (3)
            check_join(terms, self._transcript, place, join)
            if join.model_hash != state.model_hash:  # (4)
                raise RefusedError(RefusalCode.GLOBAL_MODEL, f"{join.firm} stands on another global model")
        self._check_cohort(members)  # (5)
        attempt_keys = self._attempt_keys()
        state.held = self._open_deliveries(cohort, members, attempt_keys)  # (6)
        state.phase, state.members = Phase.MASKED, tuple(sorted(members))
        state.context = mask_context(terms, self._transcript, *place, members, state.model_hash)
        pair_keys = {peer: mask_key(key, state.context) for peer, key in attempt_keys.items() if peer in members}
        return MaskKeys(
            add=(
                self_mask_key(state.self_seed, state.context),
                *(key for peer, key in pair_keys.items() if peer > self._firm),
            ),
            subtract=tuple(key for peer, key in pair_keys.items() if peer < self._firm),
            tag=tag_key(state.epochs[-1].tag_key, state.context),
        )

    def sign_upload(self, vector_digest: bytes) -> MaskedUpdate:
        """Sign the receipt of the masked vector. Once an attempt: another vector under the same masks would leak.

        In threshold mode the others can open the sum without us from here on, so the model counts as contributed to;
        verifies that it was not meanwhile, in another job.
        """
        state = self._state
        if state.phase is not Phase.MASKED:
            raise MisuseError("a masked vector is signed once, after the cohort was accepted")
        if self._terms.threshold is not None:
            self._check_model(state.model_key, state.round)
            state.contributed_key, state.contributed_round = state.model_key, state.round
            self._disclosures.add_model(state.model_key)
        state.phase, state.vector_digest = Phase.UPLOADED, vector_digest
        held = {shares.dealer for shares in state.held}
        complaints = tuple(peer for peer in state.members if peer not in {*held, self._firm})
        receipt = MaskedUpdate(
            self._firm, state.context, vector_digest, complaints if self._terms.threshold else (), bytes(64)
        )
        signature = self._sign("dure masked update", *receipt_parts(receipt))
        return MaskedUpdate(self._firm, state.context, vector_digest, receipt.complaints, signature)

    def vote(self, request: VoteRequest) -> Vote:
        """Threshold mode: agree on the survivors whose sum is opened. One set an attempt.

        Verifies: (1) we uploaded in this attempt; (2) the survivors are members, each once, we among them, and as many
        as a sum must hold; (3) each receipt is signed, for our context; (4) ours names the vector we sent; (5) we have
        not voted for another set; (6) the differencing guard. The same request again gets the same vote again.
        """
        state = self._state
        place = (request.epoch, request.round, request.attempt)
        if self._terms.threshold is None or place != self._place or state.phase not in {Phase.UPLOADED, Phase.VOTED}:
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"nothing was uploaded in epoch, round and attempt {place}")
        receipts = {upload.firm: upload for upload in request.uploads}
        is_subset = set(receipts) <= set(state.members) and self._firm in receipts
        if len(receipts) != len(request.uploads) or not is_subset:  # (2)
            raise RefusedError(RefusalCode.ROSTER, "the survivors name a firm twice, no member, or leave this firm out")
        self._check_size(receipts, "survivor set")
        self._check_receipts(receipts)  # (3), (4)
        survivors = tuple(sorted(receipts))
        if state.phase is Phase.VOTED and survivors != state.survivors:  # (5)
            raise RefusedError(RefusalCode.ALREADY_RELEASED, "this firm has voted for another survivor set")
        self._check_cohort(survivors)  # (6)
        state.phase, state.survivors = Phase.VOTED, survivors
        vote = Vote(self._firm, state.context, names_digest(survivors), bytes(64))
        return Vote(self._firm, state.context, vote.survivors, self._sign("dure vote", *vote_parts(vote)))

    def release(self, request: ReleaseRequest) -> Release:
        """Open this firm's part of the sum, once a round.

        Verifies, in retry mode: (1) we uploaded in this attempt; (2) the receipts are of exactly the members we masked
        for; (3) each is signed, for the same context; (4) ours names the vector we sent. In threshold mode: (5) we
        voted in this attempt; (6) as many survivors as the threshold signed the set that we signed, no one twice. In
        both: (7) what other jobs released since we joined leaves this release as harmless as it was.
        The same request again, after a crash before the answer was stored, gets the same answer again until the next
        join: it tells nothing new.
        """
        state, threshold = self._state, self._terms.threshold
        place = (request.epoch, request.round, request.attempt)
        ready = Phase.UPLOADED if threshold is None else Phase.VOTED
        if place != self._place or state.phase not in {ready, Phase.RELEASED}:  # (1), (5)
            raise RefusedError(RefusalCode.OUT_OF_ORDER, f"nothing is to be released in epoch, round, attempt {place}")
        if threshold is None:
            self._check_all_uploaded(request)
            state.survivors = state.members
        else:
            self._check_votes(request, threshold)
        released = Kind.of(state.round), state.model_key, self._keys_of(state.survivors)
        if state.phase is not Phase.RELEASED or not self._disclosures.holds(*released):  # (7)
            self._check_model(state.model_key, state.round)
            self._check_size(state.survivors, "survivor set")
            self._check_cohort(state.survivors)
        state.phase, state.released_round, state.released_members = Phase.RELEASED, state.round, state.survivors
        state.contributed_key, state.contributed_round = state.model_key, state.round
        self._disclosures.add(*released)
        kept = {shares.dealer: shares for shares in state.held}
        ours = tuple((name, kept[name].self_share) for name in state.survivors if name in kept)
        dropped = (name for name in state.members if name not in state.survivors)
        theirs = tuple((name, kept[name].escrow_share) for name in dropped if name in kept)
        release = Release(self._firm, state.context, state.self_seed, ours, theirs, bytes(64))
        signature = self._sign("dure release", *release_parts(release))
        return Release(self._firm, state.context, state.self_seed, ours, theirs, signature)

    def check_sum(self, published: PublishedSum, words: Words, layout: VectorLayout, model_hash: bytes) -> None:
        """Check a published sum before it is applied; see `published.check_sum`."""
        check_sum(self._terms, self._state, self._firm, published, words, layout, model_hash)

    def note_sum(self, published: PublishedSum, model_key: bytes) -> None:
        """Note a checked sum that holds this firm's vector, also where the others opened it without us."""
        if self._firm in published.members:
            self._disclosures.add(Kind.of(published.round), model_key, self._keys_of(published.members))

    def awaits_sum(self, round_: int) -> bool:
        """Whether this firm uploaded in a round that others may have opened over members that it does not know yet."""
        return awaits_sum(self._state, round_)

    def check_witnesses(self, invitation: Invitation, model_hash: bytes) -> None:
        """Check that enough other firms stand on the global state of a snapshot; see `published.check_witnesses`."""
        check_witnesses(self._terms, self._state, self._firm, invitation, model_hash)

    def retire(self) -> None:
        """The job is over: erase every key and take part no more. What was released stays known."""
        state = self._state
        state.phase, state.roots, state.self_seed, state.held = Phase.RETIRED, (), NO_HASH, ()
        state.handshake, state.epochs = HandshakeState(epoch=self.epoch), ()

    @property
    def _place(self) -> tuple[int, int, int]:
        state = self._state
        return (state.epochs[-1].epoch if state.epochs else 0), state.round, state.attempt

    @property
    def _transcript(self) -> bytes:
        return self._state.epochs[-1].transcript

    def _signed_join(self) -> Join | EscrowedJoin:
        state, threshold = self._state, self._terms.threshold
        escrow = None
        if threshold is not None:
            keys = self._attempt_keys()
            boxes = {peer: self._box_key(root, self._firm) for peer, root in state.roots}
            escrow = deal(self._terms, threshold, state.self_seed, keys, boxes, self._randomness)
        committed = NO_HASH if escrow is None else escrow_digest(escrow)
        join = Join(self._firm, *self._place, state.model_hash, committed, bytes(64))
        signature = self._sign("dure join", *join_parts(self._transcript, join))
        join = Join(self._firm, *self._place, state.model_hash, committed, signature)
        return join if escrow is None else EscrowedJoin(join, escrow)

    def _attempt_keys(self) -> dict[str, bytes]:
        """q_ij by peer: all that a server learns of a pair whose firm dropped out."""
        state = self._state
        return {peer: derive(root, "dure attempt", numbers(state.attempt)) for peer, root in state.roots}

    def _box_key(self, root: bytes, dealer: str) -> bytes:
        """What seals a dealer's shares for one firm: beside the attempt key, not below it, for escrows open that."""
        return derive(root, "dure share box", numbers(self._state.attempt), dealer.encode())

    def _open_deliveries(
        self, cohort: Cohort, members: Iterable[str], attempt_keys: dict[str, bytes]
    ) -> tuple[HeldFrom, ...]:
        if self._terms.threshold is None:
            if cohort.deliveries:
                raise RefusedError(RefusalCode.MALFORMED, "there is no escrow in retry mode")
            return ()
        if sorted(d.dealer for d in cohort.deliveries) != sorted(name for name in members if name != self._firm):
            raise RefusedError(RefusalCode.ROSTER, "the cohort does not bring one delivery from each other member")
        roots = dict(self._state.roots)
        opened = {
            d.dealer: open_delivery(d, self._firm, attempt_keys[d.dealer], self._box_key(roots[d.dealer], d.dealer))
            for d in cohort.deliveries
        }
        return tuple(
            HeldFrom(dealer, shares.self_share, shares.escrow_share)
            for dealer, shares in sorted(opened.items())
            if shares is not None
        )

    def _check_size(self, members: Iterable[str], what: str) -> None:
        size, least = len(set(members)), self._terms.least_survivors
        if size < least:
            raise RefusedError(RefusalCode.COHORT_TOO_SMALL, f"a {what} of {size} is below the minimum of {least}")

    def _check_model(self, model_key: bytes, round_: int) -> None:
        """Refuse a model that was contributed to before, but for what threshold mode uploaded in this very round."""
        state = self._state
        is_again = (state.contributed_key, state.contributed_round) == (model_key, round_)
        if self._terms.threshold is None or not is_again:
            self._disclosures.check_model(model_key)

    def _check_cohort(self, members: Iterable[str]) -> None:
        kind = Kind.of(self._state.round)
        self._disclosures.check_cohort(kind, self._keys_of(members), self._terms.least_difference(kind))

    def _check_all_uploaded(self, request: ReleaseRequest) -> None:
        receipts = {upload.firm: upload for upload in request.uploads}
        if len(receipts) != len(request.uploads) or tuple(sorted(receipts)) != self._state.members:  # (2)
            raise RefusedError(RefusalCode.ROSTER, "not every member of the cohort, and no one else, has uploaded")
        self._check_receipts(receipts)  # (3), (4)

    def _check_receipts(self, receipts: dict[str, MaskedUpdate]) -> None:
        for receipt in receipts.values():
            check_receipt(self._terms, self._state.context, receipt)
        if receipts[self._firm].vector_digest != self._state.vector_digest:
            raise RefusedError(RefusalCode.ROSTER, "the server shows another masked vector for this firm than it sent")

    def _check_votes(self, request: ReleaseRequest, threshold: int) -> None:
        state = self._state
        voters = {vote.firm for vote in request.votes}
        if len(voters) != len(request.votes) or not voters <= set(state.survivors) or len(voters) < threshold:  # (6)
            raise RefusedError(
                RefusalCode.ROSTER, f"{len(voters & set(state.survivors))} survivors voted; {threshold} are needed"
            )
        agreed = names_digest(state.survivors)
        for vote in request.votes:
            check_vote(self._terms, state.context, agreed, vote)

    def _check_not_retired(self) -> None:
        if self._state.phase is Phase.RETIRED:
            raise RefusedError(RefusalCode.OUT_OF_ORDER, "the job is over at this firm; its keys are erased")

    def _sign(self, label: str, *parts: bytes) -> bytes:
        return self._identity.sign(label, self._terms.job_digest, *parts)

    def _keys_of(self, members: Iterable[str]) -> list[str]:
        """Firms as identity keys: a name may change, a key says who it is."""
        return [self._terms.firms[name].hex() for name in members]

    def __repr__(self) -> str:
        state = self._state
        return f"FirmSession({self._firm}, epoch={self.epoch}, round={state.round}.{state.attempt}, {state.phase.name})"
