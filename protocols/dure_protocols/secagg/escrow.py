"""What a firm leaves with the others, so that a sum can be opened when it vanishes (docs/protocol.md, section 6.5).

Follows Bonawitz et al. 2017: a firm deals Shamir shares of its self seed b and of a key that opens its pair masks; the
others give shares of b if its vector is in the sum and of the key if it is not, never both. Departs from it in that the
key opens one attempt's keys only, never what they were derived from, and in that every share and every key is committed
to in what the dealer signs: whoever sends a wrong one is named.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.messages import SHARE_BYTES, Delivery, Escrow, EscrowedJoin, Release, SealedShares
from dure_protocols.secagg.shamir import combine, split
from dure_protocols.secagg.terms import Randomness, Terms
from dure_protocols.wire import Writer, digest

_NONCE = bytes(12)  # each key below seals one message
_KEY_BYTES = 32


@dataclass(frozen=True, repr=False)
class HeldShares:
    """A dealer's shares at one firm, 33 bytes each: of its self seed and of its escrow key."""

    self_share: bytes
    escrow_share: bytes


def commit_share(share: bytes) -> bytes:
    """The commitment to a share. Hiding, because a share is as random as the secret."""
    return digest("dure share", share)


def commit_secret(secret: bytes) -> bytes:
    """The commitment to a self seed or an escrow key."""
    return digest("dure escrow secret", secret)


def commit_key(attempt_key: bytes) -> bytes:
    """The commitment to an attempt key q_ij. Both firms of the pair make the same one."""
    return digest("dure attempt key", attempt_key)


def escrow_digest(escrow: Escrow) -> bytes:
    """What a join signs of an escrow."""
    writer = Writer()
    escrow.write(writer)
    return digest("dure escrow", bytes(writer))


def points(terms: Terms) -> dict[str, int]:
    """Each firm's point in the sharing: its place in the alphabet, from 1 on."""
    return {firm: place for place, firm in enumerate(sorted(terms.firms), start=1)}


def deal(
    terms: Terms,
    threshold: int,
    self_seed: bytes,
    attempt_keys: Mapping[str, bytes],
    box_keys: Mapping[str, bytes],
    randomness: Randomness,
) -> Escrow:
    """A firm's escrow for one attempt.

    attempt_keys: q_ij by peer, for every other firm of the job; box_keys: by peer, what seals the shares for it. Those
    MUST NOT follow from the attempt keys: an opened escrow tells these, and would open the shares of the self seed.
    """
    peers = sorted(attempt_keys)
    own_key = randomness(_KEY_BYTES)
    at = [points(terms)[peer] for peer in peers]
    self_shares = split(self_seed, threshold, at, randomness)
    key_shares = split(own_key, threshold, at, randomness)
    keys = b"".join(attempt_keys[peer] for peer in peers)
    return Escrow(
        self_commitment=commit_secret(self_seed),
        key_commitment=commit_secret(own_key),
        sealed=AESGCM(own_key).encrypt(_NONCE, keys, None),
        key_commitments=tuple(commit_key(attempt_keys[peer]) for peer in peers),
        shares=tuple(
            SealedShares(
                peer,
                AESGCM(box_keys[peer]).encrypt(_NONCE, ours + keys_share, None),
                commit_share(ours),
                commit_share(keys_share),
            )
            for peer, ours, keys_share in zip(peers, self_shares, key_shares, strict=True)
        ),
    )


def open_delivery(delivery: Delivery, receiver: str, attempt_key: bytes, box_key: bytes) -> HeldShares | None:
    """The shares that a dealer sealed for this firm, or None if they are not what the dealer committed to.

    attempt_key, box_key: of dealer and receiver, as in `deal`. None is no proof towards others: it is this firm's word.
    """
    shares = delivery.shares
    if shares.receiver != receiver or delivery.key_commitment != commit_key(attempt_key):
        return None
    try:
        opened = AESGCM(box_key).decrypt(_NONCE, shares.box, None)
    except InvalidTag:
        return None
    held = HeldShares(opened[:SHARE_BYTES], opened[SHARE_BYTES:])
    are_committed = (commit_share(held.self_share), commit_share(held.escrow_share)) == (
        shares.self_commitment,
        shares.escrow_commitment,
    )
    return held if are_committed else None


def check_escrow(terms: Terms, escrowed: EscrowedJoin) -> None:
    """Check that an escrow is the one its join signed, and complete. The server's; raises RefusedError."""
    join, escrow = escrowed.join, escrowed.escrow
    if escrow_digest(escrow) != join.escrow:
        raise RefusedError(RefusalCode.ESCROW, f"{join.firm} sent another escrow than its join signs")
    others = sorted(name for name in terms.firms if name != join.firm)
    if [shares.receiver for shares in escrow.shares] != others or len(escrow.key_commitments) != len(others):
        raise RefusedError(RefusalCode.ESCROW, f"{join.firm}'s escrow does not name each other firm once, in order")


