"""Looks for values in a stream of bytes as they are, in the usual encodings, and inside of what can be decompressed."""

import base64
import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterator
from urllib.parse import quote

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_DEPTH = 3
_ZLIB_START = re.compile(rb"[\x08-\x78][\x01-\xff]")
_MAX_PLAIN = 1 << 24


def forms_of_text(text: str) -> dict[str, bytes]:
    """A text's bytes in the usual encodings."""
    return _forms_of_bytes(text.encode()) | {
        "UTF-16, little-endian": text.encode("utf-16-le"),
        "UTF-16, big-endian": text.encode("utf-16-be"),
        "UTF-32": text.encode("utf-32-le"),
        "JSON": json.dumps(text)[1:-1].encode(),
        "JSON, every character escaped": "".join(f"\\u{ord(each):04x}" for each in text).encode(),
        "percent": quote(text).encode(),
        "latin-1": text.encode("latin-1", "replace"),
    }


def forms_of_number(number: float) -> dict[str, bytes]:
    """A number as text, and its bytes in both widths and orders, each plain, in hexadecimal and in base64."""
    found = {f"text, {name}": form for name, form in _forms_of_bytes(str(number).encode()).items()}
    found["text, UTF-16"] = str(number).encode("utf-16-le")
    for name, form in (("float32", "f"), ("float64", "d")):
        for order, sign in (("little-endian", "<"), ("big-endian", ">")):
            found |= {
                f"{name}, {order}, {how}": data
                for how, data in _forms_of_bytes(struct.pack(sign + form, number)).items()
            }
    return found


def _forms_of_bytes(data: bytes) -> dict[str, bytes]:
    found = {"plain": data, "hex": data.hex().encode(), "HEX": data.hex().upper().encode()}
    for offset in range(3):
        # What of the encoded bytes does not depend on the neighbours: whole groups of six bits.
        whole = base64.b64encode(bytes(offset) + data)
        inner = whole[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        found[f"base64, offset {offset}"] = inner
        found[f"base64url, offset {offset}"] = inner.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def layers(stream: bytes, depth: int = _DEPTH) -> Iterator[bytes]:
    """The stream, and all that any place in it decompresses to, again and again.

    gzip and zlib are tried wherever one may begin; zstd has no decoder here, so its magic is a find of its own.
    """
    yield stream
    if depth == 0:
        return
    for match in re.finditer(rb"\x1f\x8b\x08", stream):
        if plain := _inflated(stream[match.start() :], 31):
            yield from layers(plain, depth - 1)
    for match in _ZLIB_START.finditer(stream):
        start = match.start()
        header = int.from_bytes(stream[start : start + 2], "big")
        if header >> 8 & 15 == 8 and header % 31 == 0 and (plain := _inflated(stream[start:], 15)):
            yield from layers(plain, depth - 1)


def _inflated(data: bytes, window: int) -> bytes:
    """What can be decompressed at the beginning of `data`; nothing if that is a few bytes of chance."""
    engine, plain = zlib.decompressobj(window), b""
    try:
        plain = engine.decompress(data, _MAX_PLAIN)
    except zlib.error:
        return b""
    return plain if len(plain) > 8 else b""


def raw_deflate(data: bytes) -> bytes:
    """What a message decompresses to as deflate without a header; nothing if it does not."""
    return _inflated(data, -15)


def finds(stream: bytes, forms: dict[str, bytes]) -> list[str]:
    """The names of the forms that occur in the stream or in one of its layers; "zstd" if a frame of it begins there."""
    found: set[str] = set()
    for layer in layers(stream):
        found |= {name for name, form in forms.items() if form in layer}
        if ZSTD_MAGIC in layer:
            found.add("zstd")
    return sorted(found)


def gzipped(data: bytes) -> bytes:
    """For controls."""
    return gzip.compress(data, mtime=0)
