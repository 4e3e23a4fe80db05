"""The tag by which firms check a published sum (docs/protocol.md, section 5).

A tag is a secret linear function of a vector's integers modulo the prime p = 2^61 - 1. Firms derive its key over
their pairwise channels and the server never holds it. Each firm adds the tag of its own vector; tags add up as
vectors do, so the sum's tag must be the tag of the sum, and who changes the sum without the key must guess.

The integers are the *units* of the packed words and the values v_k of the tail (count, firms and exact words,
read with their sign). A unit is the number that K = floor(32 / field_bits) neighbouring fields of a word form, the last
unit of a word perhaps fewer: below 2^32 in any sum, for fields have headroom. m[a,g,w] is unit g of word w in row a.

The keystream of the 32-byte key (`keystream`), read as little-endian numbers one after another, gives

    x[h,w]  h < U + 2, w < 512     32-bit numbers mod 2^22
    r[k]    k < 2 + e              64-bit numbers mod 2^61
    s[a,j]  a < A rows, j < 3      64-bit numbers mod 2^61

    H[a,j] = sum over g, w of x[g+j,w] m[a,g,w]                                  (an integer, below 2^64)
    tag    = k[firm]  +  sum over a, j of s[a,j] H[a,j]  +  sum over k of r[k] v[k]    (mod p)

k[firm] is a constant of each firm, derived from the same key: the tag of a sum says over whom it is. What travels is
the tag blinded: `split` adds a random multiple of p and random carries between the words, so that a sum's tag words say
no more than its tag mod p, even to one who holds the key.

docs/protocol.md, 5.4, has the proof that a forgery passes with a probability below 2^-59 for each one that is tried.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError
from dure_protocols.secagg.keystream import KEY_BYTES, apply_keystreams, derive
from dure_protocols.secagg.layout import ROW_WORDS, VectorLayout, Words

PRIME = 2**61 - 1
TAIL_LIMIT = 2**60
HASHES = 3
BLINDING_BYTES = 32

_MULTIPLE_BITS, _CARRY_BITS, _DIGIT_BITS = 40, 36, 16

_P, _LOW, _29 = np.uint64(PRIME), np.uint64(2**32 - 1), np.uint64(2**29 - 1)


@dataclass(frozen=True, repr=False)
class TagKey:
    """A tag key spread out for one layout. Secret.

    units: (U + 2, 512) uint32, the numbers x; tail: (2 + e,) the numbers r; rows: (A, 3), the numbers s.
    """

    units: NDArray[np.uint32]
    tail: Words
    rows: Words

    @classmethod
    def of(cls, layout: VectorLayout, key: bytes) -> "TagKey":
        """Spread a 32-byte key out. About 6 bytes a row word; nothing is drawn for the rows of an empty update."""
        if len(key) != KEY_BYTES:
            raise MisuseError(f"a tag key has {KEY_BYTES} bytes, not {len(key)}")
        planes = layout.units + HASHES - 1
        ends = np.cumsum([planes * ROW_WORDS // 2, layout.tail_words, layout.rows * HASHES])
        stream = np.zeros(ends[-1], np.uint64)
        apply_keystreams(stream, add=[key])
        units, tail, rows = np.split(stream, ends[:-1])
        narrow = units.view(np.uint32) & np.uint32(2**22 - 1)
        return cls(narrow.reshape(planes, ROW_WORDS), tail & _P, (rows & _P).reshape(-1, HASHES))

    def tag(self, packed: int, tail: NDArray[np.int64]) -> int:
        """The tag of a vector. packed: the packed words' part of it; tail: (2 + e,), the words behind them."""
        return (packed + sum(int(r) * int(v) for r, v in zip(self.tail, tail, strict=True))) % PRIME


def dot(one: Words, other: Words) -> int:
    """The sum of products modulo p. one: numbers up to 2^61; other: any 64-bit numbers, of the same shape."""
    other = _folded(other)
    a1, a0, b1, b0 = one >> np.uint64(32), one & _LOW, other >> np.uint64(32), other & _LOW
    middle = a1 * b0 + a0 * b1  # below 2^63; 2^61 = 1, so 2^64 = 8 and 2^32 · 2^29 = 1
    products = np.uint64(8) * (a1 * b1) + (middle >> np.uint64(29)) + ((middle & _29) << np.uint64(32))
    products += _folded(a0 * b0)
    return (int((products & _LOW).sum(dtype=np.uint64)) + (int((products >> np.uint64(32)).sum()) << 32)) % PRIME


def _folded(numbers: Words) -> Words:
    """Any 64-bit numbers as numbers up to 2^61 + 6, equal modulo p."""
    return (numbers & _P) + (numbers >> np.uint64(61))


@dataclass(frozen=True, repr=False)
class OwnTag:
    """What makes a firm's tag of one vector. Secret. key: the attempt's, 32 bytes; blinding: 32 fresh random bytes."""

    key: bytes
    firm: str
    blinding: bytes


def constant_of(key: bytes, members: Iterable[str]) -> int:
    """What the tag of a sum over these firms holds beside the sum's own, mod p. key: the attempt's, 32 bytes."""
    return sum(int.from_bytes(derive(key, "dure tag member", firm.encode()), "big") for firm in members) % PRIME


def split(tag: int, blinding: bytes) -> Words:
    """A tag mod p as the four words that travel, blinded by 32 random bytes. Sums of up to 2^10 overflow none."""
    multiple, *randoms = np.frombuffer(blinding, "<u8").tolist()
    carries = [number % 2**_CARRY_BITS for number in randoms]
    value = tag + multiple % 2**_MULTIPLE_BITS * PRIME
    low = [value >> at * _DIGIT_BITS & 0xFFFF for at in range(3)]
    digits = [*low, value >> 3 * _DIGIT_BITS]
    for at, carry in enumerate(carries):
        digits[at] += carry << _DIGIT_BITS
        digits[at + 1] -= carry
    return np.array(digits, np.int64).view(np.uint64)


def joined(words: Words) -> int:
    """The tag in the tag words of a sum, modulo p."""
    return sum(int(word) << at * _DIGIT_BITS for at, word in enumerate(words.view(np.int64))) % PRIME
