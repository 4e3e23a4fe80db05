"""The bundle for sites without a network, made of tiny wheels and checked with the programs that INSTALL.txt names."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from dure_lab.bundle import BundleError, read_key, read_wheel, write_bundle
from tests.conftest import lacking


def tiny_wheel(folder: Path, name: str, version: str, *more: str) -> None:
    info = f"{name}-{version}.dist-info"
    metadata = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *more, ""])
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    inside = {f"{name}.py": "", f"{info}/METADATA": metadata, f"{info}/WHEEL": tags}
    record = "".join(f"{each},,\n" for each in [*inside, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for each, text in {**inside, f"{info}/RECORD": record}.items():
            archive.writestr(each, text)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    needs = ["Provides-Extra: agent", 'Requires-Dist: lathe; extra == "agent"', "License-Expression: Apache-2.0"]
    tiny_wheel(folder, "dure", "0.1.0", *needs)
    tiny_wheel(folder, "lathe", "2.0", "License: BSD, see file\n        and more lines")
    tiny_wheel(folder, "mill", "3.1", "Classifier: License :: OSI Approved :: MIT License")
    return folder


@pytest.fixture
def constraints(tmp_path: Path) -> Path:
    path = tmp_path / "constraints.txt"
    path.write_text("# tested\nlathe==2.0\nmill==3.1\n")
    return path


def new_key(path: Path) -> Path:
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture
def bundle(wheels: Path, constraints: Path, tmp_path: Path) -> Path:
    write_bundle(wheels, tmp_path / "out", read_key(new_key(tmp_path / "release.key")), constraints)
    return tmp_path / "out"


def sums_hold(bundle: Path) -> bool:
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    return subprocess.run(check, cwd=bundle, capture_output=True, check=False).returncode == 0


def signed_by(key: Path, bundle: Path) -> bool:
    if shutil.which("openssl") is None:
        lacking("checking the signature needs openssl: apt install openssl")
    public = key.with_suffix(".pub")
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", "SHA256SUMS"]
    done = subprocess.run([*check, "-sigfile", "SHA256SUMS.sig"], cwd=bundle, capture_output=True, check=False)
    return done.returncode == 0


def test_a_bundle_is_whole_and_signed_by_the_release_key_alone(bundle: Path, tmp_path: Path) -> None:
    assert sums_hold(bundle)
    assert signed_by(tmp_path / "release.key", bundle)
    assert not signed_by(new_key(tmp_path / "other.key"), bundle)
    named = {line.split("  ")[1] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    there = {each.relative_to(bundle).as_posix() for each in bundle.rglob("*") if each.is_file()}
    assert there - named == {"SHA256SUMS", "SHA256SUMS.sig"}


def test_one_changed_byte_in_any_file_is_found(bundle: Path, tmp_path: Path) -> None:
    files = [each for each in bundle.rglob("*") if each.is_file()]
    assert len(files) == 8
    for file in files:
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert not (sums_hold(bundle) and signed_by(tmp_path / "release.key", bundle)), file.name
        if file.parent.name == "wheels" or file.suffix in {".txt", ".json"}:
            assert not sums_hold(bundle), file.name
        file.write_bytes(whole)
    assert sums_hold(bundle)


def test_the_sbom_is_cyclonedx_and_lists_each_wheel_with_its_hash(bundle: Path) -> None:
    text = (bundle / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = {each["name"]: each for each in json.loads(text)["components"]}
    packed = {wheel.name: wheel for wheel in map(read_wheel, (bundle / "wheels").iterdir())}
    assert listed.keys() == packed.keys() == {"dure", "lathe", "mill"}
    for name, wheel in packed.items():
        assert listed[name]["hashes"] == [{"alg": "SHA-256", "content": wheel.sha256}]
        assert listed[name]["version"] == wheel.version
        assert listed[name]["purl"] == f"pkg:pypi/{name}@{wheel.version}"
    assert listed["dure"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert listed["lathe"]["licenses"] == [{"license": {"name": "BSD, see file"}}]
    assert "MIT" in json.dumps(listed["mill"]["licenses"])


def test_the_same_wheels_and_key_give_the_same_bytes(
    bundle: Path, wheels: Path, constraints: Path, tmp_path: Path
) -> None:
    write_bundle(wheels, tmp_path / "again", read_key(tmp_path / "release.key"), constraints)
    for file in (each for each in bundle.rglob("*") if each.is_file()):
        assert (tmp_path / "again" / file.relative_to(bundle)).read_bytes() == file.read_bytes(), file.name


def test_pip_takes_the_bundle_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", "--no-index", "--find-links", "wheels"]
    command = [*pip, "--require-hashes", "-r", "requirements.txt", "--target"]
    subprocess.run([*command, tmp_path / "site"], cwd=bundle, check=True)
    assert {each.name for each in (tmp_path / "site").glob("*.py")} == {"dure.py", "lathe.py", "mill.py"}
    with (bundle / "wheels" / "mill-3.1-py3-none-any.whl").open("ab") as wheel:
        wheel.write(b"\0")
    refused = subprocess.run([*command, tmp_path / "no"], cwd=bundle, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr


def remove_dure(wheels: Path) -> None:
    (wheels / "dure-0.1.0-py3-none-any.whl").unlink()


def another_version(wheels: Path) -> None:
    (wheels / "mill-3.1-py3-none-any.whl").unlink()
    tiny_wheel(wheels, "mill", "3.2")


def two_of_one(wheels: Path) -> None:
    tiny_wheel(wheels, "dure", "0.0.9")


def no_wheel(wheels: Path) -> None:
    (wheels / "lathe-2.0-py3-none-any.whl").write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (remove_dure, "no wheel of dure"),
        (another_version, "mill is 3.2, constraints.txt says ==3.1"),
        (two_of_one, "several wheels of one package"),
        (no_wheel, "lathe-2.0-py3-none-any.whl is not a wheel"),
    ],
)
def test_a_wrong_set_of_wheels_makes_no_bundle(
    spoil: Callable[[Path], None], told: str, wheels: Path, constraints: Path, tmp_path: Path
) -> None:
    spoil(wheels)
    with pytest.raises(BundleError, match=told):
        write_bundle(wheels, tmp_path / "out", Ed25519PrivateKey.generate(), constraints)
    assert not (tmp_path / "out").exists()
