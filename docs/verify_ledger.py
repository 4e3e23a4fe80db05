#!/usr/bin/env python3
"""Check an exported ledger without Dure: `python verify_ledger.py EXPORT FIRM_FINGERPRINT CONSORTIUM_FINGERPRINT`.

Behind these, exports of other firms: what they keep of this one must be in the ledger. The exit status is 1 if a line
does not hold or if something contradicts this firm's account. One file on the standard library and `cryptography`,
written from docs/ledger.md and not from Dure's code.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256


def behind_length(data):
    return struct.pack(">I", len(data)) + data


def text(value):
    return behind_length(value.encode())


def u64(value):
    return struct.pack(">Q", value)


def digest(label, *parts):
    return hashlib.sha256(text(label) + b"".join(map(behind_length, parts))).digest()


def written(fields):
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def need(holds, why):
    if not holds:
        raise ValueError(why)


def fingerprint(key):
    return hashlib.sha256(bytes.fromhex(key)).hexdigest()


def fields_of(line, *names):
    fields = json.loads(line)
    need(tuple(fields) == names, "not the fields that are expected here")
    need(written(fields) + b"\n" == line, "not written as it should be")
    for name, value in fields.items():
        need(type(value) in (int, str), f"{name}: neither a number nor a text")
        if name.endswith(("hash", "previous", "signature", "public_key", "root", "sha256")):
            need(bytes.fromhex(value).hex() == value, f"{name}: no digits in lower case")
    return fields


HEADER = ("format", "firm", "public_key", "root", "number", "hash", "statements", "countersigned", "signature")
RECORD = ("number", "time", "kind", "size_bytes", "sha256", "job", "round", "attempt", "message_id", "offset_bytes")
RECORD += ("previous", "hash", "signature")
STATEMENT = ("statement", "hash", "previous", "signature")
COUNTERSIGNED = ("countersigned", "public_key", "number", "hash", "previous", "signature", "time", "num_breaks")
COUNTERSIGNED += ("countersignature",)


class Check:
    """One pass over the lines; `take` is called for each. held: what others keep of this firm, as fields."""

    def __init__(self, firm, consortium, held=()):
        self.firm, self.consortium = ("".join(each.lower().split()) for each in (firm, consortium))
        self.header = None
        self.held = [each for each in held if fingerprint(each["public_key"]) == self.firm]
        self.number = self.sent_bytes = self.num_statements = self.num_countersigned = 0
        self.said, self.all_said = bytes(32), set()
        self.newest, self.doubts, self.others_doubts = {}, [], []

    def take(self, line):
        if self.header is None:
            self.take_header(fields_of(line, *HEADER))
        elif line.startswith(b'{"statement":'):
            self.take_statement(fields_of(line, *STATEMENT))
        elif line.startswith(b'{"countersigned":'):
            self.take_countersigned(fields_of(line, *COUNTERSIGNED))
        else:
            need(not self.num_countersigned, "a record follows what is countersigned")
            self.take_record(fields_of(line, *RECORD))

    def signed(self, signature, message, key=None):
        key = bytes.fromhex(key or self.header["public_key"])
        Ed25519PublicKey.from_public_bytes(key).verify(bytes.fromhex(signature), message)

    def take_header(self, fields):
        self.header = fields
        need(fields["format"] == "dure-ledger-2", "another format")
        key, root = bytes.fromhex(fields["public_key"]), bytes.fromhex(fields["root"])
        need(fingerprint(fields["public_key"]) == self.firm, "another firm's key")
        need(fingerprint(fields["root"]) == self.consortium, "another consortium's root")
        unsigned = {name: value for name, value in fields.items() if name != "signature"}
        self.signed(fields["signature"], digest("dure ledger export", written(unsigned)))
        self.root = x509.load_der_x509_certificate(root).public_key()
        self.hash = digest("dure ledger genesis", key)

    def take_record(self, fields):
        need(fields["number"] == self.number + 1, "a record is missing, doubled or moved")
        need(fields["previous"] == self.hash.hex(), "previous: it does not follow from the record before")
        packed = u64(fields["number"]) + text(fields["time"]) + text(fields["kind"]) + u64(fields["size_bytes"])
        packed += bytes.fromhex(fields["sha256"]) + text(fields["job"]) + u64(fields["round"]) + u64(fields["attempt"])
        packed += text(fields["message_id"]) + u64(fields["offset_bytes"]) + self.hash
        self.number, self.hash = fields["number"], digest("dure ledger record", packed)
        need(fields["hash"] == self.hash.hex(), "hash: it is not that of the other fields")
        self.signed(fields["signature"], digest("dure ledger record", self.hash))
        for each in self.held:
            same = each["number"] != self.number or each["hash"] == fields["hash"]
            need(same, f"others hold another record {self.number}, signed by this firm: it was rewritten since")
        self.sent_bytes += {"not-sent": -1, "repair": 0}.get(fields["kind"], 1) * fields["size_bytes"]

    def take_statement(self, fields):
        need((fields["statement"], fields["hash"]) == (self.number, self.hash.hex()), "it names another record")
        need(fields["previous"] == self.said.hex(), "previous: it does not follow from the statement before")
        self.said = digest("dure ledger statement", u64(self.number) + self.hash, self.said)
        self.signed(fields["signature"], self.said)
        self.all_said.add(self.said)
        self.num_statements += 1

    def take_countersigned(self, fields):
        firm, said = fields["countersigned"], self.signed_statement(fields)
        packed = text(firm) + bytes.fromhex(fields["public_key"] + u64(fields["number"]).hex() + fields["hash"])
        packed += bytes.fromhex(fields["previous"] + fields["signature"])
        packed += text(fields["time"]) + struct.pack(">I", fields["num_breaks"])
        signed = digest("dure ledger countersignature", packed)
        self.root.verify(bytes.fromhex(fields["countersignature"]), signed, ECDSA(SHA256()))
        self.num_countersigned += 1
        is_own = firm == self.header["firm"]
        need(not is_own or fields["public_key"] == self.header["public_key"], "public_key: another key for this firm")
        doubts, before = self.doubts if is_own else self.others_doubts, self.newest.get(firm)
        if why := before and contradiction(before, fields):
            doubts.append(f"{firm}: {why}")
        if is_own and said not in self.all_said:
            why = f"what it stated of record {fields['number']} on {fields['time']} is not among its statements here"
            doubts.append(f"{firm}: {why}: the ledger was rewritten since")
        self.newest[firm] = fields

    def signed_statement(self, fields):
        end = u64(fields["number"]) + bytes.fromhex(fields["hash"])
        said = digest("dure ledger statement", end, bytes.fromhex(fields["previous"]))
        self.signed(fields["signature"], said, fields["public_key"])
        return said

    def end(self):
        counts = (self.number, self.hash.hex(), self.num_statements, self.num_countersigned)
        stated = tuple(self.header[name] for name in ("number", "hash", "statements", "countersigned"))
        need(counts == stated, "lines are missing or too many")
        for each in self.held:
            number, said = each["number"], self.signed_statement(each)
            need(number <= self.number, f"others hold that this firm signed record {number}: the end was cut off")
            why = f"others hold a statement of this firm on record {number} that is not among its statements here"
            need(said in self.all_said, f"{why}: what it had stated before was rewritten")
        if (own := self.newest.get(self.header["firm"])) and (breaks := own["num_breaks"]):
            said = f"{breaks} break{'s' if breaks > 1 else ''}"
            self.doubts.append(f"{self.header['firm']}: the server counted {said} of its statements")


def contradiction(before, now):
    """Why what was countersigned does not go on from what was before it; "" if it does."""
    of_key = ("public_key", "number", "hash", "previous", "signature")
    if now["public_key"] != before["public_key"] or all(now[name] == before[name] for name in of_key):
        return ""
    number, time = before["number"], before["time"]
    if now["num_breaks"] > before["num_breaks"]:
        return f"its statements were broken off after record {number}, which it had signed on {time}"
    if now["number"] < number:
        return f"record {now['number']} is shown as its end, but on {time} it was record {number}"
    if now["number"] == number and now["hash"] != before["hash"]:
        return f"record {number} is shown with another hash than on {time}"
    return ""


def check(lines, firm, consortium, held=()):
    """The checks of all lines; raises ValueError that begins with "line N: "."""
    made, number = Check(firm, consortium, held), 0
    for number, line in enumerate(lines, start=1):
        try:
            made.take(line)
        except Exception as error:
            raise ValueError(f"line {number}: {str(error) or 'a signature does not belong to it'}") from error
    try:
        made.end()
    except Exception as error:
        raise ValueError(f"line {number + 1}: {str(error) or 'what others hold is not signed by this firm'}") from error
    return made


def held_in(path):
    """What another firm keeps, from its export."""
    with Path(path).open("rb") as file:
        return [fields_of(line, *COUNTERSIGNED) for line in file if line.startswith(b'{"countersigned":')]


USAGE = """usage: python verify_ledger.py EXPORT 'FIRM_FINGERPRINT' 'CONSORTIUM_FINGERPRINT' [ANOTHER_FIRMS_EXPORT ...]
A fingerprint has 64 hexadecimal digits; in groups, it needs its quotes."""

if __name__ == "__main__":
    if len(sys.argv) < 4 or any(len("".join(given.split())) != 64 for given in sys.argv[2:4]):
        sys.exit(USAGE)
    try:
        held = [each for path in sys.argv[4:] for each in held_in(path)]
        with Path(sys.argv[1]).open("rb") as file:
            made = check(file, *sys.argv[2:4], held)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    own = made.newest.get(made.header["firm"])
    seen = f"countersigned up to record {own['number']} on {own['time']}" if own else "none of it is countersigned"
    print(f"{made.number} records hold; {made.sent_bytes} bytes left; {seen}")
    print(*made.doubts, *made.others_doubts, sep="\n", end="\n" if made.doubts or made.others_doubts else "")
    sys.exit(1 if made.doubts else 0)
