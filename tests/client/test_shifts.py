"""Limits of a shift: how much was trained in it, when it ends, how many threads."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dure_client.shifts import Shift, TrainedFile, Training, limit_until, threads_now

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
EARLY = Shift(window="Mon-Fri 06:00-14:00", rounds=2, training_minutes=30, threads=1)
NIGHT = Shift(window="Sun-Thu 22:00-06:00", rounds=1)


def at(hours: float) -> datetime:
    return MONDAY + timedelta(hours=hours)


def trained(*ends: float, minutes: float = 1) -> list[Training]:
    return [Training(at=at(hours), seconds=60 * minutes) for hours in ends]


@pytest.mark.parametrize(
    ("done", "now", "until"),
    [
        pytest.param(trained(7), 8, None, id="one of two rounds"),
        pytest.param(trained(7, 8), 9, 14, id="both rounds"),
        pytest.param(trained(7, 8), 15, None, id="after the shift"),
        pytest.param(trained(5, 5.5), 6, None, id="rounds from before the shift"),
        pytest.param(trained(7, minutes=31), 8, 14, id="the minutes are used up"),
        pytest.param(trained(7, 8), 31, None, id="the next day's shift is another"),
        pytest.param(trained(23), 28, 30, id="a night's round counts until its morning"),
    ],
)
def test_a_firm_sits_out_until_its_shift_ends(done: list[Training], now: float, until: float | None) -> None:
    assert limit_until([EARLY, NIGHT], done, at(now)) == (None if until is None else at(until))


def test_a_shift_without_rounds_is_one_without_training() -> None:
    assert limit_until([Shift(window="Mon 06:00-14:00", rounds=0)], [], at(6)) == at(14)


def test_threads_are_the_fewest_of_the_open_shifts_and_never_more_than_given() -> None:
    assert threads_now([EARLY], 4, at(7)) == 1
    assert threads_now([EARLY], 4, at(15)) == 4
    assert threads_now([Shift(window="Mon 00:00-24:00", threads=64)], 4, at(7)) == 4


def test_what_was_trained_is_known_after_a_restart_and_forgotten_after_days(tmp_path: Path) -> None:
    file = TrainedFile(tmp_path / "state" / "trained.json")
    file.add(at(7), 60)
    file.add(at(8), 60)
    assert TrainedFile(tmp_path / "state" / "trained.json").done == trained(7, 8)
    file.add(at(55.5), 60)
    assert file.done == trained(8, 55.5)


def test_a_damaged_account_limits_nothing(tmp_path: Path) -> None:
    (tmp_path / "trained.json").write_text("[{")
    assert TrainedFile(tmp_path / "trained.json").done == []
