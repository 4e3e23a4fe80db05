"""After a job, nothing in a firm's home may be read by another user of the machine."""

from tests.end_to_end.recorded_mills import Mills, Recording


def test_every_file_and_folder_of_the_home_is_this_users_alone(mills: Mills, recording: Recording) -> None:
    home = mills.home.path
    assert (home / "jobs" / recording.job.id).is_dir()
    found = [home, *(path for path in home.rglob("*") if not path.is_relative_to(home / "data"))]  # the test's own rows
    assert len(found) > 20
    readable = {
        str(path.relative_to(home)): oct(mode) for path in found if (mode := path.lstat().st_mode & 0o777) & 0o077
    }
    assert readable == {}
