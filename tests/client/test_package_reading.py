"""A package as text for people: all of it is shown, nothing of it acts, and no file takes long to compare."""

from dure_client.packages.reading import difference, shown
from tests.model_packages.made import INFORMATION, pump


def differing(old: dict[str, bytes], new: dict[str, bytes]) -> list[str]:
    manifest = pump().manifest
    return list(difference(manifest, old, manifest, new))


def test_the_difference_leaves_out_no_file() -> None:
    path = f"pump_model/{INFORMATION}/RECORD"
    assert "+import os" in differing({}, {path: b"import os"})


LINE, REPEATED = b"line\n", b"".join(b"line %d\n" % (n % 60) for n in range(16_000))


def test_a_file_that_would_take_too_long_to_compare_is_named_and_to_be_read_whole() -> None:
    told = differing({"a.py": REPEATED, "b.py": LINE}, {"a.py": REPEATED[7:], "b.py": b"lines\n"})
    assert told == [
        *("--- approved/a.py", "+++ new/a.py", "@@ too large to compare: read all of it (16,000 and 15,999 lines) @@"),
        *("--- approved/b.py", "+++ new/b.py", "@@ -1 +1 @@", "-line", "+lines"),
    ]
    assert differing({"a.py": REPEATED}, {"a.py": REPEATED}) == []
    assert len(differing({}, {"a.py": REPEATED})) == 16_003  # all of it is new, nothing is searched


def test_many_changed_files_share_the_lines_that_one_may_have() -> None:
    old = {f"{n}.py": LINE * 700 for n in range(9)}
    told = differing(old, {path: content + b"more\n" for path, content in old.items()})
    assert 0 < sum("too large" in line for line in told) < 9


def test_what_would_act_on_a_terminal_is_written_out() -> None:
    assert shown("a\x1b[2Jb\u202ec\r\n\td") == "a\\u001b[2Jb\\u202ec\\u000d\n\td"
