"""The secrets that sign tokens: one signs, those before it are good until what they signed has expired. Pure."""

from datetime import datetime
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from cluster.store import Record

ID = "jwt"


class SigningKey(BaseModel):
    """A secret with the name that a token's header gives it. Without `until` it is the one that signs."""

    model_config = ConfigDict(frozen=True)

    kid: str
    secret: str
    since: datetime
    until: datetime | None = None

    def good(self, at: datetime) -> bool:
        """Whether a token that it signed is believed."""
        return self.until is None or at < self.until


class SigningKeys(Record):
    """All of them, the one that signs first."""

    kind: ClassVar[str] = "signing"

    signing_id: str = ID
    keys: tuple[SigningKey, ...]

    @property
    def current(self) -> SigningKey:
        """The one that signs."""
        return self.keys[0]

    def named(self, kid: str, at: datetime) -> SigningKey | None:
        """The key of this name if it is good."""
        return next((key for key in self.keys if key.kid == kid and key.good(at)), None)


def rotated(keys: SigningKeys, fresh: SigningKey, until: datetime) -> SigningKeys:
    """`fresh` signs from now on; the key before it is believed until `until`, which may be now. Expired ones go."""
    if until <= fresh.since:  # a leak: whoever has one secret may have those before it
        return SigningKeys(keys=(fresh,))
    retired = keys.current.model_copy(update={"until": until})
    return SigningKeys(keys=(fresh, retired, *(key for key in keys.keys[1:] if key.good(fresh.since))))
