"""JSON Web Tokens (RFC 7519, HS256): an access token opens the village for an hour, a refresh token renews it. Pure."""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import jwt

from cluster.errors import Unauthenticated
from cluster.identity.records import Session, User
from cluster.identity.signing import SigningKey

ALGORITHM = "HS256"
ISSUER = AUDIENCE = "village"
ACCESS_SECONDS = 3600
REFRESH = timedelta(days=30)
LONGEST = 4096  # characters
CLAIMS = {
    "access": ["sub", "sid", "jti", "iat", "exp", "typ", "name", "scopes", "tier"],
    "refresh": ["sub", "sid", "jti", "iat", "exp", "typ"],
}


def access_token(user: User, session: Session, key: SigningKey, at: datetime, token_id: str) -> tuple[str, int]:
    """A token that opens the village, and for how many seconds: `ACCESS_SECONDS`, or what is left of its session.

    `scopes` and `tier` tell the client what it may do; the village itself goes by the user's record.
    """
    seconds = min(ACCESS_SECONDS, int(session.expires_at.timestamp()) - int(at.timestamp()))
    claims = {"name": user.username, "scopes": sorted(user.scopes), "tier": user.tier, "jti": token_id, "typ": "access"}
    return _signed(claims, session, key, at, int(at.timestamp()) + seconds), seconds


def refresh_token(session: Session, key: SigningKey, at: datetime) -> str:
    """A token that is good for one new pair."""
    return _signed({"jti": session.current, "typ": "refresh"}, session, key, at, int(session.expires_at.timestamp()))


def _signed(claims: dict[str, Any], session: Session, key: SigningKey, at: datetime, expires: int) -> str:
    common = {"iss": ISSUER, "aud": AUDIENCE, "sub": session.user_id, "sid": session.session_id,
              "iat": int(at.timestamp()), "exp": expires}  # fmt: skip
    return jwt.encode(common | claims, key.secret, ALGORITHM, {"kid": key.kid})


def named_key(token: str) -> str:
    """The `kid` of a token's header, unproved; "" for what is no token."""
    try:
        kid = jwt.get_unverified_header(token).get("kid", "") if len(token) <= LONGEST else ""
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return ""
    return kid if isinstance(kid, str) else ""


def read(token: str, kind: str, key: SigningKey | None, at: datetime) -> dict[str, Any]:
    """The claims of a good token of this kind. Raises `Unauthenticated` and says no more than that it is not good."""
    claims: dict[str, Any] = {}
    if key is not None:
        with suppress(jwt.PyJWTError, ValueError, TypeError, RecursionError):
            claims = jwt.decode(
                token, key.secret, [ALGORITHM], audience=AUDIENCE, issuer=ISSUER,
                # Expiry is compared with our own clock below; PyJWT would take the machine's.
                options={"require": ["iss", "aud", *CLAIMS[kind]], "verify_exp": False, "verify_iat": False,
                         "verify_nbf": False},
            )  # fmt: skip
    if claims.get("typ") != kind or at.timestamp() >= claims["exp"]:
        raise Unauthenticated("the token is invalid or expired")
    return claims