def conflicts(terms: Terms, joins: Sequence[EscrowedJoin]) -> dict[str, set[str]]:
    """Which firms committed to different keys with each other: firm to those it disagrees with.

    One of the two lies, and nobody can tell which; who disagrees with several is who lies, or they all do.
    """
    committed = {
        escrowed.firm: dict(zip(_others(terms, escrowed.firm), escrowed.escrow.key_commitments, strict=True))
        for escrowed in joins
    }
    found: dict[str, set[str]] = {}
    for one, keys in committed.items():
        for other in committed:
            if one < other and keys[other] != committed[other][one]:
                found.setdefault(one, set()).add(other)
                found.setdefault(other, set()).add(one)
    return found


def delivery_for(terms: Terms, receiver: str, dealer: EscrowedJoin) -> Delivery:
    """The part of a dealer's escrow for one other firm."""
    at = _others(terms, dealer.firm).index(receiver)
    return Delivery(dealer.firm, dealer.escrow.key_commitments[at], dealer.escrow.shares[at])


def count_right_shares(dealer: EscrowedJoin, releases: Iterable[Release], *, is_dropped: bool) -> int:
    """Releases that bring a share as it was dealt: of the escrow key if the dealer dropped out, else of the seed."""
    dealt = {part.receiver: part for part in dealer.escrow.shares}
    right = 0
    for release in releases:
        share = dict(release.escrow_shares if is_dropped else release.self_shares).get(dealer.firm)
        if share is not None and release.firm in dealt:
            part = dealt[release.firm]
            right += commit_share(share) == (part.escrow_commitment if is_dropped else part.self_commitment)
    return right


def recover_self_seed(terms: Terms, threshold: int, dealer: EscrowedJoin, releases: Iterable[Release]) -> bytes:
    """The self seed of a survivor that did not release. Raises RefusedError naming who sent what is wrong."""
    shares = {release.firm: dict(release.self_shares).get(dealer.firm) for release in releases}
    commitments = {part.receiver: part.self_commitment for part in dealer.escrow.shares}
    return _recover(terms, threshold, dealer, shares, commitments, dealer.escrow.self_commitment)


def recover_attempt_keys(
    terms: Terms, threshold: int, dealer: EscrowedJoin, releases: Iterable[Release]
) -> dict[str, bytes]:
    """The attempt keys of a member that dropped out, by peer. Raises RefusedError naming who sent what is wrong."""
    shares = {release.firm: dict(release.escrow_shares).get(dealer.firm) for release in releases}
    commitments = {part.receiver: part.escrow_commitment for part in dealer.escrow.shares}
    key = _recover(terms, threshold, dealer, shares, commitments, dealer.escrow.key_commitment)
    peers = _others(terms, dealer.firm)
    try:
        opened = AESGCM(key).decrypt(_NONCE, dealer.escrow.sealed, None)
    except InvalidTag as error:
        raise RefusedError(RefusalCode.ESCROW, f"{dealer.firm}'s escrow does not open with its own key") from error
    keys = [opened[at : at + _KEY_BYTES] for at in range(0, len(opened), _KEY_BYTES)]
    if tuple(commit_key(key) for key in keys) != dealer.escrow.key_commitments:
        raise RefusedError(RefusalCode.ESCROW, f"{dealer.firm}'s escrow holds other keys than it committed to")
    return dict(zip(peers, keys, strict=True))


def _recover(
    terms: Terms,
    threshold: int,
    dealer: EscrowedJoin,
    shares: Mapping[str, bytes | None],
    commitments: Mapping[str, bytes],
    secret_commitment: bytes,
) -> bytes:
    """Combine the shares that are what the dealer committed to; a wrong one does no harm while enough are right."""
    at = points(terms)
    right = {
        at[firm]: share
        for firm, share in shares.items()
        if share is not None and commit_share(share) == commitments.get(firm)
    }
    wrong = sorted(firm for firm, share in shares.items() if share is not None and at[firm] not in right)
    if len(right) < threshold:
        told = f"; {', '.join(wrong)} sent other shares than were dealt" if wrong else ""
        raise RefusedError(
            RefusalCode.ESCROW, f"{len(right)} right shares of {dealer.firm} where {threshold} are needed{told}"
        )
    try:
        secret = combine(right, threshold)
    except MessageError:
        secret = b""
    if commit_secret(secret) != secret_commitment:
        raise RefusedError(RefusalCode.ESCROW, f"{dealer.firm} dealt shares that do not belong together")
    return secret


def _others(terms: Terms, firm: str) -> list[str]:
    return sorted(name for name in terms.firms if name != firm)
