"""Inputs that once found a failure. Every run begins with them, and so does every test.

Each is named by what it is, and says what came of it before the decoder was mended.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from dure_protocols.global_state import model_digest
from dure_protocols.identity import Identity
from dure_protocols.job import JobFile
from dure_protocols.messages import Invitation, decode, encode
from dure_protocols.wire import Writer
from tests.fuzz.mutate import DEEP
from tests.fuzz.targets.keys import fields_of, pems, sealed_fields
from tests.fuzz.targets.link import Loose
from tests.fuzz.targets.processes import told_array
from tests.fuzz.targets.recorded import recorded
from tests.model_packages.made import zipped
from tests.protocols.test_frames import request
from tests.protocols.test_global_state import INITIAL, a_job
from tests.protocols.test_invitation import INVITATION
from tests.protocols.test_job import VALUES


@dataclass(frozen=True)
class Kept:
    """An input. name: what it is; was: what came of it."""

    target: str
    name: str
    was: str
    data: bytes


@cache
def kept() -> tuple[Kept, ...]:
    """All of them."""
    return (*_of_the_protocol(), *_of_keys(), *_of_the_link(), *_of_files(), *_of_processes())


def kept_for(target: str) -> Sequence[bytes]:
    """The kept inputs of a target."""
    return [each.data for each in kept() if each.target == target]


def _of_the_protocol() -> list[Kept]:
    invitation = next(m for s in recorded().situations if isinstance(m := decode(s.request), Invitation))
    far = Invitation(invitation.job_digest, invitation.epoch, 2**64 - 1, 1, ())
    members = ("11" * 32, "22" * 32)
    return [
        Kept("session/answer", "an invitation to round 2^64 - 1", "EndlessError", encode(far)),
        Kept(
            "disclosures/bytes", "a cohort of no kind", "counted for nothing", _stored_cohorts(("statistiks", members))
        ),
        Kept("disclosures/bytes", "a cohort twice", "not canonical", _stored_cohorts(*[("update", members)] * 2)),
        Kept("job-file", "a job whose contract holds NaN", "ValueError", _job(contract={"a": float("nan")})),
        Kept("job-file", "a firm's name that is none", "IdentityError", _job(firms={"A b": "11" * 32, "b": "22" * 32})),
        Kept(
            "job-file",
            "ten thousand metrics that are numbers",
            "400 bytes of memory for each byte",
            _job(model=VALUES["model"] | {"round_metrics": [0] * 10_000}),
        ),
        Kept("job-file", "a title that acts on a terminal", "shown to people", _job(title="a\x1b[2Jb")),
        Kept("snapshot", "40 bytes that are also taken for a row of words", "IndexError", bytes(40)),
        Kept("snapshot", "something where zeros fill up", "not canonical", _filled_snapshot()),
    ]


def _stored_cohorts(*cohorts: tuple[str, tuple[str, ...]]) -> bytes:
    writer = Writer().u8(1).u32(0)
    writer.items(cohorts, lambda out, cohort: out.text(cohort[0]).items(cohort[1], Writer.text))
    return bytes(writer)


def _job(**changes: object) -> bytes:
    whole = json.loads(JobFile.model_validate(VALUES).to_bytes())
    return json.dumps(whole | changes, sort_keys=True, separators=(",", ":")).encode()


def _filled_snapshot() -> bytes:
    words = np.zeros(5 + a_job().model.parameters // 2, np.uint64)
    words[0] = 1
    words[2:3].view(np.float64)[0] = 0.1
    words[3] = 7  # the round of a best model that is not there
    return words.tobytes()


def _of_keys() -> list[Kept]:
    root, firm, *others = pems("certificates.pem")
    curve, point, version = (bytes.fromhex(text) for text in ("2a8648ce3d030107", "03420004", "a003020102"))
    unknown, off, late = curve[:-1] + b"\x09", point[:-1] + b"\x05", version[:-1] + b"\x56"
    ed448 = Identity.from_seed(bytes(range(32))).to_pem().replace(b"MC4CAQAwBQYDK2Vw", b"MC4CAQAwBQYDK2Vx")
    texts, numbers = fields_of(INVITATION.to_text().encode())
    no_firm, moving = [texts[0], "Firm A", texts[2]], ["a\x9b2Jb", *texts[1:]]
    who_knows = "a curve that nobody knows"
    made = [
        ("certificate/any", "two certificates in one text", "the second was trusted, too", root + others[-1]),
        ("certificate/any", who_knows, "UnsupportedAlgorithm", _swapped(root, curve, unknown)),
        ("certificate/any", "a point that is none", "ValueError", _swapped(root, point, off)),
        ("certificate/any", "a name that is no UTF-8", "ValueError", _swapped(root, b"Millers", b"Mill\xffrs")),
        ("certificate/any", "version 87", "InvalidVersion", _swapped(root, version, late)),
        ("certificate/root", who_knows, "UnsupportedAlgorithm", _swapped(root, curve, unknown)),
        ("certificate/issued", "version 87", "InvalidVersion", _swapped(firm, version, late)),
        ("signing-request", who_knows, "UnsupportedAlgorithm", _swapped(pems("requests.pem")[0], curve, unknown)),
        ("key/tls", "an Ed448 key of 32 bytes", "InternalError", ed448),
        ("key/identity", "an Ed448 key of 32 bytes", "InternalError", ed448),
        ("invitation", "a firm's name that is none", "IdentityError", sealed_fields(no_firm, numbers)),
        ("invitation", "a name that moves a cursor", "shown to people", sealed_fields(moving, numbers)),
    ]
    return [Kept(*each) for each in made]


def _swapped(pem: bytes, old: bytes, new: bytes) -> bytes:
    """A PEM text in whose DER something is replaced by as many other bytes."""
    first, *body, last = pem.strip().split(b"\n")
    der = base64.b64decode(b"".join(body))
    assert old in der
    assert len(old) == len(new)
    text = base64.b64encode(der.replace(old, new))
    return b"\n".join([first, *(text[at : at + 64] for at in range(0, len(text), 64)), last, b""])


def _of_the_link() -> list[Kept]:
    hollow = Loose.read(request(arrays=()).encode())
    hollow.arrays = [("a", "float64", (0, 1 << 62, 1 << 62), b"")]
    far = Loose.read(request(arrays=(), group=f"job/{10**30}/0/p").encode())
    firm = Writer().text("Firm A")
    presence = Writer().items(("b", "a"), lambda out, name: out.text(name).text("1"))
    answer = request(group="job/1/1/other").reply(error_code="internal", created_at=2.0).encode()
    unknown = request().reply(error_code="no-such-code", created_at=2.0).encode()
    empty = request().reply(b"\xff", created_at=2.0).encode()
    return [
        Kept("frames/envelope", "an empty array of enormous shape", "ValueError in numpy", hollow.encode()),
        Kept("frames/envelope", "a round of 31 digits", "MisuseError, which ended the agent", far.encode()),
        Kept("desk/parcel", "a firm's name that is none", "taken", bytes(firm.blob(b""))),
        Kept("desk/query", "a flag of 2", "not canonical", bytes(Writer().u8(2).u32(0))),
        Kept("desk/presence", "firms in no order", "not canonical", bytes(presence)),
        Kept("desk/run", "a run of 64 bits", "OverflowError in the journal", b"\xff" * 8),
        Kept("answer-file", "the answer to another message", "sent as the answer to this one", answer),
        Kept("answer-file", "an answer with a code that may not leave", "ValueError, which ended the agent", unknown),
        Kept("answer-file", "an answer whose body is no message", "MessageError, which ended the agent", empty),
    ]


def _of_files() -> list[Kept]:
    deep, dotted = b"x = " + b"[" * DEEP, b"a." * DEEP + b"a = 1\n"
    toml = ("policy", "mapping", "agent-config", "server-settings", "draft", "contract/toml")
    columns = json.dumps({"name": "a", "title": "a", "columns": [0] * 20_000}).encode()
    return [
        Kept("ledger/record", "brackets three thousand deep", "RecursionError", b"[" * DEEP),
        Kept("ledger/file", "brackets three thousand deep", "RecursionError", b"[" * DEEP + b"\n"),
        Kept("ledger/file", "one line of a megabyte", "a megabyte of memory", b"x" * (1 << 20) + b"\n"),
        Kept("ledger/export", "brackets three thousand deep", "RecursionError", b"[" * DEEP + b"\n"),
        Kept("ledger/export", "one line of a megabyte", "a megabyte of memory", b"x" * (1 << 20) + b"\n"),
        Kept("ledger/head", "brackets three thousand deep", "RecursionError", b"[" * DEEP),
        Kept("ledger/head", "an infinite number", "OverflowError", b'{"number":Infinity,"hash":"","signature":""}'),
        *(Kept(name, "brackets three thousand deep", "RecursionError", deep) for name in toml),
        *(Kept(name, "a number of 5,000 digits", "ValueError", b"x = " + b"9" * 5000) for name in toml),
        Kept("policy", "a key of three thousand parts", "37 MB of memory for 6 kB", dotted),
        Kept("model/wheel", "a file without a name", "IndexError", zipped({"": b"x"})),
        Kept("draft", "a draft that is no UTF-8", "UnicodeDecodeError", b"\xdf"),
        Kept("contract/json", "twenty thousand columns that are numbers", "400 bytes for each byte", columns),
        Kept("progress/plain", "brackets three thousand deep", "RecursionError", b"[" * DEEP),
        *(
            Kept("progress/plain", f"a {name} of {value!r}", "a state that no job has", _progress(name, value))
            for name, value in _NO_STATES
        ),
    ]


_NO_STATES = (("round", 99), ("round", "one"), ("clip", float("nan")), ("clip", 0), ("normalisation", []))


def _progress(name: str, value: object) -> bytes:
    stored = {"round": 1, "digest": model_digest(INITIAL).hex(), "normalisation": None, "best": None}
    return json.dumps(stored | {"clip": 1.0, "residual": None, name: value}).encode()


def _of_processes() -> list[Kept]:
    counted = json.dumps({"failure": None, "result": {"count": 10**400}}).encode()
    archive, header = io.BytesIO(), io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 24,)})
    arrays = {
        "an archive in place of an array": ("AttributeError", archive.getvalue()),
        "an archive that is none": ("BadZipFile", b"PK\x03\x04" + bytes(60)),
        "a header with an open bracket": ("TokenError", _header(b"{'shape': (")),
        "a header of 128 MiB without them": ("128 MiB of memory", header.getvalue()),
    }
    return [
        Kept("trainer/statistics-answer", "a count of 400 digits", "OverflowError later", counted),
        *(
            Kept(f"flower/{side}", name, was, told_array("float64", (1 << 24,), "numpy.ndarray", data))
            for side in ("answer", "request")
            for name, (was, data) in arrays.items()
        ),
    ]


def _header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
