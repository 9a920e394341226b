"""A registration's signature: over the canonical JSON (RFC 8785) of what the agent says about itself."""

import base64
import binascii
from collections.abc import Sequence

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from cluster.errors import BadSignature

MIN_RSA_BITS = 2048


def signed_bytes(agent_id: str, display_name: str, public_key: str, endpoint: str, tags: Sequence[str]) -> bytes:
    """What an agent signs: the five fields as canonical JSON, UTF-8."""
    return rfc8785.dumps(
        {
            "agent_id": agent_id, "display_name": display_name, "public_key": public_key, "endpoint": endpoint,
            "tags": list(tags),
        }
    )  # fmt: skip


def same_key(one: str, other: str) -> bool:
    """Whether two PEM texts hold the same key, however they are written."""
    try:
        keys = [load_pem_public_key(text.encode()) for text in (one, other)]
    except (ValueError, UnsupportedAlgorithm, UnicodeEncodeError):
        return False
    first, second = (key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys)
    return first == second


def verify(public_key: str, signature: str, message: bytes) -> None:
    """Check a base64 signature by RSA (PKCS#1 v1.5, SHA-256), ECDSA P-256 or Ed25519. Raises `BadSignature`."""
    try:
        key = load_pem_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm, UnicodeEncodeError) as error:
        raise BadSignature("public_key is not a PEM public key", field="public_key") from error
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSignature("signature is not base64", field="signature") from error
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(raw, message)
        elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
            key.verify(raw, message, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            key.verify(raw, message, ec.ECDSA(hashes.SHA256()))
        else:
            raise BadSignature(
                "public_key must be RSA of 2048 bits or more, ECDSA P-256 or Ed25519", field="public_key"
            )
    except InvalidSignature as error:
        raise BadSignature("the signature does not match the registration", field="signature") from error
