"""API keys: make, list, revoke."""

from datetime import datetime

from cluster.errors import Forbidden, Invalid, NotFound
from cluster.events.model import Event
from cluster.identity import keys
from cluster.identity.admission import Admission
from cluster.identity.model import SCOPES, Principal
from cluster.identity.records import ApiKey
from cluster.store import Page

PER_MINUTE, PER_HOUR = 60, 1000  # a key's limits unless its maker says otherwise


class ApiKeys(Admission):
    """The keys of programs. A key belongs to its client, a client to whoever made its first key."""

    async def create_key(
        self, who: Principal, client_id: str, name: str, scopes: list[str] | None = None,
        per_minute: int = PER_MINUTE, per_hour: int = PER_HOUR, expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:  # fmt: skip
        """A new key and its record; this is the only time that the key is seen.

        Nobody gives what they have not: a key's scopes are among its maker's, a client belongs to whoever made its
        first key, and only an admin raises limits. Raises `Invalid`, `Forbidden`.
        """
        at, asked = self.clock(), scopes if scopes is not None else [s for s in ("read", "write") if who.may(s)]
        if unknown := set(asked) - SCOPES:
            raise Invalid(f"no such scope: {', '.join(sorted(unknown))}", field="scopes", allowed_values=sorted(SCOPES))
        if expires_at is not None and expires_at <= at:
            raise Invalid("expires_at has passed", field="expires_at")
        if missing := [scope for scope in asked if not who.may(scope)]:
            raise Forbidden(f"a key cannot have scopes that its maker lacks: {', '.join(missing)}", scopes=missing)
        if not who.is_admin:
            if per_minute > PER_MINUTE or per_hour > PER_HOUR:
                raise Forbidden(f"only an admin makes keys beyond {PER_MINUTE} a minute and {PER_HOUR} an hour")
            await self._must_belong(who, client_id)
        key = keys.new_key()
        digest = keys.digest(key)
        record = ApiKey(
            key_id=keys.key_id(digest), digest=digest, client_id=client_id, name=name, scopes=tuple(asked),
            tier=who.tier, rate_limit_per_minute=per_minute, rate_limit_per_hour=per_hour, created_by=who.owner,
            created_at=at, expires_at=expires_at,
        )  # fmt: skip
        return await self.store.create(record, _told("key.created", record, at)), key

    async def _must_belong(self, who: Principal, client_id: str) -> None:
        if who.client_id == client_id:
            return
        first = await self.store.page(ApiKey, "client", client_id, limit=1, newest_first=False)
        if who.client_id or (first.items and first.items[0].created_by != who.owner):
            raise Forbidden(f"the client {client_id} is not yours", client_id=client_id)

    async def get_key(self, who: Principal, key_id: str) -> ApiKey:
        """One key. Raises `NotFound`."""
        key = await self.store.get(ApiKey, key_id)
        if not self._sees(who, key):
            raise NotFound(f"no key {key_id}", id=key_id)
        return key

    async def list_keys(
        self, who: Principal, client_id: str = "", active_only: bool = False, offset: int = 0, limit: int = 50
    ) -> Page[ApiKey]:
        """Keys that `who` sees, newest first."""
        index, parts = ("client", (client_id,)) if client_id else ("all", ())
        everything = await self.store.page(ApiKey, index, *parts, limit=-1)
        at = self.clock()
        seen = [k for k in everything.items if self._sees(who, k) and (k.active(at) or not active_only)]
        return Page(seen[offset : offset + limit], len(seen))

    async def revoke_key(self, who: Principal, key_id: str) -> ApiKey:
        """Close a key for good; again, and it stays as it was. Raises `NotFound`."""
        await self.get_key(who, key_id)
        return await self._close_key(key_id, "requested")

    async def keys_of(self, owner: str) -> list[ApiKey]:
        """Active keys that `owner` made, and those of the clients that are theirs, whoever made them."""
        at, found = self.clock(), {}
        made = (await self.store.page(ApiKey, "maker", owner, limit=-1)).items
        for key in made:
            found[key.key_id] = key
        for client_id in sorted({key.client_id for key in made}):
            theirs = (await self.store.page(ApiKey, "client", client_id, limit=-1, newest_first=False)).items
            if theirs and theirs[0].created_by == owner:
                found |= {key.key_id: key for key in theirs}
        return [key for key in found.values() if key.active(at)]

    async def revoke_keys_of(self, owner: str) -> list[ApiKey]:
        """Close every one of `keys_of`; which they were."""
        return [await self._close_key(key.key_id, "owner") for key in await self.keys_of(owner)]

    async def _close_key(self, key_id: str, reason: str) -> ApiKey:
        at = self.clock()

        def plan(key: ApiKey | None):
            if key is None or key.revoked_at is not None:
                return None
            return [(key.model_copy(update={"revoked_at": at}), _told("key.revoked", key, at, reason=reason))]

        [closed] = await self._revoking([(ApiKey, key_id)], plan)
        if closed is None:
            raise NotFound(f"no key {key_id}", id=key_id)
        return closed

    @staticmethod
    def _sees(who: Principal, key: ApiKey) -> bool:
        return who.sees(key.created_by) or who.owner == f"client_{key.client_id}"


def _told(kind: str, key: ApiKey, at: datetime, **more: str) -> Event:
    said = {
        "client_id": key.client_id, "name": key.name, "scopes": list(key.scopes), "created_by": key.created_by,
        "rate_limit_per_minute": key.rate_limit_per_minute, "rate_limit_per_hour": key.rate_limit_per_hour,
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
    }  # fmt: skip
    return Event(kind=kind, subject=key.key_id, owner=key.created_by, at=at, data=said | more)
