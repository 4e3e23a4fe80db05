"""The server's side: it relays, adds and removes masks. It holds no secret (docs/protocol.md, section 6).

What it checks protects the firms' work, not their secrets: a firm that sends the wrong thing is named, and does not
spoil the sum for the others. Secrecy never depends on this side.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.messages import Delivery, EscrowedJoin, Establish, Join, KeyCiphertexts, MaskedUpdate, Release, Vote
from dure_protocols.secagg.codec import VectorLayout, Words
from dure_protocols.secagg.escrow import (
    conflicts,
    count_right_shares,
    delivery_for,
    recover_attempt_keys,
    recover_self_seed,
)
from dure_protocols.secagg.keystream import apply_keystreams
from dure_protocols.secagg.masks import mask_key, self_mask_key
from dure_protocols.secagg.terms import Terms, check_receipt, check_release, check_vote, mask_context, names_digest


def establish_for(receiver: str, job_digest: bytes, epoch: int, sent: Iterable[KeyCiphertexts]) -> Establish:
    """The request that brings one firm the ciphertexts that are for it."""
    keys = (key for message in sent for key in message.ciphertexts if key.receiver == receiver)
    return Establish(job_digest, epoch, tuple(sorted(keys, key=lambda key: key.sender)))


def in_conflict(terms: Terms, joins: Sequence[EscrowedJoin]) -> dict[str, str]:
    """Firms to leave out of a cohort because they committed to other keys than their peers, and why.

    Whoever disagrees with most goes first; where two firms only disagree with each other, one of them lies and nobody
    can tell which: both go.
    """
    found = conflicts(terms, joins)
    named: dict[str, str] = {}
    while found:
        most = max(len(others) for others in found.values())
        liars = sorted(firm for firm, others in found.items() if len(others) == most)
        for liar in liars:
            told = ", ".join(sorted(found[liar]))
            named[liar] = f"escrowed other keys than {told} did" + (" (one of them lies)" if most == 1 else "")
        found = {firm: others - set(liars) for firm, others in found.items() if firm not in liars}
        found = {firm: others for firm, others in found.items() if others}
    return named


class Attempt:
    """One attempt of one round at the server: joins in, masked vectors added one by one, then unmasked.

    `model_hash` is what the server itself computed; `transcript` what the firms established; `escrows` one for each
    member in threshold mode, none in retry mode. Peak memory is one vector, however many members there are.
    """

    def __init__(
        self,
        terms: Terms,
        transcript: bytes,
        place: tuple[int, int, int],
        joins: Sequence[Join],
        model_hash: bytes,
        escrows: Sequence[EscrowedJoin] = (),
    ) -> None:
        self._terms, self.place = terms, place
        self.members = tuple(sorted(join.firm for join in joins))
        self.context = mask_context(terms, transcript, *place, self.members, model_hash)
        self._escrows = {escrowed.firm: escrowed for escrowed in escrows}
        self._sum: Words | None = None
        self._added: set[str] = set()
        self._complaints: dict[str, tuple[str, ...]] = {}

    def add(self, receipt: MaskedUpdate, vector: Words, layout: VectorLayout) -> None:
        """Add one member's masked vector. The caller MUST have checked that its bytes hash to the receipt's digest.

        Raises RefusedError, naming the firm, when the receipt is not this attempt's or the vector has another size.
        """
        check_receipt(self._terms, self.context, receipt)
        if receipt.firm not in self.members or receipt.firm in self._added:
            raise RefusedError(RefusalCode.REPLAY, f"{receipt.firm} is no member, or has uploaded already")
        if vector.shape != (layout.words,):
            raise RefusedError(
                RefusalCode.MALFORMED, f"{receipt.firm} sent {vector.size} words where {layout.words} were expected"
            )
        if self._sum is None:
            self._sum = np.array(vector)
        else:
            np.add(self._sum, vector, out=self._sum)
        self._added.add(receipt.firm)
        self._complaints[receipt.firm] = receipt.complaints

    @property
    def survivors(self) -> tuple[str, ...]:
        """Members that have uploaded."""
        return tuple(name for name in self.members if name in self._added)

    @property
    def missing(self) -> tuple[str, ...]:
        """Members that have not uploaded yet."""
        return tuple(name for name in self.members if name not in self._added)

    @property
    def unopenable(self) -> dict[str, str]:
        """Threshold mode: missing members whose masks stay, because too few survivors could use their escrow; and why.

        Where there is one, the sum cannot be opened: the caller MUST NOT ask anybody to vote or release.
        """
        needed, survivors = self._terms.threshold or 0, self.survivors
        useless = {firm: [name for name in survivors if firm in self._complaints[name]] for firm in self.missing}
        return {
            firm: f"dropped out, and its escrow is of no use to {', '.join(told)}, as they say"
            for firm, told in useless.items()
            if told and len(survivors) - len(told) < needed
        }

    def deliveries_for(self, member: str) -> tuple[Delivery, ...]:
        """What the other members escrowed with this one; nothing in retry mode."""
        dealers = (self._escrows[name] for name in self.members if name in self._escrows and name != member)
        return tuple(delivery_for(self._terms, member, dealer) for dealer in dealers)

    def check_vote(self, firm: str, vote: Vote) -> None:
        """Check that a firm voted for exactly those that uploaded. Raises RefusedError naming the firm."""
        if vote.firm != firm or firm not in self._added:
            raise RefusedError(RefusalCode.REPLAY, f"{firm} sent a vote that is not its own")
        check_vote(self._terms, self.context, names_digest(self.survivors), vote)

    def check_release(self, firm: str, release: Release) -> None:
        """Check that a release is of this firm and attempt. Raises RefusedError naming the firm."""
        check_release(self._terms, self.context, firm, release)

    def can_open(self, releases: Mapping[str, Release]) -> bool:
        """Whether these releases suffice: enough of them, with enough shares that are what was dealt."""
        threshold, given = self._terms.threshold, releases.values()
        if threshold is None:
            return len(releases) == len(self.members)
        silent = [firm for firm in self.survivors if firm not in releases]
        shares = [count_right_shares(self._escrows[firm], given, is_dropped=False) for firm in silent]
        shares += [count_right_shares(self._escrows[firm], given, is_dropped=True) for firm in self.missing]
        return min([len(releases), *shares]) >= threshold

    def unmask(self, releases: Mapping[str, Release]) -> Words:
        """Remove what masks are left. Returns the exact integer sum over the survivors in ring words; call it once.

        In retry mode every member has uploaded and released; in threshold mode as many survivors as the threshold.
        Raises MessageError if too few released, and RefusedError for a release of another attempt or, naming the firm,
        for shares and escrows that are not what was committed to.
        """
        threshold, survivors = self._terms.threshold, self.survivors
        needed = len(self.members) if threshold is None else threshold
        if self._sum is None or len(releases) < needed or not set(releases) <= set(survivors):
            raise MessageError(f"{len(releases)} members released where {needed} are needed to unmask the sum")
        for firm, release in releases.items():
            self.check_release(firm, release)
        given = tuple(releases.values())
        add, subtract = [], [self_mask_key(release.seed, self.context) for release in given]
        for firm in survivors:
            if firm not in releases:
                seed = recover_self_seed(self._terms, needed, self._escrows[firm], given)
                subtract.append(self_mask_key(seed, self.context))
        for firm in self.missing:  # each survivor's mask with it is still there
            keys = recover_attempt_keys(self._terms, needed, self._escrows[firm], given)
            subtract += [mask_key(keys[peer], self.context) for peer in survivors if peer < firm]
            add += [mask_key(keys[peer], self.context) for peer in survivors if peer > firm]
        apply_keystreams(self._sum, add=add, subtract=subtract)
        total, self._sum = self._sum, None
        return total
