"""What identity keeps: users, their sessions, API keys and the secret that signs tokens."""

import hashlib
from datetime import datetime
from typing import ClassVar

from cluster.identity.model import Principal, Tier
from cluster.store import Index, Record


def user_id(username: str) -> str:
    """A user's id follows from the name, so that a name is unique and looked up in one read."""
    return "user_" + hashlib.sha256(username.strip().casefold().encode()).hexdigest()[:24]


class User(Record):
    """A person. `tokens_from`: tokens issued earlier are dead (password changed)."""

    kind: ClassVar[str] = "user"
    indexes: ClassVar[tuple[Index, ...]] = (Index("all", lambda u: u.created_at.timestamp()),)

    user_id: str
    username: str
    password_hash: str
    tier: Tier = "standard"
    scopes: frozenset[str]
    disabled: bool = False
    tokens_from: datetime
    created_at: datetime


class Session(Record):
    """One sign-in and every refresh token that descends from it; only `current` is good, and only once."""

    kind: ClassVar[str] = "session"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("expiry", lambda s: s.expires_at.timestamp()),
        Index("user", lambda s: s.expires_at.timestamp(), lambda s: [(s.user_id,)]),
    )

    session_id: str
    user_id: str
    current: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None


class ApiKey(Record):
    """A program's key. The key itself is not kept: `key_id` and `digest` both come from its SHA-256."""

    kind: ClassVar[str] = "key"
    indexes: ClassVar[tuple[Index, ...]] = (
        Index("all", lambda k: k.created_at.timestamp()),
        Index("client", lambda k: k.created_at.timestamp(), lambda k: [(k.client_id,)]),
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


class Secret(Record):
    """Random bytes that all processes of the village share."""

    kind: ClassVar[str] = "secret"

    secret_id: str
    value: str
