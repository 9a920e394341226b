"""API keys: make, list, revoke, and recognise."""

import asyncio
from datetime import datetime, timedelta

from cluster.clock import Clock, utc_now
from cluster.errors import Forbidden, Invalid, NotFound, Unauthenticated, Unavailable
from cluster.identity import keys
from cluster.identity.model import SCOPES, Principal
from cluster.identity.records import ApiKey
from cluster.store import Page, Store

PER_MINUTE, PER_HOUR = 60, 1000  # a key's limits unless its maker says otherwise
USED_EVERY = timedelta(minutes=1)  # how fine `last_used_at` is


class ApiKeys:
    """The keys of programs."""

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self._writing: set[asyncio.Task[None]] = set()

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
        return await self.store.create(record), key

    async def _must_belong(self, who: Principal, client_id: str) -> None:
        if who.client_id == client_id:
            return
        first = await self.store.page(ApiKey, "client", client_id, limit=1, newest_first=False)
        if who.client_id or (first.items and first.items[0].created_by != who.owner):
            raise Forbidden(f"the client {client_id} is not yours", client_id=client_id)

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
        key = await self.store.get(ApiKey, key_id)
        if not self._sees(who, key):
            raise NotFound(f"no key {key_id}", id=key_id)
        at = self.clock()
        return await self.store.change(
            ApiKey, key_id, lambda k: k.model_copy(update={"revoked_at": k.revoked_at or at})
        )

    @staticmethod
    def _sees(who: Principal, key: ApiKey) -> bool:
        return who.sees(key.created_by) or who.owner == f"client_{key.client_id}"

    async def authenticate_key(self, key: str) -> Principal:
        """Who the key stands for; one read. Raises `Unauthenticated`."""
        digest, at = keys.digest(key), self.clock()
        record = await self.store.find(ApiKey, keys.key_id(digest))
        if record is None or not keys.same(record, digest) or not record.active(at):
            raise Unauthenticated("the API key is invalid, expired or revoked")
        if record.last_used_at is None or at - record.last_used_at >= USED_EVERY:
            self._note_use(record.key_id, at)
        return record.principal()

    def _note_use(self, key_id: str, at: datetime) -> None:
        """In the background: the request does not wait for it, and losing one to a crash costs a minute's precision."""
        task = asyncio.create_task(self._write_use(key_id, at))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write_use(self, key_id: str, at: datetime) -> None:
        def use(key: ApiKey) -> ApiKey:
            fresh = key.last_used_at is not None and at - key.last_used_at < USED_EVERY
            return key if fresh else key.model_copy(update={"last_used_at": at})

        try:
            await self.store.change(ApiKey, key_id, use)
        except (Unavailable, NotFound):
            return
