import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import BadSignature
from cluster.workers.signature import signed_bytes, verify

MESSAGE = signed_bytes("ada", "Ada", "pem", "https://ada.example/execute", ["sums:v1"])


def pem(key) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
GOOD = {
    "rsa": (pem(RSA), RSA.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())),
    "p256": (pem(P256), P256.sign(MESSAGE, ec.ECDSA(hashes.SHA256()))),
    "ed25519": (pem(ED25519), ED25519.sign(MESSAGE)),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_signature_is_taken(kind):
    key, raw = GOOD[kind]
    verify(key, b64(raw), MESSAGE)


@pytest.mark.parametrize("kind", GOOD)
def test_a_signature_of_another_message_or_key_is_refused(kind):
    key, raw = GOOD[kind]
    other = next(k for name, (k, _) in GOOD.items() if name != kind)
    for arguments in (
        (key, b64(raw), MESSAGE + b" "), (key, b64(raw[:-1] + bytes([raw[-1] ^ 1])), MESSAGE),
        (other, b64(raw), MESSAGE),
        (key, b64(b""), MESSAGE), (key, "not base64!", MESSAGE), (key, "ü", MESSAGE),
    ):  # fmt: skip
        with pytest.raises(BadSignature):
            verify(*arguments)


def weak_keys():
    small = rsa.generate_private_key(65537, 1024)
    yield pem(small), small.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    curve = ec.generate_private_key(ec.SECP384R1())
    yield pem(curve), curve.sign(MESSAGE, ec.ECDSA(hashes.SHA256()))
    goldilocks = ed448.Ed448PrivateKey.generate()
    yield pem(goldilocks), goldilocks.sign(MESSAGE)
    old = dsa.generate_private_key(2048)
    yield pem(old), old.sign(MESSAGE, hashes.SHA256())
    yield pem(RSA), RSA.sign(MESSAGE, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def test_other_keys_and_paddings_are_refused():
    for key, raw in weak_keys():
        with pytest.raises(BadSignature):
            verify(key, b64(raw), MESSAGE)


@pytest.mark.parametrize("key", ["", "pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "\udc80"])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(BadSignature):
        verify(key, b64(b"x"), MESSAGE)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(text, text, text, text, st.lists(text, max_size=4))
def test_the_canonical_form_is_what_a_sorted_compact_dump_gives(agent_id, name, key, endpoint, tags):
    body = {"agent_id": agent_id, "display_name": name, "public_key": key, "endpoint": endpoint, "tags": tags}
    dumped = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert signed_bytes(agent_id, name, key, endpoint, tags) == dumped
