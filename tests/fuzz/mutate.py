"""How bytes are damaged. The same bytes and the same chance give the same damage."""

import base64
import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

LONGEST_BYTES = 1 << 16
"""Damage makes nothing longer than this, but for a seed that is."""
_MOST_AT_ONCE = 4

EDGES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x00FFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
"""Numbers at which lengths and counts go wrong. Of 8 bytes they are the lower half, the upper, or both."""


def flip_bit(data: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def set_byte(data: bytes, chance: random.Random) -> bytes:
    """One byte is any."""
    at = chance.randrange(len(data))
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def set_number(data: bytes, chance: random.Random) -> bytes:
    """1, 2, 4 or 8 bytes are an integer from the edges."""
    width = chance.choice((1, 2, 4, 4, 4, 8))
    number = chance.choice(EDGES) * chance.choice((1, 1 << 32, 1 + (1 << 32))) & (1 << 8 * width) - 1
    at = chance.randrange(len(data))
    return data[:at] + number.to_bytes(width, "big") + data[at + width :]


def truncate(data: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data))]


def extend(data: bytes, chance: random.Random) -> bytes:
    """Bytes are left over."""
    return data + chance.randbytes(chance.randint(1, 8))


def insert(data: bytes, chance: random.Random) -> bytes:
    """Any bytes come in between."""
    at = chance.randint(0, len(data))
    return data[:at] + chance.randbytes(chance.randint(1, 16)) + data[at:]


def remove(data: bytes, chance: random.Random) -> bytes:
    """A region is missing."""
    start, end = _region(data, chance)
    return data[:start] + data[end:]


def repeat(data: bytes, chance: random.Random) -> bytes:
    """A region stands there twice, or many times."""
    start, end = _region(data, chance)
    return data[:start] + data[start:end] * chance.choice((2, 2, 3, 16, 300)) + data[end:]


def reorder(data: bytes, chance: random.Random) -> bytes:
    """Two neighbouring regions have changed places."""
    start, middle = _region(data, chance)
    end = chance.randint(middle, len(data))
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def copy_over(data: bytes, chance: random.Random) -> bytes:
    """A region is a copy of another."""
    start, end = _region(data, chance)
    at = chance.randrange(len(data))
    return data[:at] + data[start:end] + data[at + end - start :]


GENERIC: tuple[Mutator, ...] = (
    *(flip_bit, set_byte, set_number, set_number, truncate, extend),
    *(insert, remove, repeat, reorder, copy_over),
)


def splice(one: bytes, other: bytes, chance: random.Random) -> bytes:
    """The beginning of one and the end of the other."""
    return one[: chance.randint(0, len(one))] + other[chance.randint(0, len(other)) :]


def damaged(seeds: Sequence[bytes], chance: random.Random, mutators: Sequence[Mutator] = ()) -> bytes:
    """One of the seeds, damaged once or a few times; now and then two seeds spliced, or bytes of no seed at all.

    mutators: beside the generic ones, and as likely as all of those together.
    """
    if chance.random() < 0.03:
        return chance.randbytes(chance.randrange(200))
    data = chance.choice(seeds)
    if chance.random() < 0.15:
        data = splice(data, chance.choice(seeds), chance)
    for _ in range(chance.randint(1, _MOST_AT_ONCE)):
        data = damaged_once(data, chance, mutators)
    return data


def damaged_once(data: bytes, chance: random.Random, mutators: Sequence[Mutator] = ()) -> bytes:
    """Damaged in one way. Empty bytes become any."""
    if not data:
        return chance.randbytes(chance.randint(1, 16))
    is_special = bool(mutators) and chance.random() < 0.5
    other = chance.choice(mutators if is_special else GENERIC)(data, chance)
    return other if len(other) <= max(LONGEST_BYTES, len(data)) else data


_FILLINGS = (b"\xff" * 4, b"\xff" * 8, bytes(4))


def num_systematic(seeds: Sequence[bytes]) -> int:
    """How many inputs `systematic` makes of these seeds."""
    return sum(_ways_of(seed) for seed in seeds)


def systematic(seeds: Sequence[bytes], number: int) -> bytes:
    """One of: each seed cut at each place, with the largest number of 4 and of 8 bytes and 0 there, and extended."""
    for seed in seeds:
        if number < _ways_of(seed):
            way, at = divmod(number, len(seed) or 1)
            if way < len(_FILLINGS) and seed:
                filling = _FILLINGS[way]
                return seed[:at] + filling + seed[at + len(filling) :]
            return seed[:at] if way == len(_FILLINGS) and seed else seed + b"\0"
        number -= _ways_of(seed)
    raise IndexError(number)


def _ways_of(seed: bytes) -> int:
    return (len(_FILLINGS) + 1) * len(seed) + 1


def inside(unwrap: Callable[[bytes], bytes], wrap: Callable[[bytes], bytes]) -> Mutator:
    """A mutator for what lies in a wrapping that generic damage would only break: a checksum, base64.

    unwrap: raises ValueError where there is nothing to unwrap; the data then stay as they are.
    """

    def mutate(data: bytes, chance: random.Random) -> bytes:
        try:
            content = unwrap(data)
        except ValueError:
            return data
        return wrap(damaged_once(content, chance))

    return mutate


