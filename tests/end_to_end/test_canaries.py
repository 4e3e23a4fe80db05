"""The search for canaries finds each in every encoding that it names, wherever it is planted."""

import base64
import random
import zlib

import pytest

from tests.end_to_end.canaries import ZSTD_MAGIC, finds, forms_of_number, forms_of_text, gzipped, layers, raw_deflate

TEXT = forms_of_text('Zaunkönig "Werke" 4421')
NUMBER = forms_of_number(43.2198765)
NOISE = random.Random(5).randbytes(40_000)


@pytest.mark.parametrize("name", TEXT)
def test_a_text_is_found_in_every_form(name: str) -> None:
    assert name in finds(NOISE + TEXT[name] + NOISE, TEXT)


@pytest.mark.parametrize("name", NUMBER)
def test_a_number_is_found_in_every_form(name: str) -> None:
    assert name in finds(NOISE + NUMBER[name] + NOISE, NUMBER)


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(gzipped, id="gzip"),
        pytest.param(zlib.compress, id="zlib"),
        pytest.param(lambda data: zlib.compress(data, 9), id="zlib, best"),
        pytest.param(lambda data: gzipped(zlib.compress(data)), id="zlib in gzip"),
        pytest.param(lambda data: gzipped(b"{" + gzipped(data) + b"}"), id="gzip in gzip"),
    ],
)
def test_what_is_compressed_is_found(packed) -> None:  # type: ignore[no-untyped-def]
    planted = NOISE + packed(b"rows: " + TEXT["plain"] + b" and more") + NOISE
    assert TEXT["plain"] not in planted
    assert "plain" in finds(planted, TEXT)


def test_deflate_without_a_header_is_found_at_the_beginning_of_a_message() -> None:
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = engine.compress(TEXT["plain"] * 3) + engine.flush()
    assert TEXT["plain"] in raw_deflate(packed)


def test_the_beginning_of_a_zstd_frame_is_a_find() -> None:
    assert finds(NOISE + ZSTD_MAGIC + NOISE, TEXT) == ["zstd"]


def test_noise_holds_nothing() -> None:
    assert finds(NOISE, TEXT | NUMBER) == []
    assert len(list(layers(NOISE))) <= 3


@pytest.mark.parametrize("offset", range(3))
def test_base64_of_any_alignment_is_found(offset: int) -> None:

    planted = base64.b64encode(b"x" * offset + TEXT["plain"] + b"yz")
    assert any(name.startswith("base64") for name in finds(planted, TEXT))
