"""Cases of bytes: digests, derivations, signatures, messages."""

from dure_protocols.errors import RefusalCode
from tests.vectors.make_scene import pattern

LONG = pattern("part", 70)
NOON = (1_800_000_000).to_bytes(8, "big")


def case(name, operation, inputs, expects=None):
    made = {"name": name, "operation": operation, "inputs": inputs}
    return made if expects is None else made | {"expects": expects}


def digest_cases():
    parts = {
        "a label alone": ("dure", []),
        "an empty part is not no part": ("dure", [b""]),
        "one part": ("dure", [b"ab"]),
        "two parts are not their join": ("dure", [b"a", b"b"]),
        "a label with letters beyond ASCII": ("dure Ärger", [LONG]),
    }
    for name, (label, values) in parts.items():
        yield case(f"digest: {name}", "digest", {"label": label, "parts": [value.hex() for value in values]})
    key = pattern("key").hex()
    yield case("derive: a label alone", "derive", {"key": key, "label": "dure ratchet", "parts": []})
    yield case("derive: with parts", "derive", {"key": key, "label": "dure mask", "parts": [LONG.hex()]})
    long = {"key": pattern("two secrets", 64).hex(), "label": "dure pair root", "parts": ["", "ff"]}
    yield case("derive: of a key of 64 bytes", "derive", long)
    yield case("keystream: five blocks from counter zero", "keystream", {"key": key, "length": 80})
    yield case("names: in order, whatever order they came in", "names", {"members": ["firm-b", "firm-a10", "firm-a"]})
    yield case("names: nobody", "names", {"members": []})
    yield case("numbers: epoch, round, attempt", "numbers", {"values": [1, 2, 2**64 - 1]})
    for label in ("dure join", "dure vote"):
        inputs = {"seed": pattern("identity").hex(), "label": label, "parts": [pattern("job").hex(), "00"]}
        yield case(f"signature: {label}", "signature", inputs)
    for name, label, parts in (
        ("a vouch", "dure vouch", [b"valley", b"firm-d", pattern("fingerprint"), b"firm-a"]),
        ("leaving a job", "dure leave", [b"valley", b"firm-a", b"job-1", pattern("job"), NOON]),
        ("leaving all", "dure leave", [b"valley", b"firm-a", b"", bytes(32), NOON]),
    ):
        inputs = {"seed": pattern("identity").hex(), "label": label, "parts": [part.hex() for part in parts]}
        yield case(f"signature: {name}", "signature", inputs)
    approval = {"seed": pattern("identity").hex(), "label": "dure approval"}
    approval["parts"] = [pattern("job").hex(), b"firm-a".hex()]
    yield case("signature: an approval, over job digest and firm", "signature", approval)


def hexed(label, length=32):
    return pattern(label, length).hex()


JOB = hexed("job")
PLACE = {"epoch": 1, "round": 2, "attempt": 3}
AT = {"job_digest": JOB} | PLACE
SIGNED = {"signature": hexed("signature", 64)}
ADVERTISEMENT = {"firm": "firm-a", "epoch": 1, "x25519": hexed("x25519"), "mlkem": hexed("mlkem", 1184)} | SIGNED
SEALED_KEY = {
    "sender": "firm-a",
    "receiver": "firm-b",
    "ciphertext": hexed("ciphertext", 1088),
    "tag_box": hexed("tag box", 48),
} | SIGNED
UNBOXED_KEY = SEALED_KEY | {"sender": "firm-b", "receiver": "firm-c", "tag_box": ""}
PUBLISHED = PLACE | {
    "cohort": ["firm-a", "firm-b", "firm-c"],
    "members": ["firm-a", "firm-b"],
    "vector_digest": hexed("vector"),
}
JOIN = {"firm": "firm-a"} | PLACE | {"model_hash": hexed("model"), "escrow": hexed("escrow")} | SIGNED
SHARES = {
    "receiver": "firm-b",
    "box": hexed("box", 82),
    "self_commitment": hexed("self"),
    "escrow_commitment": hexed("key"),
}
ESCROW = {
    "self_commitment": hexed("seed"),
    "key_commitment": hexed("escrow key"),
    "sealed": hexed("sealed", 48),
    "key_commitments": [hexed("attempt key")],
    "shares": [SHARES],
}
RECEIPT = {
    "firm": "firm-a",
    "context": hexed("context"),
    "vector_digest": hexed("vector"),
    "complaints": ["firm-b"],
} | SIGNED
VOTE = {"firm": "firm-a", "context": hexed("context"), "survivors": hexed("survivors")} | SIGNED

