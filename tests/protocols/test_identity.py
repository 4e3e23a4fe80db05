"""Identities, signatures, fingerprints and firm names."""

import pytest

from dure_protocols.errors import IdentityError
from dure_protocols.identity import Identity, check_firm_name, fingerprint, grouped, same_fingerprint, verify

SEED = bytes(range(32))


def test_a_signature_holds_for_its_label_and_parts_only():
    identity = Identity.from_seed(SEED)
    signature = identity.sign("label", b"one", b"two")
    verify(identity.public_bytes, signature, "label", b"one", b"two")
    for label, parts in (("other", (b"one", b"two")), ("label", (b"onet", b"wo")), ("label", (b"one",))):
        with pytest.raises(IdentityError, match="signature"):
            verify(identity.public_bytes, signature, label, *parts)


def test_another_key_s_signature_is_refused():
    signature = Identity.from_seed(bytes(32)).sign("label")
    with pytest.raises(IdentityError):
        verify(Identity.from_seed(SEED).public_bytes, signature, "label")


def test_a_key_file_gives_the_same_identity():
    identity = Identity.from_seed(SEED)
    assert Identity.from_pem(identity.to_pem()).public_bytes == identity.public_bytes


def test_a_file_that_is_no_key_is_refused():
    with pytest.raises(IdentityError, match="PEM"):
        Identity.from_pem(b"hello")


def test_fingerprints_are_compared_as_people_write_them():
    value = fingerprint(b"key")
    assert same_fingerprint(value, grouped(value).upper())
    assert same_fingerprint(value, ":".join(value[i : i + 2] for i in range(0, 64, 2)))
    assert not same_fingerprint(value, fingerprint(b"other"))
    assert not same_fingerprint(value[:16], value[:16])


@pytest.mark.parametrize("name", ["", "-a", "A", "a" * 64, "a/b", "a.b", "a b", "ä", "a\n"])
def test_names_that_could_become_other_paths_are_refused(name):
    with pytest.raises(IdentityError, match="lower-case"):
        check_firm_name(name)


def test_repr_shows_no_private_key():
    identity = Identity.from_seed(SEED)
    assert SEED.hex() not in repr(identity)
    assert repr(identity) == f"Identity({identity.fingerprint[:16]}…)"
