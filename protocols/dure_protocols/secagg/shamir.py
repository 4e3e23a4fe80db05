"""Shamir secret sharing of 32-byte secrets (Shamir 1979; docs/protocol.md, section 6.5).

The field is F_P with P = 2^256 + 297, the smallest prime above every 32-byte secret. A share is the polynomial's value
at a firm's point, 33 bytes big-endian; a firm's point is its place in the job's roster, from 1 on. Zero, where the
secret lies, is nobody's point.
"""

from collections.abc import Callable, Mapping, Sequence

from dure_protocols.errors import MessageError, MisuseError

PRIME = (1 << 256) + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
_COEFFICIENT_BYTES = 48  # 128 bits more than P: reduced modulo P, the bias is below 2^-127


def split(
    secret: bytes, threshold: int, points: Sequence[int], randomness: Callable[[int], bytes]
) -> tuple[bytes, ...]:
    """Shares of a 32-byte secret at `points`, in their order. Any `threshold` of them give it back, fewer tell nothing.

    `randomness(n)` gives n bytes; it is asked once for each coefficient, from the linear one on. Raises MisuseError.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points):
        raise MisuseError(f"{threshold} of {len(points)} shares cannot be made of a secret of {len(secret)} bytes")
    _check_points(points)
    drawn = (randomness(_COEFFICIENT_BYTES) for _ in range(threshold - 1))
    coefficients = [int.from_bytes(secret, "big"), *(int.from_bytes(chance, "big") % PRIME for chance in drawn)]
    return tuple(_value(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points)


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind shares by point, from the `threshold` of them with the lowest points.

    Raises MessageError when there are too few, when a share is no element of the field, and when what comes out is no
    32-byte secret: some share was wrong. A wrong share need not show here: check shares against commitments first.
    """
    if len(shares) < threshold:
        raise MessageError(f"{len(shares)} shares came where {threshold} are needed")
    points = sorted(shares)[:threshold]
    _check_points(points)
    secret = 0
    for point in points:
        value = int.from_bytes(shares[point], "big")
        if len(shares[point]) != SHARE_BYTES or value >= PRIME:
            raise MessageError(f"the share at point {point} is no element of the field")
        secret += value * _lagrange_at_zero(point, points)
    secret %= PRIME
    if secret >> (8 * SECRET_BYTES):
        raise MessageError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: Sequence[int], point: int) -> int:
    """The polynomial at a point, by Horner's rule; coefficients from the constant one on."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _lagrange_at_zero(point: int, points: Sequence[int]) -> int:
    numerator = denominator = 1
    for other in points:
        if other != point:
            numerator = numerator * other % PRIME
            denominator = denominator * (other - point) % PRIME
    return numerator * pow(denominator, -1, PRIME) % PRIME


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise MisuseError("a point of sharing is zero, negative, or given to two firms")
