"""JSON Web Tokens (RFC 7519, HS256): an access token names a principal, a refresh token a session. Pure."""

from datetime import datetime, timedelta
from typing import Any

import jwt

from cluster.errors import Unauthenticated
from cluster.identity.model import Principal
from cluster.identity.records import User

ALGORITHM = "HS256"
ACCESS_SECONDS = 3600
REFRESH = timedelta(days=30)


def access_token(user: User, scopes: list[str], secret: str, at: datetime, token_id: str) -> str:
    """A token that opens the village for `ACCESS_SECONDS`."""
    issued = at.timestamp()
    claims = {
        "sub": user.user_id, "name": user.username, "scopes": scopes, "tier": user.tier,
        "iat": issued, "exp": int(issued) + ACCESS_SECONDS, "jti": token_id, "typ": "access",
    }  # fmt: skip
    return jwt.encode(claims, secret, ALGORITHM)


def refresh_token(user_id: str, session_id: str, token_id: str, expires: datetime, secret: str, at: datetime) -> str:
    """A token that is good for one new pair."""
    claims = {"sub": user_id, "sid": session_id, "jti": token_id, "iat": int(at.timestamp()),
              "exp": int(expires.timestamp()), "typ": "refresh"}  # fmt: skip
    return jwt.encode(claims, secret, ALGORITHM)


def read(token: str, kind: str, secret: str, at: datetime) -> dict[str, Any]:
    """The claims of a good token of this kind. Raises `Unauthenticated` and says no more than that it is not good."""
    try:
        # Expiry is compared with our own clock below; PyJWT would take the machine's.
        claims = jwt.decode(token, secret, [ALGORITHM], options={"verify_exp": False, "verify_iat": False})
        good = claims["typ"] == kind and at.timestamp() < claims["exp"]
    except (jwt.InvalidTokenError, KeyError, TypeError):
        good, claims = False, {}
    if not good:
        raise Unauthenticated("the token is invalid or expired")
    return claims


def principal(claims: dict[str, Any]) -> Principal:
    """Who an access token's claims name."""
    return Principal(
        principal_id=claims["sub"],
        owner=claims["sub"],
        username=claims["name"],
        tier=claims["tier"],
        scopes=frozenset(claims["scopes"]),
    )
