"""An epoch's keys (docs/protocol.md, section 3) and an attempt's (section 4)."""

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from .wire import Refused, derive, digest, names, numbers


def public_halves(ephemeral):
    """Of 96 random bytes: the X25519 and the ML-KEM-768 public key."""
    return (
        X25519PrivateKey.from_private_bytes(ephemeral[:32]).public_key().public_bytes_raw(),
        MLKEM768PrivateKey.from_seed_bytes(ephemeral[32:]).public_key().public_bytes_raw(),
    )


def decapsulate(seed, ciphertext):
    """seed: 64 bytes, d ‖ z of FIPS 203."""
    return MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext)


def roster_digest(epoch, entries):
    """entries: key advertisements in the order of the firms' names."""
    keys = [part for entry in entries for part in (entry["x25519"], entry["mlkem"])]
    return digest("dure roster", numbers(epoch), names(entry["firm"] for entry in entries), *keys)


def pair_root(ephemeral, peer_x25519, kem_secret, roster, sender, receiver, ciphertext):
    private = X25519PrivateKey.from_private_bytes(ephemeral[:32])
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(peer_x25519))
    except ValueError:  # the shared secret is zero
        raise Refused("roster") from None
    return derive(shared + kem_secret, "dure pair root", roster, sender.encode(), receiver.encode(), ciphertext)


def transcript_of(roster, tag_key):
    return digest("dure transcript", roster, digest("dure tag key", tag_key))


def ratchet(root, times):
    for _ in range(times):
        root = derive(root, "dure ratchet")
    return root


def attempt_key(root, attempt):
    return derive(root, "dure attempt", numbers(attempt))


def box_key(root, attempt, dealer):
    return derive(root, "dure share box", numbers(attempt), dealer.encode())


def mask_context(job, transcript, place, cohort, model_hash):
    return digest("dure mask context", job, transcript, numbers(*place), names(cohort), model_hash)


def pair_mask_key(key, context):
    return derive(key, "dure mask", context)


def self_mask_key(seed, context):
    return derive(seed, "dure self mask", context)


def attempt_tag_key(tag_key, context):
    return derive(tag_key, "dure tag", context)


def members_digest(members):
    return digest("dure members", names(members))
