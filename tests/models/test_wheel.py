"""What a model package's wheel may hold."""

import io
import stat
import zipfile

import pytest

from dure_models.packages import WheelError, check_free_names, checked_files, sources_of
from dure_models.packages import wheel as rules
from dure_protocols.model_package import ModelPackage
from tests.model_packages.made import INFORMATION, files, pump, signed, zipped

RECORD = f"{INFORMATION}/RECORD"


def check(package: ModelPackage, *, allow_native_code: bool = False) -> dict[str, bytes]:
    return checked_files(package.wheel, package.manifest, allow_native_code=allow_native_code)


def test_a_plain_wheel_is_let_in_whole() -> None:
    assert check(pump()) == {path: content for path, content in files().items() if path != RECORD}
    assert sources_of(check(pump()), "pump_model").keys() == {"pump_model/__init__.py"}


def test_of_the_list_of_files_that_nothing_checks_no_byte_comes_in() -> None:
    assert check(pump({RECORD: b"import os"})) == check(pump())
    inside = {f"pump_model/{RECORD}": b"import os", f"{INFORMATION}/more/RECORD": b"import os"}
    assert check(pump(inside)) == check(pump()) | inside


NATIVE = "native code"
HELD = {
    "a path to the folder above": ({"../evil.py": b""}, "plain path"),
    "a path up from inside": ({"pump_model/../../evil.py": b""}, "plain path"),
    "an absolute path": ({"/etc/cron.d/evil": b""}, "plain path"),
    "a drive and backslashes": ({"C:\\evil.py": b""}, "plain path"),
    "a hidden file": ({"pump_model/.evil": b""}, "plain path"),
    "a path configuration beside the package": ({"evil.pth": b"import os"}, "never installed"),
    "a path configuration in the package": ({"pump_model/evil.pth": b"import os"}, "never installed"),
    "byte-code": ({"pump_model/__init__.pyc": b"x"}, "never installed"),
    "cached byte-code": ({"pump_model/__pycache__/__init__.cpython-311.pyc": b"x"}, "never installed"),
    "a wheel in the wheel": ({"pump_model/more.whl": b"x"}, "never installed"),
    "scripts": ({"pump_model-1.0.data/scripts/evil": b"#!/bin/sh"}, "one .dist-info"),
    "a second module": ({"torch/__init__.py": b""}, "one .dist-info"),
    "a module beside the package": ({"sitecustomize.py": b""}, "one .dist-info"),
    "two metadata folders": ({"other-1.dist-info/METADATA": b"x"}, "one .dist-info"),
    "no package": ({"pump_model/__init__.py": None, "pump_model/a.py": b""}, "one .dist-info"),
    "a shared library": ({"pump_model/fast.so": b"x"}, NATIVE),
    "a versioned shared library": ({"pump_model/fast.so.1": b"x"}, NATIVE),
    "a shared library by another name": ({"pump_model/weights.bin": b"\x7fELF\x02"}, NATIVE),
    "a program for Windows by another name": ({"pump_model/weights.bin": b"MZ\x90"}, NATIVE),
    "a wheel for one platform": (
        {f"{INFORMATION}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: cp311-cp311-linux_x86_64\n"},
        "pure-Python",
    ),
    "a wheel that is not pure": (
        {f"{INFORMATION}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n"},
        "pure-Python",
    ),
    "a source in another encoding": ({"pump_model/a.py": b"# coding: utf-7\n"}, "UTF-8"),
    "a source that is no text": ({"pump_model/a.py": b"\xff\xfe"}, "UTF-8"),
    "a path that a file system may not take": ({"pump_model/" + "a/" * 92 + "bc.txt": b""}, "at most 200"),
    "a file below a file": ({"pump_model/a": b"", "pump_model/a/b": b""}, "below a file"),
    "two names that differ in case": ({"pump_model/A.py": b"", "pump_model/a.py": b""}, "twice"),
    "no entry point": ({f"{INFORMATION}/entry_points.txt": None}, "missing"),
    "a command": (
        {f"{INFORMATION}/entry_points.txt": b"[dure.models]\npump = pump_model:Pump\n[console_scripts]\nls = os:x"},
        "nothing else",
    ),
    "a second model": (
        {f"{INFORMATION}/entry_points.txt": b"[dure.models]\npump = pump_model:Pump\ntabular = pump_model:Pump\n"},
        "nothing else",
    ),
    "another class": ({f"{INFORMATION}/entry_points.txt": b"[dure.models]\npump = os:system\n"}, "nothing else"),
    "a requirement": (
        {f"{INFORMATION}/METADATA": b"Metadata-Version: 2.1\nName: x\nVersion: 1\nRequires-Dist: requests\n"},
        "requires 'requests'",
    ),
}


@pytest.mark.parametrize(("changes", "why"), HELD.values(), ids=HELD)
def test_a_wheel_is_refused_that_holds(changes: dict[str, bytes | None], why: str) -> None:
    with pytest.raises(WheelError, match=why):
        check(pump(changes))


def test_native_code_is_let_in_by_leave_of_the_policy() -> None:
    tag = b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_x86_64\n"
    package = pump({"pump_model/fast.so": b"\x7fELF", f"{INFORMATION}/WHEEL": tag})
    assert check(package, allow_native_code=True)["pump_model/fast.so"] == b"\x7fELF"
    with pytest.raises(WheelError, match=NATIVE):
        check(package)


def test_a_source_distribution_is_no_wheel() -> None:
    with pytest.raises(WheelError, match="never built here"):
        check(signed(b"\x1f\x8b\x08\x00 a gzipped tar file"))


def test_a_link_is_no_file() -> None:
    packed = io.BytesIO(zipped(files()))
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo("pump_model/link.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(WheelError, match="a link or a device"):
        check(signed(packed.getvalue()))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_UNPACKED_BYTES", 1 << 20)
    with pytest.raises(WheelError, match="too large"):
        check(pump({f"pump_model/{n}.bin": bytes(1 << 19) for n in range(3)}))
    monkeypatch.setattr(rules, "MAX_FILES", 5)
    with pytest.raises(WheelError, match="at most 5 files"):
        check(pump({"pump_model/a.py": b""}))


def test_code_packed_for_another_version_of_dure_is_refused() -> None:
    with pytest.raises(WheelError, match="packed for another version"):
        check(pump(model_digest="0" * 64))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        pytest.param({"name": "tabular"}, "'tabular' is installed here", id="a built-in model's name"),
        pytest.param({"module": "json"}, "has the name of one", id="a module of Python"),
        pytest.param({"module": "torch"}, "has the name of one", id="a module that is installed"),
        pytest.param({"module": "dure_models"}, "has the name of one", id="a module of Dure"),
    ],
)
def test_a_package_does_not_take_the_name_of_what_is_installed(words: dict[str, object], why: str) -> None:
    with pytest.raises(WheelError, match=why):
        check_free_names(pump(**words).manifest)
    check_free_names(pump().manifest)
