"""Shamir's sharing and the escrow of threshold mode (docs/protocol.md, section 6.5)."""

from cryptography.exceptions import InvalidTag

from .messages import ESCROW, write
from .wire import Refused, digest, seal, unseal

P = 2**256 + 297


def split(secret, threshold, points, draw):
    """Shares at points; draw(n) gives n random bytes."""
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [int.from_bytes(draw(48), "big") % P for _ in range(threshold - 1)]
    values = (sum(c * pow(point, power, P) for power, c in enumerate(coefficients)) % P for point in points)
    return [value.to_bytes(33, "big") for value in values]


def combine(shares, threshold):
    """The secret of shares by point, from the lowest points. Raises Refused("malformed")."""
    points = sorted(shares)[:threshold]
    values = {point: int.from_bytes(shares[point], "big") for point in points}
    if len(points) < threshold or any(len(shares[point]) != 33 or values[point] >= P for point in points):
        raise Refused("malformed")
    secret = 0
    for point in points:
        factor = values[point]
        for other in points:
            if other != point:
                factor = factor * other * pow(other - point, -1, P) % P
        secret += factor
    secret %= P
    if secret >= 2**256:
        raise Refused("malformed")
    return secret.to_bytes(32, "big")


def commit_share(share):
    return digest("dure share", share)


def commit_secret(secret):
    return digest("dure escrow secret", secret)


def commit_key(key):
    return digest("dure attempt key", key)


def escrow_digest(escrow):
    return digest("dure escrow", write(ESCROW, escrow))


def points_of(firms):
    return {firm: place for place, firm in enumerate(sorted(firms), start=1)}


def check_escrow(firms, dealer, escrow, signed):
    """The server's: the escrow that the join signed, for each other firm once, in order."""
    others = sorted(set(firms) - {dealer})
    receivers = [part["receiver"] for part in escrow["shares"]]
    if escrow_digest(escrow) != signed or receivers != others or len(escrow["key_commitments"]) != len(others):
        raise Refused("escrow")


def deal(firms, threshold, self_seed, attempt_keys, box_keys, draw):
    """A firm's escrow. Draws the escrow key, then the coefficients for the self seed, then those for the escrow key."""
    peers = sorted(attempt_keys)
    own_key = draw(32)
    points = [points_of(firms)[peer] for peer in peers]
    self_shares = split(self_seed, threshold, points, draw)
    key_shares = split(own_key, threshold, points, draw)
    return {
        "self_commitment": commit_secret(self_seed),
        "key_commitment": commit_secret(own_key),
        "sealed": seal(own_key, b"".join(attempt_keys[peer] for peer in peers)),
        "key_commitments": [commit_key(attempt_keys[peer]) for peer in peers],
        "shares": [
            {
                "receiver": peer,
                "box": seal(box_keys[peer], one + other),
                "self_commitment": commit_share(one),
                "escrow_commitment": commit_share(other),
            }
            for peer, one, other in zip(peers, self_shares, key_shares, strict=True)
        ],
    }


def open_delivery(delivery, receiver, attempt_key, box_key):
    """Both shares, or None if they are not what the dealer committed to."""
    shares = delivery["shares"]
    if shares["receiver"] != receiver or delivery["key_commitment"] != commit_key(attempt_key):
        return None
    try:
        opened = unseal(box_key, shares["box"])
    except InvalidTag:
        return None
    held = opened[:33], opened[33:]
    committed = shares["self_commitment"], shares["escrow_commitment"]
    return held if (commit_share(held[0]), commit_share(held[1])) == committed else None


def _recover(firms, threshold, escrow, given, which):
    """The self seed ("self") or the escrow key ("escrow") behind the shares that firms gave."""
    committed = {part["receiver"]: part[f"{which}_commitment"] for part in escrow["shares"]}
    points = points_of(firms)
    right = {points[firm]: share for firm, share in given.items() if commit_share(share) == committed.get(firm)}
    if len(right) < threshold:
        raise Refused("escrow")
    try:
        secret = combine(right, threshold)
    except Refused:
        raise Refused("escrow") from None
    if commit_secret(secret) != escrow["self_commitment" if which == "self" else "key_commitment"]:
        raise Refused("escrow")
    return secret


def recover_self_seed(firms, threshold, escrow, given):
    return _recover(firms, threshold, escrow, given, "self")


def recover_attempt_keys(firms, threshold, dealer, escrow, given):
    """The attempt keys of a member that dropped out, by peer."""
    key = _recover(firms, threshold, escrow, given, "escrow")
    try:
        opened = unseal(key, escrow["sealed"])
    except InvalidTag:
        raise Refused("escrow") from None
    keys = [opened[at : at + 32] for at in range(0, len(opened), 32)]
    if [commit_key(key) for key in keys] != escrow["key_commitments"]:
        raise Refused("escrow")
    return dict(zip(sorted(set(firms) - {dealer}), keys, strict=True))


def left_out(pairs):
    """Firms to leave out because of conflicts: who disagrees with most goes first, until all agree."""
    out, pairs = set(), [set(pair) for pair in pairs]
    while pairs:
        count = {firm: sum(firm in pair for pair in pairs) for firm in set().union(*pairs)}
        gone = {firm for firm in count if count[firm] == max(count.values())}
        out |= gone
        pairs = [pair for pair in pairs if not pair & gone]
    return sorted(out)


def conflicts(firms, escrows):
    """Pairs of firms that committed to different keys with each other. escrows: by firm."""
    others = {firm: sorted(set(firms) - {firm}) for firm in escrows}
    committed = {
        firm: dict(zip(others[firm], escrow["key_commitments"], strict=True)) for firm, escrow in escrows.items()
    }
    return [
        [one, other]
        for one in sorted(escrows)
        for other in sorted(escrows)
        if one < other and committed[one][other] != committed[other][one]
    ]
