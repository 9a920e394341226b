"""Principals and their scopes. `read`, `write` and `admin` imply the fine ones."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Tier = Literal["standard", "premium", "enterprise"]

FINE_SCOPES = frozenset(
    {
        "tasks:read", "tasks:write", "agents:read", "agents:write", "agents:admin", "webhooks:manage", "keys:manage",
        "audit:read", "models:read", "models:write", "chat:write", "knowledge:read", "knowledge:write", "fog:read",
        "fog:write",
    }
)  # fmt: skip
IMPLIED = {
    "read": frozenset(scope for scope in FINE_SCOPES if scope.endswith(":read") and scope != "audit:read"),
    "write": frozenset(scope for scope in FINE_SCOPES if scope.endswith(":write")) | {"webhooks:manage"},
    "admin": FINE_SCOPES | {"read", "write"},
}
SCOPES = FINE_SCOPES | frozenset(IMPLIED)


class Principal(BaseModel):
    """Whoever made a request: a person with a token, or a program with an API key."""

    model_config = ConfigDict(frozen=True)

    principal_id: str  # user_... or key_...
    owner: str  # what this principal's records are filed under: the user's id, or client_<client_id>
    username: str
    tier: Tier = "standard"
    scopes: frozenset[str] = frozenset()
    client_id: str = ""
    session_id: str = ""  # the sign-in that a token descends from
    per_minute: int | None = None  # an API key's own limits
    per_hour: int | None = None

    @property
    def is_admin(self) -> bool:
        """Admins see everything."""
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        """Whether a scope of this principal is, or implies, `scope`."""
        return scope in self.scopes or any(scope in IMPLIED.get(held, ()) for held in self.scopes)

    def sees(self, owner: str) -> bool:
        """Whether a record filed under `owner` exists for this principal."""
        return self.is_admin or owner == self.owner


SYSTEM = Principal(
    principal_id="user_village",
    owner="user_village",
    username="village",
    tier="enterprise",
    scopes=frozenset({"admin"}),
)
