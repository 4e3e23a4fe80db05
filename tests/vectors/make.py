"""Makes the vector files: `python -m tests.vectors.make` writes them, from fixed inputs and the project's own code."""

import json
import sys

from tests.vectors import make_bytes, make_refusals, make_rounds, make_sharing, make_sums, project
from tests.vectors.reader import files

FORMAT = "dure-vectors-1"
LINE = 118

FILES = {
    "digests": ("2", "Canonical bytes, digests, key derivation, keystreams and signatures.", make_bytes.digest_cases),
    "messages": (
        "2, 9",
        "Each message's bytes from its fields, and bytes that are no message.",
        make_bytes.message_cases,
    ),
    "encapsulations": (
        "3.3",
        "ML-KEM-768 (FIPS 203): the ciphertexts of keys.json, drawn once; a seed's key must open each.",
        make_rounds.encapsulation_cases,
    ),
    "keys": ("3", "An epoch's keys, message by message.", make_rounds.key_cases),
    "masks": ("3.5, 4", "From a pair root to the keys of an attempt, and from keys to masks.", make_sums.mask_cases),
    "sharing": ("6.5", "Shamir's sharing and escrows: dealt, delivered, opened, refused.", make_sharing.sharing_cases),
    "codec": ("5", "From an update to ring words and back.", make_sums.codec_cases),
    "tags": ("5", "Tags: the key spread out, sums that carry theirs and sums that do not.", make_sums.tag_cases),
    "retry_round": ("6", "Rounds in retry mode, message by message.", make_rounds.retry_cases),
    "threshold_round": ("6, 6.5", "Rounds in threshold mode, message by message.", make_rounds.threshold_cases),
    "refusals": (
        "3, 6, 7, 8",
        "What firms refuse, with which code, in which state. After each row of refusals the honest request is accepted:"
        " a refusal changes nothing.",
        make_refusals.cases,
    ),
    "model": (
        "3.1, 7",
        "The job's digest, the server step, the clip, and the global model's course.",
        make_sums.model_cases,
    ),
}


def made():
    """Every file's text by name, in the order in which they build on each other."""
    texts = {}
    for name, (sections, comment, cases) in FILES.items():
        content = {
            "format": FORMAT,
            "comment": comment,
            "sections": f"docs/protocol.md, {sections}",
            "cases": [_expecting(case) for case in cases()],
        }
        texts[name] = _text(content) + "\n"
        files.remember(name, json.loads(texts[name]))
    return texts


def _text(value, depth=0):
    """JSON in which what fits a line stands on one."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= LINE or not isinstance(value, dict | list) or not value:
        return line
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_text(item, depth + 1)}" for key, item in value.items()]
        opening, closing = "{}"
    else:
        parts, (opening, closing) = [_text(item, depth + 1) for item in value], "[]"
    indent = "\n" + " " * depth
    return opening + indent + " " + f",{indent} ".join(parts) + indent + closing


def _expecting(case):
    expected = project.compute(case["operation"], case["inputs"])
    assert case.get("expects", expected) == expected, (case["name"], expected)
    return {key: value for key, value in case.items() if key != "expects"} | {"expected": expected}


def main():
    for name, text in made().items():
        path = files.FOLDER / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(text)} bytes")


if __name__ == "__main__":
    sys.exit(main())
