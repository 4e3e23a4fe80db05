#!/usr/bin/env python3
"""Check an exported ledger without Dure: `python verify_ledger.py EXPORT FIRM_FINGERPRINT CONSORTIUM_FINGERPRINT`.

One file on the standard library and `cryptography`, written from docs/ledger.md and not from Dure's code.
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


def fields_of(line, *names):
    fields = json.loads(line)
    need(tuple(fields) == names, "not the fields that are expected here")
    need(written(fields) + b"\n" == line, "not written as it should be")
    for name, value in fields.items():
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
    """One pass over the lines; `take` is called for each."""

    def __init__(self, firm, consortium):
        self.firm, self.consortium = ("".join(each.lower().split()) for each in (firm, consortium))
        self.header = None
        self.number = self.sent_bytes = self.num_statements = self.num_countersigned = 0
        self.said = bytes(32)

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
        need(hashlib.sha256(key).hexdigest() == self.firm, "another firm's key")
        need(hashlib.sha256(root).hexdigest() == self.consortium, "another consortium's root")
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
        self.sent_bytes += {"not-sent": -1, "repair": 0}.get(fields["kind"], 1) * fields["size_bytes"]

    def take_statement(self, fields):
        need((fields["statement"], fields["hash"]) == (self.number, self.hash.hex()), "it names another record")
        need(fields["previous"] == self.said.hex(), "previous: it does not follow from the statement before")
        self.said = digest("dure ledger statement", u64(self.number) + self.hash, self.said)
        self.signed(fields["signature"], self.said)
        self.num_statements += 1

    def take_countersigned(self, fields):
        key, end = bytes.fromhex(fields["public_key"]), u64(fields["number"]) + bytes.fromhex(fields["hash"])
        previous, signature = bytes.fromhex(fields["previous"]), bytes.fromhex(fields["signature"])
        self.signed(fields["signature"], digest("dure ledger statement", end, previous), fields["public_key"])
        packed = text(fields["countersigned"]) + key + end + previous + signature
        packed += text(fields["time"]) + struct.pack(">I", fields["num_breaks"])
        signed = digest("dure ledger countersignature", packed)
        self.root.verify(bytes.fromhex(fields["countersignature"]), signed, ECDSA(SHA256()))
        self.num_countersigned += 1

    def end(self):
        counts = (self.number, self.hash.hex(), self.num_statements, self.num_countersigned)
        stated = tuple(self.header[name] for name in ("number", "hash", "statements", "countersigned"))
        need(counts == stated, "lines are missing or too many")


def check(lines, firm, consortium):
    """The checks of all lines; raises ValueError that begins with "line N: "."""
    made, number = Check(firm, consortium), 0
    for number, line in enumerate(lines, start=1):
        try:
            made.take(line)
        except Exception as error:
            raise ValueError(f"line {number}: {error or 'a signature does not belong to it'}") from error
    try:
        made.end()
    except (TypeError, ValueError) as error:
        raise ValueError(f"line {number + 1}: {error}") from error
    return made


if __name__ == "__main__":
    with Path(sys.argv[1]).open("rb") as file:
        try:
            made = check(file, *sys.argv[2:4])
        except ValueError as error:
            sys.exit(str(error))
    print(f"{made.number} records hold; {made.sent_bytes} bytes left; {made.num_countersigned} are countersigned")
