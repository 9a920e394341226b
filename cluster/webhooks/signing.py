"""What a receiver is sent, and the signatures by which it knows that it comes from us. Pure.

Two schemes sign the same bytes. AINS: `X-AINS-Signature: sha256=<hex>`, HMAC-SHA256 of the raw body with the secret's
text as the key. Standard Webhooks (standardwebhooks.com): `webhook-signature: v1,<base64>` over `id.timestamp.body`,
where the key is what a `whsec_` secret encodes in base64, and any other secret's text.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import rfc8785
from standardwebhooks import Webhook as StandardWebhook

from cluster.clock import iso
from cluster.errors import Invalid
from cluster.webhooks.model import Delivery

PREFIX = "whsec_"
MIN_SECRET, MAX_SECRET = 8, 256  # characters
MIN_KEY, MAX_KEY = 16, 96  # bytes in a `whsec_` secret
EXACT = 2**53 - 1  # RFC 7493: beyond it a JSON number is not the same everywhere, and a string should be sent
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def secret_of(key: bytes) -> str:
    """A secret in the form of Standard Webhooks."""
    return PREFIX + base64.b64encode(key).decode()


def check_secret(secret: str) -> None:
    """Raises `Invalid` for a secret that is too short, or says it is base64 and is not."""
    if not MIN_SECRET <= len(secret) <= MAX_SECRET or not secret.isprintable() or not secret.isascii():
        raise Invalid(f"a secret has {MIN_SECRET} to {MAX_SECRET} printable ASCII characters", field="secret")
    if secret.startswith(PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
        except binascii.Error as error:
            raise Invalid(f"what follows {PREFIX} is not base64", field="secret") from error
        if not MIN_KEY <= len(key) <= MAX_KEY:
            raise Invalid(f"a {PREFIX} secret holds {MIN_KEY} to {MAX_KEY} bytes", field="secret")


def key_of(secret: str) -> bytes:
    """The key of Standard Webhooks: what a `whsec_` secret encodes; the UTF-8 bytes of any other."""
    return base64.b64decode(secret.removeprefix(PREFIX)) if secret.startswith(PREFIX) else secret.encode()


def hexdigest(secret: str, message: bytes) -> str:
    """HMAC-SHA256 with the secret's text as the key, as AINS documents it."""
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()


def portable(value: Any) -> Any:
    """JSON that every receiver reads alike: an integer that a double cannot hold becomes a string."""
    if isinstance(value, dict):
        return {str(key): portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT else value


def body(delivery: Delivery, secret: str) -> bytes:
    """The bytes of the next attempt: canonical JSON (RFC 8785); `signature` is over the same without itself.

    Raises ValueError or RecursionError for data that canonical JSON cannot hold.
    """
    payload = {
        "event": delivery.event, "event_id": delivery.event_id, "webhook_id": delivery.webhook_id,
        "timestamp": iso(delivery.created_at), "data": portable(delivery.data),
        "delivery_attempt": delivery.attempt_count + 1,
    }  # fmt: skip
    return rfc8785.dumps(payload | {"signature": hexdigest(secret, rfc8785.dumps(payload))})


def headers(delivery: Delivery, content: bytes, secrets: Sequence[str], at: datetime, span: str = "") -> dict[str, str]:
    """Of an attempt at the time `at`; the newest secret first. `span`: the traceparent of the attempt itself."""
    standard = [StandardWebhook(key_of(s)).sign(delivery.delivery_id, at, content.decode()) for s in secrets]
    sent = {
        "Content-Type": "application/json", "User-Agent": "AIVillage-Webhooks/1.0", "X-AINS-Event": delivery.event,
        "X-AINS-Delivery": delivery.delivery_id, "X-AINS-Signature": f"sha256={hexdigest(secrets[0], content)}",
        "webhook-id": delivery.delivery_id, "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(standard),
    }  # fmt: skip
    if len(secrets) > 1:  # one value per header is what a receiver compares with
        sent["X-AINS-Signature-Previous"] = f"sha256={hexdigest(secrets[1], content)}"
    if TRACEPARENT.fullmatch(span or delivery.traceparent):
        sent["traceparent"] = span or delivery.traceparent
    return sent
