"""Bytes, digests, keys, signatures (docs/protocol.md, sections 2 and 4)."""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class Refused(Exception):  # noqa: N818  # the protocol's word
    """What was asked is refused, with this code."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


def u32(number):
    return number.to_bytes(4, "big")


def u64(number):
    return number.to_bytes(8, "big")


def blob(value):
    return u32(len(value)) + value


def numbers(*values):
    return b"".join(u64(value) for value in values)


def names(members):
    """A set of firms: its size, then each name as a text, in the order of the names."""
    listed = sorted(members)
    return u32(len(listed)) + b"".join(blob(name.encode()) for name in listed)


def sha256(data):
    return hashlib.sha256(data).digest()


def digest(label, *parts):
    return sha256(b"".join(blob(part) for part in (label.encode(), *parts)))


def derive(key, label, *parts):
    return HKDF(SHA256(), 32, None, digest(label, *parts)).derive(key)


def keystream(key, size):
    return Cipher(algorithms.AES256(key), modes.CTR((2).to_bytes(16, "big"))).encryptor().update(bytes(size))


def seal(key, plaintext):
    return AESGCM(key).encrypt(bytes(12), plaintext, None)


def unseal(key, box):
    """Raises cryptography's InvalidTag."""
    return AESGCM(key).decrypt(bytes(12), box, None)


def public_key(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def sign(seed, label, *parts):
    return Ed25519PrivateKey.from_private_bytes(seed).sign(digest(label, *parts))


def check_signature(public, signature, label, *parts):
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, digest(label, *parts))
    except InvalidSignature:
        raise Refused("signature") from None


def words(data):
    """Little-endian 64-bit words."""
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def from_words(values):
    return b"".join((value % 2**64).to_bytes(8, "little") for value in values)
