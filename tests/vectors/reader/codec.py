"""From an update to ring words and back, and the tag (docs/protocol.md, section 5), one parameter at a time."""

import numpy as np

from .wire import Refused, derive, keystream, words

P = 2**61 - 1
ROW = 512
TAG_WORDS = 4


class Layout:
    """Where everything lies in a vector."""

    def __init__(self, parameters, bits, max_members, exact=0):
        self.d, self.bits, self.max_members, self.exact = parameters, bits, max_members, exact
        self.fields = 64 // (bits + (max_members - 1).bit_length())
        self.field_bits = 64 // self.fields
        self.packed = -(-parameters // self.fields)
        self.rows = -(-self.packed // ROW)
        self.unit_fields = 32 // self.field_bits
        self.units = -(-self.fields // self.unit_fields)
        self.tail = 2 + exact
        self.words = self.packed + self.tail + TAG_WORDS
        self.middle = 2 ** (bits - 1) - 1

    def row_width(self, row):
        return min(ROW, self.packed - row * ROW)

    def positions(self):
        """Of each parameter, padding included: its number, word and field."""
        number = 0
        for row in range(self.rows):
            width = self.row_width(row)
            for field in range(self.fields):
                for word in range(width):
                    yield number, row * ROW + word, field
                    number += 1


def rounding_hash(seed, number):
    h = number ^ (seed % 2**32)
    h ^= h >> 16
    h = h * 0x7FEB352D % 2**32
    h ^= seed >> 32
    h ^= h >> 15
    h = h * 0x846CA68B % 2**32
    return h ^ (h >> 16)


def contribution(layout, update, weight, count, exact, clip, rounding, tag_key, firm, blinding, residual=None):
    """A firm's words before masks, and the next residual. update, residual: float32 arrays or None."""
    middle, noise_bits = layout.middle, 32 - layout.bits
    scale = np.float32(middle / clip * 2.0**noise_bits)
    limit = np.float32(middle * 2.0**noise_bits)
    step = np.float32(clip / middle)
    out = [0] * layout.words
    losses = None if residual is None else residual.copy()
    for number, word, field in layout.positions():
        q = middle
        if number < layout.d:
            with np.errstate(over="ignore"):
                value = np.float32(weight) * update[number]
                if residual is not None:
                    value = value + residual[number]
                if not np.isfinite(value):
                    raise Refused("out-of-range")
                z = min(max(value * scale, -limit), limit)
            q = (int(z) + (middle << noise_bits) + (rounding_hash(rounding, number) >> layout.bits)) >> noise_bits
            if losses is not None:
                losses[number] = value - np.float32(q - middle) * step
        out[word] |= q << (field * layout.field_bits)
    tail = [count, 1, *(round(value * 2.0**24) for value in exact)]
    most = 2**60 // layout.max_members
    if any(abs(value) >= most for value in tail):
        raise Refused("out-of-range")
    tag = (Tag(layout, tag_key).of(out, tail) + member_constant(tag_key, firm)) % P
    out[layout.packed :] = [value % 2**64 for value in (*tail, *blinded(tag, blinding))]
    return out, losses


class Tag:
    """A tag key spread out for a layout: x[h][w], r[k], s[a][j]."""

    def __init__(self, layout, key):
        self.layout = layout
        planes = layout.units + 2
        sizes = planes * ROW * 4, layout.tail * 8, layout.rows * 3 * 8
        stream = keystream(key, sum(sizes))
        first, second = sizes[0], sizes[0] + sizes[1]
        x = [int.from_bytes(stream[at : at + 4], "little") % 2**22 for at in range(0, first, 4)]
        self.x = [x[plane * ROW : (plane + 1) * ROW] for plane in range(planes)]
        self.r = [word % 2**61 for word in words(stream[first:second])]
        s = [word % 2**61 for word in words(stream[second:])]
        self.s = [s[row * 3 : row * 3 + 3] for row in range(layout.rows)]

    def of(self, packed, tail):
        """The tag of packed words (more may follow them) and of tail values with sign."""
        layout, total = self.layout, 0
        unit_bits = layout.unit_fields * layout.field_bits
        for row in range(layout.rows):
            for w in range(layout.row_width(row)):
                word = packed[row * ROW + w] % 2 ** (layout.fields * layout.field_bits)
                for unit in range(layout.units):
                    number = (word >> (unit * unit_bits)) % 2**unit_bits
                    total += number * sum(self.s[row][j] * self.x[unit + j][w] for j in range(3))
        total += sum(r * value for r, value in zip(self.r, tail, strict=True))
        return total % P


def member_constant(key, firm):
    """k[firm]: says in the tag of a sum that this firm's vector is in it."""
    return int.from_bytes(derive(key, "dure tag member", firm.encode()), "big") % P


def blinded(tag, blinding):
    """The four tag words of a tag, with sign."""
    multiple, *carries = words(blinding)
    value = tag + multiple % 2**40 * P
    c0, c1, c2 = (carry % 2**36 for carry in carries)
    low = [value // 2**shift % 2**16 for shift in (0, 16, 32)]
    return low[0] + 2**16 * c0, low[1] + 2**16 * c1 - c0, low[2] + 2**16 * c2 - c1, value // 2**48 - c2


def signed(word):
    return word - 2**64 if word >= 2**63 else word


def carries_tag(layout, total, key, members):
    """Whether the words of a sum carry the tag of their integers and members."""
    if len(total) != layout.words:
        raise Refused("malformed")
    tail = [signed(word) for word in total[layout.packed : layout.packed + layout.tail]]
    if any(abs(value) >= 2**60 for value in tail):
        return False
    if any(word >> (layout.fields * layout.field_bits) for word in total[: layout.packed]):
        return False
    expected = Tag(layout, key).of(total, tail) + sum(member_constant(key, firm) for firm in members)
    carried = sum(signed(word) * 2 ** (16 * at) for at, word in enumerate(total[-TAG_WORDS:]))
    return expected % P == carried % P


def decode_sum(layout, total, clip, count_cap):
    """mean as float32, count, members, exact values. Raises Refused("malformed")."""
    if len(total) != layout.words:
        raise Refused("malformed")
    count, members, *exact = total[layout.packed : layout.packed + layout.tail]
    if not 1 <= members <= layout.max_members or not 0 < count <= members * count_cap:
        raise Refused("malformed")
    factor = np.float32(clip / layout.middle / (count / count_cap))
    mean = np.zeros(layout.d, np.float32)
    for number, word, field in layout.positions():
        if number < layout.d:
            q = (total[word] >> (field * layout.field_bits)) % 2**layout.field_bits
            mean[number] = np.float32(q - members * layout.middle) * factor
    return mean, count, members, [signed(word) / 2.0**24 for word in exact]


def add_masks(vector, add, subtract):
    """Words with keystreams added and subtracted."""
    vector = list(vector)
    for keys, sign in ((add, 1), (subtract, -1)):
        for key in keys:
            for at, word in enumerate(words(keystream(key, 8 * len(vector)))):
                vector[at] = (vector[at] + sign * word) % 2**64
    return vector