MESSAGES = {
    "Hello": {},
    "Present": {"firm": "firm-a"},
    "Proposal": {"job": b'{"format":"dure-job-1"}'.hex()},
    "Approval": {"firm": "firm-a", "job_digest": JOB} | SIGNED,
    "AskKeys": {"job_digest": JOB, "epoch": 2**64 - 1},
    "KeyAdvertisement": ADVERTISEMENT,
    "Roster": {"job_digest": JOB, "epoch": 1, "advertisements": [ADVERTISEMENT]},
    "KeyCiphertexts": {"firm": "firm-b", "epoch": 1, "ciphertexts": [UNBOXED_KEY]},
    "Establish": {"job_digest": JOB, "epoch": 1, "ciphertexts": [SEALED_KEY]},
    "Established": {"firm": "firm-a", "epoch": 1, "transcript": hexed("transcript")},
    "Invitation": AT | {"sums": [PUBLISHED], "snapshot": [{"vector_digest": hexed("state"), "witnesses": [JOIN]}]},
    "Join": JOIN,
    "EscrowedJoin": {"join": JOIN, "escrow": ESCROW},
    "Cohort": AT
    | {"joins": [JOIN], "deliveries": [{"dealer": "firm-a", "key_commitment": hexed("q"), "shares": SHARES}]},
    "MaskedUpdate": RECEIPT,
    "VoteRequest": AT | {"uploads": [RECEIPT]},
    "Vote": VOTE,
    "ReleaseRequest": AT | {"uploads": [RECEIPT], "votes": [VOTE]},
    "Release": {
        "firm": "firm-a",
        "context": hexed("context"),
        "seed": hexed("seed"),
        "self_shares": [["firm-b", hexed("share", 33)]],
        "escrow_shares": [["firm-c", hexed("other share", 33)]],
    }
    | SIGNED,
    "Finish": {"job_digest": JOB, "sums": [PUBLISHED]},
    "Finished": {"firm": "firm-a", "model_hash": hexed("model")},
    "Refusal": {"firm": "firm-a", "code": "roster", "next_round": 4},
    "Absence": {"firm": "firm-a", "reason": "maintenance", "until": 1772460000},
}

ASK_KEYS = "03" + JOB + "0000000000000001"
INVITATION = "09" + JOB + "0000000000000001" * 3
"""Up to the number of its sums."""
REFUSED = {
    "nothing at all": [],
    "a kind that no message has": [["00", 1]],
    "a kind of another version": [["63", 1]],
    "cut in a number": [[ASK_KEYS[:-2], 1]],
    "cut in a hash": [["03" + JOB[:-2], 1]],
    "a byte left over": [[ASK_KEYS + "00", 1]],
    "a text longer than what is there": [["13" + "00000007" + b"firm-a".hex(), 1]],
    "a text that is not UTF-8": [["13" + "00000002" + "c328", 1]],
    "a text over its limit of 4096 bytes": [["13" + "00001001", 1], ["61", 4097]],
    "a length far over its limit": [["13" + "ffffffff", 1]],
    "a list far over its limit": [[INVITATION + "ffffffff", 1]],
    "65 sums where 64 are allowed": [
        [INVITATION + "00000041", 1],
        ["0000000000000001" * 3 + "00000000" * 2 + JOB, 65],
        ["00000000", 1],
    ],
    "two snapshots where one is allowed": [[INVITATION + "00000000" + "00000002", 1], [JOB + "00000000", 2]],
    "a refusal with an unknown code": [["11" + "00000006" + b"firm-a".hex() + "00000003" + b"why".hex() + "00" * 8, 1]],
    "an absence with an unknown reason": [
        ["17" + "00000006" + b"firm-a".hex() + "00000003" + b"why".hex() + "00" * 8, 1]
    ],
    "a tag box over its limit of 48 bytes": [
        ["07" + JOB + "0000000000000001" + "00000001" + ("00000006" + b"firm-a".hex()) * 2, 1],
        ["00", 1088],
        ["00000031", 1],
        ["00", 49 + 64],
    ],
    "a message over 8 MiB": [["01", (8 << 20) + 1]],
}
LARGEST = {
    "control: 64 sums": (
        [[INVITATION + "00000040", 1], ["0000000000000001" * 3 + "00000000" * 2 + JOB, 64], ["00000000", 1]],
        "Invitation",
    ),
    "control: a text of 4096 bytes": ([["13" + "00001000", 1], ["61", 4096]], "Present"),
}


def message_cases():
    for kind, fields in MESSAGES.items():
        yield case(kind, "message", {"kind": kind, "fields": fields})
    for code in RefusalCode:
        fields = {"firm": "firm-a", "code": str(code), "next_round": 0}
        yield case(f"Refusal: {code}", "message", {"kind": "Refusal", "fields": fields})
    for name, pieces in REFUSED.items():
        yield case(f"refused: {name}", "decoding", {"bytes": pieces}, {"refusal": "malformed"})
    for name, (pieces, kind) in LARGEST.items():
        yield case(name, "decoding", {"bytes": pieces}, {"kind": kind})
