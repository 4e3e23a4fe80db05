"""A model package's file: what its author signed is what is read, or it is refused."""

import hashlib
import json

import pytest

from dure_protocols.job import canonical_json
from dure_protocols.model_package import MAX_PACKAGE_BYTES, ModelPackage, ModelPackageError
from tests.model_packages.made import AUTHOR, STRANGER, manifest_of, pump


def changed_words(data: bytes, **words: object) -> bytes:
    """The package with other words in its manifest and the old signature."""
    line, wheel = data.split(b"\n", 1)
    said = json.loads(line)
    said["manifest"] |= words
    return canonical_json(said) + b"\n" + wheel


def test_a_package_is_read_as_it_was_signed_and_its_digest_is_that_of_the_file() -> None:
    data = pump().to_bytes()
    package = ModelPackage.from_bytes(data)
    assert package == pump()
    assert package.digest == hashlib.sha256(data).hexdigest()
    assert package.manifest.author_fingerprint == AUTHOR.fingerprint


@pytest.mark.parametrize(
    "words",
    [
        pytest.param({"columns": ["flow", "heat"]}, id="other columns"),
        pytest.param({"version": "1.1"}, id="another version"),
        pytest.param({"name": "tabular"}, id="another name"),
        pytest.param({"wheel": "0" * 64}, id="another wheel"),
        pytest.param({"author_key": STRANGER.public_bytes.hex()}, id="another author"),
    ],
)
def test_a_manifest_that_was_changed_after_it_was_signed_is_refused(words: dict[str, object]) -> None:
    with pytest.raises(ModelPackageError, match="not signed by the key that it names"):
        ModelPackage.from_bytes(changed_words(pump().to_bytes(), **words))


def test_a_wheel_of_which_one_byte_was_changed_is_refused() -> None:
    data = bytearray(pump().to_bytes())
    data[-1] ^= 1
    with pytest.raises(ModelPackageError, match="changed after its author signed it"):
        ModelPackage.from_bytes(bytes(data))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"", "first line", id="nothing"),
        pytest.param(b"PK\x03\x04 a wheel without a manifest", "first line", id="a wheel alone"),
        pytest.param(b"{}\nPK", "no manifest", id="an empty manifest"),
        pytest.param(bytes(MAX_PACKAGE_BYTES + 1), "at most", id="too large"),
        pytest.param(pump().to_bytes() + b"x", "changed after", id="a byte more"),
        pytest.param(pump().to_bytes().replace(b'{"manifest"', b'{ "manifest"', 1), "canonical", id="a blank more"),
        pytest.param(changed_words(pump().to_bytes(), more=1), "more", id="a field that nobody knows"),
        pytest.param(
            changed_words(pump().to_bytes(), title="Pumps\u202e"), "title", id="a title that turns the writing"
        ),
    ],
)
def test_what_is_no_package_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ModelPackageError, match=why):
        ModelPackage.from_bytes(data)


def test_nobody_signs_a_manifest_that_names_another_author() -> None:
    wheel = pump().wheel
    with pytest.raises(ModelPackageError, match="not signed by the key"):
        ModelPackage.sign(manifest_of(wheel, AUTHOR), wheel, STRANGER)
