"""API keys: 256 random bits behind a prefix, of which only the SHA-256 is kept. Pure."""

import hashlib
import hmac
import secrets

from cluster.identity.records import ApiKey

PREFIX = "ains_"


def new_key() -> str:
    """`ains_` and 43 url-safe characters."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """SHA-256, hexadecimal. A key has 256 bits of its own, so a slow hash would buy nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_id(key_digest: str) -> str:
    """A key's id, from its digest: a presented key is found in one read."""
    return f"key_{key_digest[:24]}"


def same(record: ApiKey, key_digest: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(record.digest, key_digest)
