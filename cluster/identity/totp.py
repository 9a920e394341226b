"""Second factors: time-based codes (RFC 6238: SHA-1, 6 digits, 30 s) and backup codes. Each is good once. Pure."""

import base64
import hashlib
import hmac
from datetime import datetime

from pyotp.totp import TOTP

from cluster.identity.records import SecondFactor

STEP_SECONDS = 30
WINDOW = 1  # steps that a clock may be off, either way
BACKUP_CODES = 10
ISSUER = "AIVillage"


def uri(secret: str, username: str) -> str:
    """What an authenticator app reads from a QR code."""
    return TOTP(secret).provisioning_uri(name=username, issuer_name=ISSUER)


def spent(factor: SecondFactor, code: str, at: datetime) -> SecondFactor | None:
    """The factor after this code was used; None where it is wrong, or was used before.

    A time code spends every earlier one too: one that was seen over a shoulder is worth nothing afterwards.
    """
    code = "".join(code.split())
    if len(code) == 6 and code.isascii() and code.isdigit():
        now = int(at.timestamp()) // STEP_SECONDS
        codes = TOTP(factor.secret)
        for step in range(now - WINDOW, now + WINDOW + 1):
            if step > factor.last_step and hmac.compare_digest(codes.generate_otp(step), code):
                return factor.model_copy(update={"last_step": step})
        return None
    left = tuple(kept for kept in factor.backup if not hmac.compare_digest(kept, backup_digest(code)))
    return factor.model_copy(update={"backup": left}) if len(left) < len(factor.backup) else None


def backup_code(random: bytes) -> str:
    """80 random bits as `XXXX-XXXX-XXXX-XXXX`."""
    text = base64.b32encode(random).decode()
    return "-".join(text[i : i + 4] for i in range(0, 16, 4))


def backup_digest(code: str) -> str:
    """SHA-256 of a code as it may be typed. It has 80 bits of its own, so a slow hash would buy little."""
    return hashlib.sha256(code.replace("-", "").replace(" ", "").upper().encode()).hexdigest()
