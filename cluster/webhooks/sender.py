"""Sends what is due: each webhook has a lane of its own, so that a slow receiver holds up nobody but itself.

A delivery is taken by a versioned commit that puts it out of reach for a lease, so two senders never send the same
attempt while the lease lasts. What a killed one had in hand is due again when it ends.
"""

import asyncio
import logging
import secrets
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from cluster.aside import Aside, insist
from cluster.clock import Clock
from cluster.egress import Egress
from cluster.errors import Conflict
from cluster.events import Event
from cluster.store import Store, Write
from cluster.webhooks import events, machine
from cluster.webhooks.book import Book
from cluster.webhooks.model import Attempt, Delivery, DeliveryState, Webhook
from cluster.webhooks.post import post

log = logging.getLogger("village.webhooks")
TICK_SECONDS = 0.5
OVERALL, EACH = 256, 16  # calls at once
DROPPED_AT_ONCE = 200


@dataclass
class Lane:
    """What is known of one webhook's deliveries here; the store has the rest."""

    webhook_id: str
    flying: int = 0
    streak: int = 0  # attempts that failed one after the other
    again: bool = False
    finished: int = 0  # deliveries since somebody looked what may go
    next_at: datetime | None = None
    task: asyncio.Task[None] | None = None

    @property
    def room(self) -> int:
        """How many more may fly; one at a time to a receiver that fails. Refilled by halves: taking is one commit."""
        most = 1 if self.streak else EACH
        return most - self.flying if self.flying <= most // 2 else 0


class Sender:
    """See the module. `wake` names a webhook that may have something due."""

    def __init__(self, store: Store, egress: Egress, book: Book, clock: Clock) -> None:
        self.store, self.egress, self.book, self.clock = store, egress, book, clock
        self.lanes: dict[str, Lane] = {}
        self.free = OVERALL
        self.starved: deque[str] = deque()  # lanes that found nothing free, in their order
        self.aside = Aside(log)
        self.name = secrets.token_hex(4)
        self.taken = 0
        self.counts = {"delivered": 0, "failed": 0, "attempts": 0}

    async def run(self) -> None:
        """Wake the lanes whose time has come, until cancelled."""
        try:
            while True:
                now = self.clock()
                for lane in list(self.lanes.values()):
                    if lane.next_at is not None and lane.next_at <= now:
                        self.wake(lane.webhook_id)
                await asyncio.sleep(TICK_SECONDS)
        finally:
            self.aside.cancel()

    def wake(self, webhook_id: str) -> None:
        """Look what is due for it."""
        lane = self.lanes.setdefault(webhook_id, Lane(webhook_id))
        lane.again = True
        if lane.task is None:
            lane.task = self.aside.spawn(self._drain(lane))

    # ---- taking

    async def _drain(self, lane: Lane) -> None:
        try:
            while lane.again:
                lane.again = False
                await insist(lambda: self._fill(lane))
        finally:
            lane.task = None

    async def _fill(self, lane: Lane) -> None:
        """Take what is due, as far as there is room."""
        hook = self.book.hooks.get(lane.webhook_id)
        if hook is None:
            await self._drop(lane)
            return
        lane.next_at = None
        wanted = min(lane.room, self.free)
        if wanted <= 0:
            if lane.room > 0 and lane.webhook_id not in self.starved:
                self.starved.append(lane.webhook_id)
            return  # an attempt that ends wakes it
        self.free -= wanted  # reserved across the awaits
        lane.flying += wanted
        taken: list[Delivery] = []
        try:
            now = self.clock()
            ids = await self.store.ids(Delivery, "due", lane.webhook_id, high=now.timestamp(), limit=wanted)
            taken = await self._take(ids, now)
            if len(ids) < wanted:
                first = await self.store.page(Delivery, "due", lane.webhook_id, limit=1, newest_first=False)
                lane.next_at = first.items[0].next_at if first.items else None
        finally:
            self.free += wanted - len(taken)
            lane.flying -= wanted - len(taken)
            for delivery in taken:
                self.aside.spawn(self._deliver(lane, hook, delivery))
        lane.again = lane.again or bool(taken)
        self._serve_starved()

    async def _take(self, ids: list[str], now: datetime) -> list[Delivery]:
        writes: list[Write] = []
        for delivery, version in await self.store.load_many(Delivery, ids):
            self.taken += 1
            with suppress(Conflict):  # taken, or dropped, since its id was read
                writes.append(Write(delivery, machine.claimed(delivery, f"{self.name}.{self.taken}", now), version))
        if not writes:
            return []
        if await self.store.commit(*writes):
            won = writes
        else:  # somebody else took one of them
            won = [write for write in writes if await self.store.commit(write)]
        return [write.after for write in won if isinstance(write.after, Delivery)]

    # ---- sending

    async def _deliver(self, lane: Lane, hook: Webhook, delivery: Delivery) -> None:
        try:
            attempt = await post(self.egress, hook, delivery, self.clock)
            lane.streak = 0 if attempt.ok else lane.streak + 1
            self.counts["attempts"] += 1
            after = await insist(lambda: self._settle(delivery, attempt))
            if after is not None and after.state is not DeliveryState.PENDING:
                lane.finished += 1
                self.counts[after.state] += 1
        finally:
            lane.flying -= 1
            self.free += 1
            self._serve_starved()  # before this lane, which would have the place again
            self.wake(lane.webhook_id)

    def _serve_starved(self) -> None:
        if self.free > 0 and self.starved:
            self.wake(self.starved.popleft())

    async def _settle(self, mine: Delivery, attempt: Attempt) -> Delivery | None:
        """Write down what came of it, with what it means for the webhook, in one commit; None where both are gone."""
        while True:
            (delivery, version), (hook, hook_version) = await self.store.read(
                (Delivery, mine.delivery_id), (Webhook, mine.webhook_id)
            )
            if delivery is None:
                return None
            at = self.clock()
            after = machine.settled(delivery, mine.claim, attempt, at)
            if after == delivery:
                return delivery
            writes = [Write(delivery, after, version)]
            judged = hook and machine.judged(hook, after, attempt, at)
            if judged != hook:
                told = None if judged.active else off(judged, at)
                writes.append(Write(hook, judged, hook_version, told))
            if await self.store.commit(*writes):
                return after

    # ---- giving up

    async def _drop(self, lane: Lane) -> None:
        """End whatever waits for a webhook that is switched off or gone."""
        gone = await self.store.find(Webhook, lane.webhook_id) is None
        while ids := await self.store.ids(Delivery, "due", lane.webhook_id, limit=DROPPED_AT_ONCE):
            found = await self.store.load_many(Delivery, ids)
            at = self.clock()
            for delivery, version in found:
                after = None if gone else machine.dropped(delivery, "the webhook is not active", at)
                await self.store.commit(Write(delivery, after, version))
        if not lane.flying:
            self.lanes.pop(lane.webhook_id, None)

    async def disable(self, webhook_id: str, reason: str) -> None:
        """Switch a webhook off."""
        at = self.clock()
        await self.store.change(
            Webhook, webhook_id, lambda hook: machine.disabled(hook, reason, at) if hook.active else hook,
            lambda _, hook: off(hook, at),
        )  # fmt: skip


def off(hook: Webhook, at: datetime) -> Event:
    """The event of a webhook that the village has switched off."""
    return events.changed(hook, at, kind="webhook.disabled", reason=hook.disabled_reason)
