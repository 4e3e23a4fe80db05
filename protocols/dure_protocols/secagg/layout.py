"""Where everything lies in a vector (docs/protocol.md, section 5).

    packed words   d parameters, F a word
    count word     the firm's sample count under the public cap
    firms word     1: the sum says how many vectors it holds
    exact words    metrics or statistics as signed fixed-point numbers, one a word
    tag words      four parts of the tag, by which firms check the published sum

A word has F fields of `field_bits` bits, the first in its lowest bits; what 64 - F·field_bits leaves over is zero in
every sum. Words come in *rows* of 512, the last row perhaps shorter. The parameters of a row of W words fill it field
by field: parameter b of the row (0 <= b < F·W) lies in field b // W of the row's word b mod W. The last row is filled
up with parameters of zero. So neighbours in an update are neighbours in one field of neighbouring words, and every
step of the codec runs over whole vector registers, however many bits a field has.
"""

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dure_protocols.errors import MisuseError

if sys.byteorder != "little":  # keystreams are read, and vectors sent, as the words they are in memory
    raise ImportError("Dure's codec runs on little-endian machines only")

Words = NDArray[np.uint64]

WORD_BYTES = 8
ROW_WORDS = 512
TAG_WORDS = 4


@dataclass(frozen=True)
class VectorLayout:
    """Where everything lies in a vector. Equal for all firms of a round.

    parameters: d, float32 parameters (0 in the statistics round), below 2^32; bits: a field's bits before headroom, 2
    to 24 (float32 holds no more); max_members: the most firms that may enter the sum, at most 2^(32 - bits); exact:
    number of fixed-point words.
    """

    parameters: int
    bits: int
    max_members: int
    exact: int = 0

    def __post_init__(self) -> None:
        fits = 0 <= self.parameters < 2**32 and self.exact >= 0 and self.max_members >= 1 and 2 <= self.bits <= 24
        if not fits or self.bits + self.headroom > 32:
            raise MisuseError(f"no such vector layout (2 to 24 bits, at most 32 with headroom): {self}")

    @property
    def headroom(self) -> int:
        """Bits a field has for the sum over all members."""
        return (self.max_members - 1).bit_length()

    @property
    def fields(self) -> int:
        """Parameters in one 64-bit word, F."""
        return 64 // (self.bits + self.headroom)

    @property
    def field_bits(self) -> int:
        """Bits from one field to the next, at most 32; what a whole number of fields leaves over widens them."""
        return 64 // self.fields

    @property
    def packed_words(self) -> int:
        """Words that hold the parameters."""
        return -(-self.parameters // self.fields)

    @property
    def rows(self) -> int:
        """Rows of packed words, the last perhaps shorter."""
        return -(-self.packed_words // ROW_WORDS)

    @property
    def row_parameters(self) -> int:
        """Parameters in a whole row, R."""
        return ROW_WORDS * self.fields

    @property
    def unit_fields(self) -> int:
        """Fields in a unit: as many as 32 bits hold. Tags are sums over units (`tags`)."""
        return 32 // self.field_bits

    @property
    def units(self) -> int:
        """Units in one word, two or three; the last may have fewer fields."""
        return -(-self.fields // self.unit_fields)

    @property
    def tail(self) -> slice:
        """The words that are neither packed nor tag: count, firms and exact."""
        return slice(self.packed_words, self.packed_words + self.tail_words)

    @property
    def tail_words(self) -> int:
        """Number of those words."""
        return 2 + self.exact

    @property
    def words(self) -> int:
        """Words of the whole vector: packed, count, firms, exact, tag."""
        return self.packed_words + self.tail_words + TAG_WORDS

    @property
    def size_bytes(self) -> int:
        """Bytes of the vector on the wire."""
        return self.words * WORD_BYTES
