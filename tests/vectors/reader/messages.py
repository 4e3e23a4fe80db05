"""Messages as byte layouts (docs/protocol.md, section 9): a table, one writer, one reader.

A message is a dict: its kind's name under "kind", and its fields. Bytes are bytes, lists are lists.
"""

from .wire import Refused, blob, u32, u64

FIRMS = 256

U64 = "u64"
TEXT = "text"
CODE = "code"
REASON = "reason"
TEXTS = TEXT, CODE, REASON
PLAIN = U64, TEXT, CODE, REASON


def fixed(length):
    return ("fixed", length)


def at_most(length):
    return ("blob", length)


def listed(inner, most=FIRMS):
    return ("list", inner, most)


HASH = fixed(32)
SIGNATURE = fixed(64)
NAMES = listed(TEXT)
PLACE = [("epoch", U64), ("round", U64), ("attempt", U64)]
SHARES = listed(("pair", TEXT, fixed(33)))

ADVERTISEMENT = [
    ("firm", TEXT),
    ("epoch", U64),
    ("x25519", fixed(32)),
    ("mlkem", fixed(1184)),
    ("signature", SIGNATURE),
]
SEALED_KEY = [
    ("sender", TEXT),
    ("receiver", TEXT),
    ("ciphertext", fixed(1088)),
    ("tag_box", at_most(48)),
    ("signature", SIGNATURE),
]
PUBLISHED_SUM = [*PLACE, ("cohort", NAMES), ("members", NAMES), ("vector_digest", HASH)]
JOIN = [("firm", TEXT), *PLACE, ("model_hash", HASH), ("escrow", HASH), ("signature", SIGNATURE)]
SNAPSHOT = [("vector_digest", HASH), ("witnesses", listed(JOIN))]
SEALED_SHARES = [("receiver", TEXT), ("box", fixed(82)), ("self_commitment", HASH), ("escrow_commitment", HASH)]
ESCROW = [
    ("self_commitment", HASH),
    ("key_commitment", HASH),
    ("sealed", at_most(32 * FIRMS)),
    ("key_commitments", listed(HASH)),
    ("shares", listed(SEALED_SHARES)),
]
DELIVERY = [("dealer", TEXT), ("key_commitment", HASH), ("shares", SEALED_SHARES)]
RECEIPT = [
    ("firm", TEXT),
    ("context", HASH),
    ("vector_digest", HASH),
    ("complaints", NAMES),
    ("signature", SIGNATURE),
]
VOTE = [("firm", TEXT), ("context", HASH), ("survivors", HASH), ("signature", SIGNATURE)]
SUMS = listed(PUBLISHED_SUM, 64)
OF_JOB = [("job_digest", HASH), *PLACE]

KINDS = {
    "Proposal": (1, [("job", at_most(1 << 20))]),
    "Approval": (2, [("firm", TEXT), ("job_digest", HASH), ("signature", SIGNATURE)]),
    "AskKeys": (3, [("job_digest", HASH), ("epoch", U64)]),
    "KeyAdvertisement": (4, ADVERTISEMENT),
    "Roster": (5, [("job_digest", HASH), ("epoch", U64), ("advertisements", listed(ADVERTISEMENT))]),
    "KeyCiphertexts": (6, [("firm", TEXT), ("epoch", U64), ("ciphertexts", listed(SEALED_KEY))]),
    "Establish": (7, [("job_digest", HASH), ("epoch", U64), ("ciphertexts", listed(SEALED_KEY))]),
    "Established": (8, [("firm", TEXT), ("epoch", U64), ("transcript", HASH)]),
    "Invitation": (9, [*OF_JOB, ("sums", SUMS), ("snapshot", listed(SNAPSHOT, 1))]),
    "Join": (10, JOIN),
    "Cohort": (11, [*OF_JOB, ("joins", listed(JOIN)), ("deliveries", listed(DELIVERY))]),
    "MaskedUpdate": (12, RECEIPT),
    "ReleaseRequest": (13, [*OF_JOB, ("uploads", listed(RECEIPT)), ("votes", listed(VOTE))]),
    "Release": (
        14,
        [
            ("firm", TEXT),
            ("context", HASH),
            ("seed", HASH),
            ("self_shares", SHARES),
            ("escrow_shares", SHARES),
            ("signature", SIGNATURE),
        ],
    ),
    "Finish": (15, [("job_digest", HASH), ("sums", SUMS)]),
    "Finished": (16, [("firm", TEXT), ("model_hash", HASH)]),
    "Refusal": (17, [("firm", TEXT), ("code", CODE), ("next_round", U64)]),
    "Hello": (18, []),
    "Present": (19, [("firm", TEXT)]),
    "EscrowedJoin": (20, [("join", JOIN), ("escrow", ESCROW)]),
    "VoteRequest": (21, [*OF_JOB, ("uploads", listed(RECEIPT))]),
    "Vote": (22, VOTE),
    "Absence": (23, [("firm", TEXT), ("reason", REASON), ("until", U64)]),
}
_NAMED = {number: kind for kind, (number, _) in KINDS.items()}

