"""Keys into masks: HKDF derivations and the AES-256-CTR keystream (docs/protocol.md, section 4).

A keystream is what AES-256-GCM with a nonce of zeros makes of zeros: AES-256-CTR from counter block 2 on. The one nonce
is safe because each key is used once: it is derived from the pair's ratcheted root (or a fresh self-mask seed) and a
context that names job, epoch, round, attempt, member set and global model. It is made by GCM, and the authentication
tag thrown away, because OpenSSL runs that on a processor's widest registers (VAES) and plain CTR not: 10.5 GB/s a core
where CTR reaches 8.2.
"""

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dure_protocols.secagg.layout import Words
from dure_protocols.wire import digest

KEY_BYTES = 32
_BLOCK_BYTES = 1 << 18  # stays in the second-level cache, where AES runs three times faster than in memory
_ZEROS = bytes(_BLOCK_BYTES)


def derive(key: bytes, label: str, *context: bytes) -> bytes:
    """HKDF-SHA256 of a key for one purpose. Returns 32 bytes."""
    return HKDF(SHA256(), KEY_BYTES, None, digest(label, *context)).derive(key)


def apply_keystreams(words: Words, *, add: Iterable[bytes] = (), subtract: Iterable[bytes] = ()) -> None:
    """Add and subtract keystreams to `words` in place, modulo 2^64. Keys are 32 bytes each and must be used once.

    Extra memory is one block, whatever the number of keys. Releases the interpreter lock while AES runs.
    """
    streams = [(_encryptor(key), np.add) for key in add] + [(_encryptor(key), np.subtract) for key in subtract]
    buffer = np.empty(_BLOCK_BYTES // words.itemsize, np.uint64)
    view = buffer.data.cast("B")
    zeros = memoryview(_ZEROS)
    for start in range(0, words.size, buffer.size):
        block = words[start : start + buffer.size]
        for encryptor, operation in streams:
            encryptor.update_into(zeros[: block.nbytes], view[: block.nbytes])
            operation(block, buffer[: block.size], out=block)


def _encryptor(key: bytes):  # type: ignore[no-untyped-def]  # cryptography keeps the context's type private
    return Cipher(algorithms.AES256(key), modes.GCM(bytes(12))).encryptor()
