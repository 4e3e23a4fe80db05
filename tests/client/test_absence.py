"""Maintenance windows and pauses: when a firm sits out, and until when it says so."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from dure_client import absence
from dure_client.absence import Window, maintenance_until
from dure_client.home import AgentHome
from dure_client.policy import DEFAULT_TEXT, Policy, PolicyError
from dure_protocols.messages import Absence, AbsenceReason

SEOUL = timezone(timedelta(hours=9))
WEEKDAYS, WEEKEND, NIGHT = "Mon-Fri 06:00-14:00", "Sat,Sun 00:00-24:00", "Fri 22:00-06:00"


def local(text):
    """2026-03-02 is a Monday."""
    return datetime.fromisoformat(f"2026-03-{text}").replace(tzinfo=SEOUL)


@pytest.mark.parametrize(
    ("windows", "now", "until"),
    [
        pytest.param([], "02 08:00", None, id="no window is never open"),
        pytest.param([WEEKDAYS], "02 05:59", None, id="before it begins"),
        pytest.param([WEEKDAYS], "02 06:00", "02 14:00", id="from its first minute"),
        pytest.param([WEEKDAYS], "06 13:59", "06 14:00", id="to its last"),
        pytest.param([WEEKDAYS], "06 14:00", None, id="and not after"),
        pytest.param([WEEKDAYS], "07 08:00", None, id="not on other days"),
        pytest.param([WEEKEND], "07 00:00", "09 00:00", id="two days on end are one"),
        pytest.param([NIGHT], "06 23:00", "07 06:00", id="over midnight, before it"),
        pytest.param([NIGHT], "07 05:00", "07 06:00", id="over midnight, behind it"),
        pytest.param([NIGHT], "06 05:00", None, id="over midnight of its own day only"),
        pytest.param([NIGHT, WEEKEND], "06 22:30", "09 00:00", id="windows that overlap are one"),
        pytest.param(["Fri-Mon 08:00-09:00"], "02 08:30", "02 09:00", id="days over the week's end"),
        pytest.param(["mon 08:00-08:00"], "02 09:00", "03 08:00", id="a day and a night"),
    ],
)
def test_a_window_by_the_firm_s_own_clock(windows, now, until):
    assert maintenance_until(windows, local(now)) == (None if until is None else local(until))


def test_maintenance_without_end_is_told_some_days_ahead():
    until = maintenance_until(["Mon-Sun 00:00-24:00"], local("02 08:00"))
    assert timedelta(days=7) < until - local("02 08:00") < timedelta(days=10)


@pytest.mark.parametrize("text", ["", "Mon", "Mon 6-14", "Mon 06:00-25:00", "Mon 06:60-07:00", "Moon 06:00-07:00"])
def test_what_is_no_window_is_refused_with_what_is(text):
    with pytest.raises(ValueError, match="Mon-Fri 06:00-14:00"):
        Window.parse(text)
    with pytest.raises(PolicyError, match=r"maintenance.*Mon-Fri 06:00-14:00"):
        Policy.parse(f"maintenance = [{text!r}]")


def test_the_policy_a_firm_starts_with_has_no_window_and_takes_one():
    assert Policy.parse(DEFAULT_TEXT).maintenance == ()
    changed = DEFAULT_TEXT.replace("maintenance = []", f"maintenance = ['{WEEKDAYS}']")
    assert Policy.parse(changed).maintenance == (WEEKDAYS,)


@pytest.fixture
def home(tmp_path):
    made = AgentHome(tmp_path)
    made.create()
    return made


NOW = datetime(2026, 3, 2, 8, tzinfo=SEOUL)


def answer(home, job="job-1", windows=(), now=NOW):
    return absence.absence(home, windows, "firm-a", job, now)


def test_a_firm_that_nothing_keeps_takes_part(home):
    assert answer(home) is None


def test_a_pause_of_one_job_leaves_the_others(home):
    absence.pause(home, "job-1", None)
    assert answer(home) == Absence("firm-a", AbsenceReason.PAUSED, 0)
    assert answer(home, "job-2") is None
    assert absence.resume(home, "job-1")
    assert answer(home) is None
    assert not absence.resume(home, "job-1")


def test_a_pause_of_all_jobs_ends_at_its_time(home):
    until = NOW + timedelta(hours=2)
    absence.pause(home, None, until)
    assert answer(home) == Absence("firm-a", AbsenceReason.PAUSED, int(until.timestamp()))
    assert answer(home, now=until) is None


def test_maintenance_says_until_when_in_everybody_s_time(home):
    until = datetime(2026, 3, 2, 5, tzinfo=UTC)
    expected = Absence("firm-a", AbsenceReason.MAINTENANCE, int(until.timestamp()))
    assert answer(home, windows=[WEEKDAYS]) == expected


def test_a_pause_that_cannot_be_read_holds(home):
    (home.state / absence.PAUSE_FILE).write_text("{")
    assert answer(home).reason is AbsenceReason.PAUSED
