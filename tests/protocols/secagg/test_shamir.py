"""Secret sharing over F_P, P = 2^256 + 297: any threshold of shares gives the secret back, fewer tell nothing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure_protocols.errors import MessageError, MisuseError
from dure_protocols.secagg.shamir import PRIME, SECRET_BYTES, SHARE_BYTES, combine, split

SECRETS = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


def is_probably_prime(number, chance, tries=40):
    """Miller and Rabin's test."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(tries):
        value = pow(chance.randrange(2, number - 1), odd, number)
        if value in (1, number - 1):
            continue
        for _ in range(twos - 1):
            value = value * value % number
            if value == number - 1:
                break
        else:
            return False
    return True


def test_the_field_is_the_smallest_prime_above_every_secret():
    chance = random.Random(0)
    assert is_probably_prime(PRIME, chance)
    assert not any(is_probably_prime(number, chance) for number in range(2**256, PRIME))


@settings(max_examples=60, deadline=None)
@given(secret=SECRETS, num=st.integers(1, 20), data=st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret, num, data):
    threshold = data.draw(st.integers(1, num))
    points = data.draw(st.lists(st.integers(1, 200), min_size=num, max_size=num, unique=True))
    seed = data.draw(st.integers(0, 2**32))
    shares = dict(zip(points, split(secret, threshold, points, random.Random(seed).randbytes), strict=True))
    assert all(len(share) == SHARE_BYTES for share in shares.values())
    chosen = data.draw(st.permutations(points))[: data.draw(st.integers(threshold, num))]
    assert combine({point: shares[point] for point in chosen}, threshold) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\0" * 31 + b"\1"], ids=["zero", "largest", "one"])
def test_the_secrets_at_the_ends_come_back(secret):
    shares = split(secret, 3, [1, 2, 3, 4], random.Random(1).randbytes)
    assert combine({2: shares[1], 3: shares[2], 4: shares[3]}, 3) == secret


def test_one_share_too_few_fits_every_secret_alike():
    """To t - 1 shares and any secret there is exactly one polynomial: here the share that completes it is computed."""
    threshold, points = 4, [1, 2, 3, 4, 5]
    shares = split(b"\x5a" * 32, threshold, points, random.Random(2).randbytes)
    known = dict(zip(points[:3], shares[:3], strict=True))
    for candidate in (bytes(32), b"\x5a" * 32, b"\xff" * 32, random.Random(3).randbytes(32)):
        fourth = _value_at(
            4, {0: int.from_bytes(candidate, "big"), **{p: int.from_bytes(s, "big") for p, s in known.items()}}
        )
        assert combine(known | {4: fourth.to_bytes(SHARE_BYTES, "big")}, threshold) == candidate


def _value_at(point, values):
    """The value at a point of the polynomial through `values`."""
    total = 0
    for x, y in values.items():
        term = y
        for other in values:
            if other != x:
                term = term * (point - other) * pow(x - other, -1, PRIME) % PRIME
        total += term
    return total % PRIME


def test_one_share_too_few_combined_is_not_the_secret():
    secret = b"\x11" * 32
    points = [1, 2, 3, 4, 5]
    for seed in range(50):
        shares = dict(zip(points, split(secret, 4, points, random.Random(seed).randbytes), strict=True))
        try:
            guess = combine(dict(list(shares.items())[:3]), 3)
        except MessageError:
            continue
        assert guess != secret


def test_too_few_shares_are_refused():
    shares = split(bytes(32), 3, [1, 2, 3], random.Random(0).randbytes)
    with pytest.raises(MessageError, match="2 shares came where 3 are needed"):
        combine({1: shares[0], 2: shares[1]}, 3)


@pytest.mark.parametrize("share", [PRIME.to_bytes(33, "big"), b"\xff" * 33, bytes(32), bytes(34)])
def test_what_is_no_element_of_the_field_is_no_share(share):
    shares = split(bytes(32), 2, [1, 2, 3], random.Random(0).randbytes)
    with pytest.raises(MessageError, match="point 1"):
        combine({1: share, 2: shares[1]}, 2)


def test_shares_whose_secret_has_33_bytes_do_not_belong_together():
    """A constant polynomial of P - 1, which no dealer of a 32-byte secret has."""
    share = (PRIME - 1).to_bytes(SHARE_BYTES, "big")
    with pytest.raises(MessageError, match="do not belong together"):
        combine({1: share, 2: share}, 2)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (bytes(31), 2, [1, 2]),
        (bytes(33), 2, [1, 2]),
        (bytes(32), 3, [1, 2]),
        (bytes(32), 0, [1, 2]),
        (bytes(32), 2, [1, 1]),
        (bytes(32), 2, [0, 1]),
        (bytes(32), 2, [-1, 1]),
        (bytes(32), 2, [PRIME, 1]),
    ],
)
def test_a_sharing_that_cannot_be_is_our_own_mistake(secret, threshold, points):
    with pytest.raises(MisuseError):
        split(secret, threshold, points, random.Random(0).randbytes)