CODES = {
    "not-approved",
    "rejected-by-firm",
    "unknown-job",
    "unknown-model",
    "model-digest",
    "data-contract",
    "data",
    "roster",
    "signature",
    "cohort-too-small",
    "out-of-order",
    "replay",
    "attempt-spent",
    "already-released",
    "global-model",
    "false-sum",
    "snapshot-needed",
    "escrow",
    "malformed",
    "training",
    "purpose",
    "agreement",
    "left",
    "state-lost",
    "sandbox",
    "internal",
}

REASONS = {"paused", "maintenance", "limit"}


def encode(message):
    number, fields = KINDS[message["kind"]]
    return bytes([number]) + write(fields, message)


def write(form, value):  # noqa: PLR0911  # one return a type
    """The bytes of one field, or of a message's fields. form: as in the table above."""
    if isinstance(form, list):
        return b"".join(write(inner, value[name]) for name, inner in form)
    if form == U64:
        return u64(value)
    if form in TEXTS:
        return blob(value.encode())
    if form[0] == "fixed":
        assert len(value) == form[1]
        return bytes(value)
    if form[0] == "blob":
        return blob(value)
    if form[0] == "pair":
        return write(form[1], value[0]) + write(form[2], value[1])
    return u32(len(value)) + b"".join(write(form[1], item) for item in value)


def decode(data):
    """The message of these bytes. Raises Refused("malformed")."""
    if len(data) > 8 << 20:
        raise Refused("malformed")
    source = Source(data)
    kind = _NAMED.get(source.take(1)[0])
    if kind is None:
        raise Refused("malformed")
    message = {"kind": kind} | source.read(KINDS[kind][1])
    source.end()
    return message


def decode_fields(form, data):
    """As `decode`, without a kind."""
    source = Source(data)
    value = source.read(form)
    source.end()
    return value


class Source:
    """Bytes from which fields are taken in order; every length is checked against what is there and its limit."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        if length > len(self.data) - self.at:
            raise Refused("malformed")
        self.at += length
        return self.data[self.at - length : self.at]

    def length(self, most):
        length = int.from_bytes(self.take(4), "big")
        if length > most:
            raise Refused("malformed")
        return length

    def read(self, form):  # noqa: PLR0911  # one return a type
        if isinstance(form, list):
            return {name: self.read(inner) for name, inner in form}
        if form == U64:
            return int.from_bytes(self.take(8), "big")
        if form in TEXTS:
            return self.text(form)
        if form[0] == "fixed":
            return self.take(form[1])
        if form[0] == "blob":
            return self.take(self.length(form[1]))
        if form[0] == "pair":
            return [self.read(form[1]), self.read(form[2])]
        return [self.read(form[1]) for _ in range(self.length(form[2]))]

    def text(self, form):
        try:
            text = self.take(self.length(4096)).decode()
        except UnicodeDecodeError:
            raise Refused("malformed") from None
        if text not in {CODE: CODES, REASON: REASONS}.get(form, {text}):
            raise Refused("malformed")
        return text

    def end(self):
        if self.at != len(self.data):
            raise Refused("malformed")
