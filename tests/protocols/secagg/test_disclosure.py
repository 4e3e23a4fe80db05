"""The memory of what a firm released: no model twice, and no combination of sums that is one firm."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.secagg.disclosure import Disclosures, Kind, shows_one_firm

MODEL = bytes(range(32))


def released(*cohorts, kind=Kind.UPDATE):
    disclosures = Disclosures()
    for number, cohort in enumerate(cohorts):
        disclosures.add(kind, bytes([number]) * 32, cohort)
    return disclosures


def test_a_model_is_released_on_once_over_all_jobs():
    disclosures = Disclosures()
    disclosures.check_model(MODEL)
    disclosures.add(Kind.UPDATE, MODEL, "abc")
    with pytest.raises(RefusedError) as info:
        disclosures.check_model(MODEL)
    assert info.value.code is RefusalCode.ALREADY_RELEASED


@pytest.mark.parametrize(
    ("earlier", "new", "passes"),
    [
        (["abcd"], "abcd", True),
        (["abcd"], "abc", False),
        (["abcd"], "abcde", False),
        (["abcd"], "abef", True),
        (["abcde", "abc"], "cde", False),  # abc + cde - abcde = c
        (["abcdef"], "abcd", True),
    ],
)
def test_cohorts_under_a_minimum_difference_of_two(earlier, new, passes):
    disclosures = released(*earlier)
    disclosures.check_cohort(Kind.UPDATE, new, 1)
    if passes:
        disclosures.check_cohort(Kind.UPDATE, new, 2)
        return
    with pytest.raises(RefusedError):
        disclosures.check_cohort(Kind.UPDATE, new, 2)


def test_kinds_do_not_mix():
    disclosures = released("abcd", kind=Kind.STATISTICS)
    disclosures.check_cohort(Kind.UPDATE, "abc", 2)
    with pytest.raises(RefusedError, match="statistics"):
        disclosures.check_cohort(Kind.STATISTICS, "abc", 2)


@given(st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=2), min_size=1, max_size=4))
def test_a_firm_shows_exactly_when_small_whole_numbers_combine_to_it(cohorts):
    """The oracle tries every combination with factors from -3 to 3, which suffice for so few cohorts."""
    firms = "abcdef"
    found = any(
        sorted(sum(k * (firm in c) for k, c in zip(factors, cohorts, strict=True)) for firm in firms)
        in ([0] * 5 + [1], [0] * 5 + [2], [0] * 5 + [3])
        for factors in itertools.product(range(-3, 4), repeat=len(cohorts))
    )
    assert shows_one_firm(cohorts) == found


def test_what_is_stored_comes_back():
    disclosures = released("abc", "abd")
    again = Disclosures.from_bytes(disclosures.to_bytes())
    assert again.to_bytes() == disclosures.to_bytes()
    with pytest.raises(MessageError):
        Disclosures.from_bytes(disclosures.to_bytes()[:-1])


def test_a_model_that_was_uploaded_on_counts_before_anybody_knows_over_whom():
    """In threshold mode the others may open the sum; the members are noted when it is published."""
    disclosures = Disclosures()
    disclosures.add_model(MODEL)
    again = Disclosures.from_bytes(disclosures.to_bytes())
    with pytest.raises(RefusedError):
        again.check_model(MODEL)
    again.check_cohort(Kind.UPDATE, "abc", 2)
    again.add(Kind.UPDATE, MODEL, "abcd")
    with pytest.raises(RefusedError):
        again.check_cohort(Kind.UPDATE, "abc", 2)


def test_noting_a_release_again_changes_nothing():
    disclosures = released("abc")
    before = disclosures.to_bytes()
    disclosures.add(Kind.UPDATE, bytes(32), "cba")
    disclosures.add_model(bytes(32))
    assert disclosures.to_bytes() == before
