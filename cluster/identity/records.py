"""What identity keeps: users, their second factors and sessions, API keys, revoked tokens."""

import hashlib
from datetime import datetime
from typing import ClassVar

from cluster.identity.model import Principal, Tier
from cluster.store import Index, Record


def user_id(username: str) -> str:
    """A user's id follows from the name, so that a name is unique and looked up in one read."""
    return "user_" + hashlib.sha256(username.strip().casefold().encode()).hexdigest()[:24]


class User(Record):
    """A person. `era`: sessions of an earlier one are over (password changed, second factor set up, disabled, deleted).

    A deleted user's record stays without anything of the person but the name: whoever took the name again would take
    the id, and with it what is filed under the id.
    """

    kind: ClassVar[str] = "user"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index(
            "list",
            lambda u: u.created_at.timestamp(),
            lambda u: [] if u.deleted_at else [(s, t) for s in ("all", u.status) for t in ("all", u.tier)],
        ),
    )

    user_id: str
    username: str
    password_hash: str
    tier: Tier = "standard"
    scopes: frozenset[str]
    disabled: bool = False
    era: int = 0
    mfa: bool = False  # signing in takes a code too
    known_networks: tuple[str, ...] = ()  # where the user signed in from, the latest last; see throttle.py
    created_at: datetime
    password_changed_at: datetime | None = None
    deleted_at: datetime | None = None

    @property
    def status(self) -> str:
        """`active` or `disabled`."""
        return "disabled" if self.disabled else "active"

    @property
    def may_enter(self) -> bool:
        """Whether the right password opens anything."""
        return not self.disabled and self.deleted_at is None

    def principal(self, session_id: str = "") -> Principal:
        """Who the user is to the services, with the rights of now."""
        return Principal(
            principal_id=self.user_id,
            owner=self.user_id,
            username=self.username,
            tier=self.tier,
            scopes=self.scopes,
            session_id=session_id,
        )


class SecondFactor(Record):
    """A user's TOTP secret (RFC 6238) and backup codes; `active` once the user has proved to hold the secret."""

    kind: ClassVar[str] = "mfa"

    mfa_id: str  # the user's id
    secret: str  # base32
    active: bool = False
    last_step: int = -1  # of the newest code that was taken: that one and those before it are spent
    backup: tuple[str, ...] = ()  # SHA-256 of the codes that are left


class Session(Record):
    """One sign-in and every token that descends from it. Only `current` may be refreshed, and only once."""

    kind: ClassVar[str] = "session"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("expiry", lambda s: s.expires_at.timestamp()),
        Index("user", lambda s: s.last_used_at.timestamp(), lambda s: [(s.user_id,)]),
    )

    session_id: str
    user_id: str
    era: int = 0
    current: str
    first: str = ""  # id of the access token that the sign-in itself gave
    stolen: bool = False  # a refresh token was used twice: only `first`, which no refresh token can buy, is good
    created_at: datetime
    last_used_at: datetime  # signed in, or refreshed
    expires_at: datetime
    address: str = ""
    user_agent: str = ""


class RevokedToken(Record):
    """An access token that was taken back before its time; forgotten once it has expired."""

    kind: ClassVar[str] = "revoked"
    indexes: ClassVar[tuple[Index, ...]] = (Index("expiry", lambda r: r.expires_at.timestamp()),)

    revoked_id: str  # the token's jti
    expires_at: datetime


class ApiKey(Record):
    """A program's key. The key itself is not kept: `key_id` and `digest` both come from its SHA-256."""

    kind: ClassVar[str] = "key"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("all", lambda k: k.created_at.timestamp()),
        Index("client", lambda k: k.created_at.timestamp(), lambda k: [(k.client_id,)]),
        Index("maker", lambda k: k.created_at.timestamp(), lambda k: [(k.created_by,)]),
    )

    key_id: str
    digest: str
    client_id: str
    name: str
    scopes: tuple[str, ...]
    tier: Tier = "standard"
    rate_limit_per_minute: int
    rate_limit_per_hour: int
    created_by: str  # owner that made it
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def active(self, at: datetime) -> bool:
        """Whether the key opens anything at this time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)

    def principal(self) -> Principal:
        """Who the key stands for."""
        return Principal(
            principal_id=self.key_id,
            owner=f"client_{self.client_id}",
            username=self.name,
            tier=self.tier,
            scopes=frozenset(self.scopes),
            client_id=self.client_id,
            per_minute=self.rate_limit_per_minute,
            per_hour=self.rate_limit_per_hour,
        )