def words(*tokens: bytes) -> Mutator:
    """A mutator that puts one of these tokens somewhere, in place of as many bytes, of a few, or of none."""

    def mutate(data: bytes, chance: random.Random) -> bytes:
        token, at = chance.choice(tokens), chance.randint(0, len(data))
        return data[:at] + token + data[at + chance.choice((0, 1, len(token), chance.randrange(16))) :]

    return mutate


DEEP = 3000
ODD_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, -1, 1.5, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**63, 2**64, 10**400),
    *("", "a", "A b", "\0", "\x1b[2J", "\u202e", "\ud800", "0" * 64, "é" * 70, "a" * 5000),
    *([], {}, [0] * 300, {"": None}, {str(n): n for n in range(300)}, [[[[]]]]),
)
"""JSON values that a field of another type may turn into."""
ODD_KEYS = ("", "A b", "../x", "\0", "é", "x" * 100)


def json_value(data: bytes, chance: random.Random) -> bytes:
    """A JSON text in which one value, whole or part of another, is an odd one, is missing, or is there twice."""
    try:
        holder = [json.loads(data)]
        places = list(_places(holder))
    except (ValueError, RecursionError):
        return data
    container, key = chance.choice(places)
    other_container, other_key = chance.choice(places)
    match chance.randrange(6):
        case 0 if isinstance(container, dict):
            del container[key]
        case 1 if isinstance(container, dict):
            container[chance.choice((f"{key}x", *ODD_KEYS))] = container[key]
        case 1 if isinstance(container, list):
            container.append(container[key])
        case 2:
            container[key] = copy.deepcopy(other_container[other_key])
        case 3:
            container[key] = _nudged(container[key], chance)
        case _:
            container[key] = copy.deepcopy(chance.choice(ODD_VALUES))
    return json.dumps(holder[0], separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode(errors="replace")


def _nudged(value: Any, chance: random.Random) -> Any:
    """Another value of the same type, and not far away: what may still be valid."""
    match value:
        case bool():
            return not value
        case int() | float():
            return chance.choice((value + 1, value - 1, 2 * value, value // 2))
        case str() if value:
            at = chance.randrange(len(value))
            return value[:at] + chance.choice("0189abcf-_ ") + value[at + chance.randrange(2) :]
        case list() if value:
            return chance.sample(value, chance.randint(1, len(value)))
        case dict() if value:
            return dict(chance.sample(list(value.items()), chance.randint(1, len(value))))
    return value


def _places(container: object) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value where a value stands: what holds it, and under which key."""
    if not isinstance(container, dict | list):
        return
    items = list(container.items()) if isinstance(container, dict) else list(enumerate(container))
    for key, value in items:
        yield container, key
        yield from _places(value)


JSON_TOKENS = words(
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e400", b"-0", b"9" * 5000, b'"\\ud800"', b'"\\u0000"', b"\xff"),
    *(b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP, b'"', b"\\", b",", b":", b"{}", b"[]", b"\xef\xbb\xbf"),
)
JSON = (json_value, json_value, JSON_TOKENS)
TOML = (
    words(
        *(b"[" * DEEP, b"x = " + b"[" * DEEP + b"]" * DEEP, b"x = " + b"{a=" * DEEP, b"x = " + b"9" * 5000),
        *(
            b"\n[[columns]]\n",
            b"\n[firms]\n",
            b"\n[a.b.c]\n",
            b"a." * DEEP + b"a = 1\n",
            b"= 2026-13-45",
            b"= 25:61:61",
        ),
        *(
            b'"""',
            b"'''",
            b'"\\ud800"',
            b'"\\uD800"',
            b'"\\U000E0001"',
            b'"\\u007f"',
            b"= inf",
            b"= nan",
            b"= 0x",
            b"= 1e400",
            b"= true",
            b"= []",
            b"= {}",
        ),
        *(b"\n", b"\r", b"\0", b"\xff", b"#", b"=", b'"', b"\n\x1b[2J", b"\xef\xbb\xbf"),
    ),
)

_PEM = re.compile(rb"(-----BEGIN [A-Z ]+-----\n)(.*)(\n-----END [A-Z ]+-----\n)", re.DOTALL)


def in_pem(data: bytes, chance: random.Random) -> bytes:
    """A PEM text whose DER is damaged."""
    found = _PEM.fullmatch(data)
    if found is None:
        return data
    begin, body, end = found.groups()
    try:
        der = base64.b64decode(body)
    except ValueError:
        return data
    # DER has one-byte lengths, so damage that keeps all of them gets further than any other.
    other = chance.choice((flip_bit, set_byte, damaged_once))(der or b"\0", chance)
    text = base64.b64encode(other)
    return begin + b"\n".join(text[at : at + 64] for at in range(0, len(text), 64)) + end


def _region(data: bytes, chance: random.Random) -> tuple[int, int]:
    """Where a region begins and ends: often short, sometimes anything. Never empty where the data are not."""
    start = chance.randrange(len(data))
    longest = len(data) - start if chance.random() < 0.3 else min(64, len(data) - start)
    return start, start + chance.randint(1, max(1, longest))
