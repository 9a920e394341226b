"""What a principal may do with webhooks."""

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cluster.clock import Clock, utc_now
from cluster.egress import Egress
from cluster.errors import AgentNotFound, Conflict, Forbidden, Invalid, NotFound
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.origin import current
from cluster.store import Page, Store, Write
from cluster.webhooks import catalogue, events, machine, signing
from cluster.webhooks.model import Delivery, DeliveryState, Secret, Webhook, delivery_id
from cluster.webhooks.post import post
from cluster.workers.model import Agent

MAX_PER_OWNER = 50
GRACE = timedelta(hours=24)
AT_ONCE = 100  # deliveries replayed in one commit
RACES = 10
GENERATED_BYTES = 32
Step = Callable[[Webhook], Webhook]


class Webhooks:
    """Webhook use cases. `who` has its own webhooks, an admin everybody's; another's is a `NotFound`."""

    def __init__(self, store: Store, egress: Egress, clock: Clock = utc_now) -> None:
        self.store, self.egress, self.clock = store, egress, clock

    async def create(
        self, who: Principal, *, url: str, filters: Sequence[str], agent_id: str = "", secret: str = "",
        active: bool = True, all_owners: bool = False, description: str = "",
    ) -> tuple[Webhook, str]:  # fmt: skip
        """The webhook, and its secret if made here. Raises `Invalid`, `AgentNotFound`, `Forbidden`, `Conflict`."""
        wanted = catalogue.checked(filters)
        generated = "" if secret else new_secret()
        signing.check_secret(secret or generated)
        if all_owners and not who.is_admin:
            raise Forbidden("everybody's events are for admins", required_scope="admin")
        await self._check_agent(agent_id)
        await self.egress.check(url)
        if await self.store.count(Webhook, "list", "owner", who.owner) >= MAX_PER_OWNER:
            raise Conflict(f"an owner may have {MAX_PER_OWNER} webhooks", limit=MAX_PER_OWNER)
        since, at = await self.store.last_event_id(), self.clock()
        hook = Webhook(
            webhook_id=new_id("wh"), owner=who.owner, created_by=who.principal_id, url=url, events=wanted,
            agent_id=agent_id, all_owners=all_owners, active=active, description=description,
            secrets=(Secret(value=secret or generated),), since=since, created_at=at, updated_at=at,
        )  # fmt: skip
        return await self.store.create(hook, events.changed(hook, at, kind="webhook.created")), generated

    async def _check_agent(self, agent_id: str) -> None:
        # Agents are known to everybody. Whose tasks' events the webhook gets is decided event by event.
        if agent_id and await self.store.find(Agent, agent_id) is None:
            raise AgentNotFound(f"no agent {agent_id}", agent_id=agent_id)

    async def get(self, who: Principal, webhook_id: str) -> Webhook:
        """Raises `NotFound`."""
        hook = await self.store.find(Webhook, webhook_id)
        if hook is None or not who.sees(hook.owner):
            raise NotFound(f"no webhook {webhook_id}", webhook_id=webhook_id)
        return hook

    async def page(self, who: Principal, agent_id: str = "", offset: int = 0, limit: int = 50) -> Page[Webhook]:
        """Newest first."""
        parts = ["all"] if who.is_admin else ["owner", who.owner]
        parts += ["agent", agent_id] if agent_id else []
        return await self.store.page(Webhook, "list", *parts, offset=offset, limit=limit)

    async def update(
        self, who: Principal, webhook_id: str, *, url: str | None = None, filters: Sequence[str] | None = None,
        agent_id: str | None = None, secret: str | None = None, active: bool | None = None,
        all_owners: bool | None = None, description: str | None = None,
    ) -> Webhook:  # fmt: skip
        """Change what is given. A new `secret` is a rotation; switching on forgets failures. Raises as `create`."""
        hook = await self.get(who, webhook_id)
        if secret is not None:
            signing.check_secret(secret)
        if all_owners and not (who.is_admin and who.owner == hook.owner):
            raise Forbidden("everybody's events are for admins, on webhooks of their own", required_scope="admin")
        if agent_id is not None:
            await self._check_agent(agent_id)
        if url is not None:
            await self.egress.check(url)
        fields = {
            "url": url, "events": None if filters is None else catalogue.checked(filters), "agent_id": agent_id,
            "all_owners": all_owners, "description": description,
        }  # fmt: skip
        update = {name: value for name, value in fields.items() if value is not None}
        since, at = await self.store.last_event_id(), self.clock()

        def step(hook: Webhook) -> Webhook:
            after = hook.model_copy(update=update)
            if after.all_owners and not hook.all_owners:
                after = after.model_copy(update={"created_by": who.principal_id})  # whose right it is now
            if secret is not None:
                after = machine.rotated(after, secret, GRACE, at)
            if active:
                after = machine.enabled(after, since)
            elif active is False:
                after = after.model_copy(update={"active": False})
            return after if after == hook else after.model_copy(update={"updated_at": at})

        return await self._change(webhook_id, step, at, kind="webhook.updated")

    async def rotate(
        self, who: Principal, webhook_id: str, secret: str = "", grace: timedelta = GRACE
    ) -> tuple[Webhook, str]:
        """A new secret, given or made here; the former signs beside it for `grace`. The webhook and the new secret."""
        await self.get(who, webhook_id)
        value, at = secret or new_secret(), self.clock()
        signing.check_secret(value)
        hook = await self._change(
            webhook_id, lambda hook: machine.rotated(hook, value, grace, at), at, kind="webhook.secret_rotated"
        )
        return hook, value

    async def _change(self, webhook_id: str, step: Step, at: datetime, kind: str) -> Webhook:
        return await self.store.change(Webhook, webhook_id, step, lambda _, hook: events.changed(hook, at, kind))

    async def delete(self, who: Principal, webhook_id: str) -> Webhook:
        """Gone, with what waits to be sent. Raises `NotFound`."""
        hook = await self.get(who, webhook_id)
        return await self.store.delete(Webhook, webhook_id, events.changed(hook, self.clock(), kind="webhook.deleted"))

    async def close(self) -> None:
        """Give the connections back."""
        await self.egress.close()

    # ---- deliveries

    async def deliveries(
        self, who: Principal, webhook_id: str, state: DeliveryState | None = None, offset: int = 0, limit: int = 50
    ) -> Page[Delivery]:
        """Newest first. Raises `NotFound`."""
        await self.get(who, webhook_id)
        parts = [webhook_id, state] if state else [webhook_id]
        return await self.store.page(Delivery, "list", *parts, offset=offset, limit=limit)

    async def delivery(self, who: Principal, webhook_id: str, delivery_id: str) -> Delivery:
        """Raises `NotFound`."""
        await self.get(who, webhook_id)
        found = await self.store.find(Delivery, delivery_id)
        if found is None or found.webhook_id != webhook_id:
            raise NotFound(f"no delivery {delivery_id}", delivery_id=delivery_id)
        return found

    async def test(self, who: Principal, webhook_id: str) -> Delivery:
        """Send a `webhook.test` event now, once; the delivery with its attempt. Also for one that is switched off."""
        hook = await self.get(who, webhook_id)
        event_id, at, origin = new_id("evt"), self.clock(), current()
        sent = Delivery(
            delivery_id=delivery_id(webhook_id, event_id), webhook_id=webhook_id, event=catalogue.TEST,
            event_id=event_id, created_at=at, traceparent=origin.traceparent if origin else "",
            data={"webhook_id": webhook_id, "message": "a test, sent because somebody asked for it"},
        )  # fmt: skip
        attempt = await post(self.egress, hook, sent, self.clock)
        done = sent.model_copy(
            update={
                "attempts": (attempt,), "attempt_count": 1, "tries": 1, "finished_at": self.clock(),
                "state": DeliveryState.DELIVERED if attempt.ok else DeliveryState.FAILED,
            }
        )  # fmt: skip
        return await self.store.create(
            done, events.changed(hook, at, kind="webhook.tested", delivery_id=done.delivery_id, delivered=attempt.ok)
        )

    async def replay(self, who: Principal, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a delivery again, with the same id. Raises `NotFound`; `Conflict` if off or while it is on its way."""
        await self.delivery(who, webhook_id, delivery_id)
        hook = await self._active(who, webhook_id)
        again = await self._replay(hook, [delivery_id])
        if not again:
            raise Conflict("the delivery is on its way", delivery_id=delivery_id)
        return again[0]

    async def replay_range(
        self, who: Principal, webhook_id: str, start: datetime, end: datetime, filters: Sequence[str] = ("*",),
        failed_only: bool = False,
    ) -> int:  # fmt: skip
        """Send again what happened from `start` to `end`, both included; how many. Raises `NotFound`, `Conflict`."""
        wanted = catalogue.checked(filters)
        if start > end:
            raise Invalid("the end is before the start", field="end")
        hook = await self._active(who, webhook_id)
        parts = [webhook_id, DeliveryState.FAILED] if failed_only else [webhook_id]
        ids = await self.store.ids(Delivery, "list", *parts, low=start.timestamp(), high=end.timestamp())
        count = 0
        for first in range(0, len(ids), AT_ONCE):
            found = await self.store.many(Delivery, ids[first : first + AT_ONCE])
            some = [d.delivery_id for d in found if catalogue.matches(wanted, d.event)]
            count += len(await self._replay(hook, some))
        return count

    async def _active(self, who: Principal, webhook_id: str) -> Webhook:
        hook = await self.get(who, webhook_id)
        if not hook.active:
            raise Conflict("the webhook is switched off", webhook_id=webhook_id, reason=hook.disabled_reason)
        return hook

    async def _replay(self, hook: Webhook, delivery_ids: Sequence[str]) -> list[Delivery]:
        for _ in range(RACES):
            found, at = await self.store.load_many(Delivery, delivery_ids), self.clock()
            writes = [
                Write(before, after, version)
                for before, version in found
                if (after := machine.replayed(before, at)) != before
            ]
            if not writes:
                return []
            told = events.changed(hook, at, kind="webhook.replayed", count=len(writes))
            writes[0] = Write(writes[0].before, writes[0].after, writes[0].version, told)
            if await self.store.commit(*writes):
                return [write.after for write in writes if isinstance(write.after, Delivery)]
        raise Conflict("the deliveries are changed by too many at once", webhook_id=hook.webhook_id)


def new_secret() -> str:
    """256 random bits in the form of Standard Webhooks."""
    return signing.secret_of(secrets.token_bytes(GENERATED_BYTES))
