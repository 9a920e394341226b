"""The dispatcher: reads the stream, records a delivery for each webhook that wants an event, and has it sent.

Killed anywhere, it goes on from its cursor; a delivery's id follows from the webhook and the event, so what was
recorded before is not recorded again. Several at once do the same work twice and no more.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import to_json

from cluster.clock import Clock, utc_now
from cluster.egress import Egress
from cluster.errors import Invalid, Unavailable
from cluster.events import Event
from cluster.events.cursor import keep_place, place_of
from cluster.events.model import START
from cluster.presence import BEAT_SECONDS, beat
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.tasks.model import Task
from cluster.webhooks import catalogue, machine
from cluster.webhooks.book import Book
from cluster.webhooks.model import Delivery, DeliveryState, Webhook, delivery_id
from cluster.webhooks.sender import Sender, log

AT_ONCE = 100  # deliveries written, or removed, in one commit
RELOAD_SECONDS = 30.0  # how soon whatever no event tells of is seen: an expired key, another dispatcher's lost lease
SWEEP_SECONDS = 60.0
KEEP, KEEP_FOR = 1000, timedelta(days=30)  # of a webhook's deliveries: as many that worked, and as many that failed
RESULT_BYTES = 32 << 10  # a longer result is not sent along


class Dispatcher:
    """See the module. `run` returns only when it is cancelled."""

    NAME = "webhooks"

    def __init__(self, store: Store, egress: Egress, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self.book = Book(store, clock)
        self.sender = Sender(store, egress, self.book, clock)
        self.cursor = self.kept = START
        self.loaded = -RELOAD_SECONDS
        self.recorded = 0

    async def run(self) -> None:
        """Read, send, keep time and sweep for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self.sender.run())
                group.create_task(self._beat())
                group.create_task(self._sweep())
        finally:
            await self.sender.aside.close()  # here, since the reader may have begun something after the sender ended

    # ---- reading

    async def open(self) -> None:
        """Find the place where the last one stopped."""
        self.cursor = self.kept = await place_of(self.store, self.NAME)
        await self.reload()

    async def reload(self) -> None:
        """Read all webhooks anew, and wake those for which something waits."""
        await self.book.load()
        hooks = list(self.book.hooks)
        waiting = await self.store.counts(Delivery, "due", [(webhook_id,) for webhook_id in hooks])
        for webhook_id, count in zip(hooks, waiting, strict=True):
            lane = self.sender.lanes.get(webhook_id)
            if reason := machine.overrun(count, lane.streak if lane else 0):
                await self.sender.disable(webhook_id, reason)
            elif count:
                self.sender.wake(webhook_id)
        self.loaded = asyncio.get_running_loop().time()

    async def _read(self) -> None:
        opened = False
        while True:
            try:
                if not opened:
                    await self.open()
                    opened = True
                if asyncio.get_running_loop().time() - self.loaded >= RELOAD_SECONDS:
                    await self.reload()
                await self.step()
            except Unavailable:
                opened = False
                await asyncio.sleep(0.2)

    async def step(self, wait_seconds: float = BEAT_SECONDS) -> bool:
        """Read one batch and record what is wanted of it; whether there was one."""
        batch, after = await self.store.batch(self.cursor, self.book.kinds, wait_seconds=wait_seconds)
        wanted: list[Delivery] = []
        for event in batch:
            kinds = self.book.kinds
            for webhook_id in await self.book.observe(event):
                if event.kind == "webhook.deleted":
                    wanted = [delivery for delivery in wanted if delivery.webhook_id != webhook_id]
                    await self._forget(webhook_id)
                self.sender.wake(webhook_id)
            wanted += [due(hook, event, self.clock()) for hook in self.book.wanting(event)]
            if not self.book.kinds <= kinds:  # what was passed over behind it may be wanted now
                after = event.event_id
                break
        await self._add_results(wanted)
        for start in range(0, len(wanted), AT_ONCE):
            await self._record(wanted[start : start + AT_ONCE])
        read, self.cursor = after != self.cursor, after
        if wanted:  # what nobody wanted is cheap to read again; the next beat notes it
            await self._keep_place()
        return read

    async def _add_results(self, wanted: list[Delivery]) -> None:
        """A completed task's result goes along, where it is not too long: the stream does not hold it."""
        of = {d.data.get("task_id", "") for d in wanted if d.event == "task.completed"}
        tasks = {task.task_id: task for task in await self.store.many(Task, sorted(of))}
        for index, delivery in enumerate(wanted):
            task = tasks.get(delivery.data.get("task_id", "")) if delivery.event == "task.completed" else None
            if task is not None:
                fits = len(to_json(task.result_data)) <= RESULT_BYTES
                more: dict[str, Any] = {"result_data": task.result_data if fits else None}
                more |= {} if fits else {"result_omitted": True}
                wanted[index] = delivery.model_copy(update={"data": delivery.data | more})

    async def _record(self, deliveries: Sequence[Delivery]) -> None:
        if not await self._written(deliveries):
            # Read before and killed before the cursor was kept, or another dispatcher reads, too.
            for delivery in deliveries:
                await self._written([delivery])
        self.recorded += len(deliveries)
        for webhook_id in {delivery.webhook_id for delivery in deliveries}:
            self.sender.wake(webhook_id)

    async def _written(self, deliveries: Sequence[Delivery]) -> bool:
        try:
            return await self.store.commit(*(Write(None, delivery) for delivery in deliveries))
        except Invalid:
            if len(deliveries) == 1:  # nothing that one event holds may stop all those after it
                log.exception("%s cannot be recorded", deliveries[0].delivery_id)
            return False

    async def _keep_place(self) -> None:
        if self.cursor != self.kept:
            await keep_place(self.store, self.NAME, self.cursor)
            self.kept = self.cursor

    async def _beat(self) -> None:
        while True:
            data = self.sender.counts | {
                "cursor": self.cursor, "webhooks": len(self.book.hooks), "recorded": self.recorded,
                "in_flight": sum(lane.flying for lane in self.sender.lanes.values()),
            }  # fmt: skip
            try:
                await self._keep_place()
                await beat(self.store, self.NAME, self.clock(), data)
            except Unavailable:
                log.warning("the store does not answer")
            await asyncio.sleep(BEAT_SECONDS)

    # ---- sweeping

    async def _sweep(self) -> None:
        rounds = 0
        while True:
            try:
                busy = [lane.webhook_id for lane in self.sender.lanes.values() if lane.finished > KEEP // 4]
                # The busy ones each time; all of them, switched off or not, now and then.
                every = await self.store.ids(Webhook, "list", "all") if rounds % 60 == 0 else busy
                for webhook_id in every:
                    await self.sweep(webhook_id)
                rounds += 1
            except Unavailable:
                log.warning("the store does not answer")
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self, webhook_id: str) -> None:
        """Remove finished deliveries that are too old or too many. What is still to be sent stays."""
        if lane := self.sender.lanes.get(webhook_id):
            lane.finished = 0
        oldest = (self.clock() - KEEP_FOR).timestamp()
        for state in (DeliveryState.DELIVERED, DeliveryState.FAILED):
            too_many = await self.store.count(Delivery, "list", webhook_id, state) - KEEP
            ids = await self.store.ids(Delivery, "list", webhook_id, state, limit=max(too_many, 0))
            ids += await self.store.ids(Delivery, "list", webhook_id, state, high=oldest)
            await self._remove(list(dict.fromkeys(ids)), state)

    async def _forget(self, webhook_id: str) -> None:
        """Remove every delivery of a webhook that is gone."""
        await self._remove(await self.store.ids(Delivery, "list", webhook_id))

    async def _remove(self, ids: list[str], state: DeliveryState | None = None) -> None:
        for start in range(0, len(ids), AT_ONCE):
            found = await self.store.load_many(Delivery, ids[start : start + AT_ONCE])
            writes = [Write(delivery, None, version) for delivery, version in found if state in (None, delivery.state)]
            if writes and not await self.store.commit(*writes):
                for write in writes:
                    await self.store.commit(write)


def due(hook: Webhook, event: Event, at: datetime) -> Delivery:
    """The delivery of an event of the stream, to be sent at once."""
    return Delivery(
        delivery_id=delivery_id(hook.webhook_id, event.event_id), webhook_id=hook.webhook_id,
        event=catalogue.NAMES[event.kind], event_id=event.event_id, data=event.data,
        traceparent=event.origin.traceparent if event.origin else "", created_at=event.at, next_at=at,
    )  # fmt: skip


async def dispatch(store: Store, settings: Settings) -> None:
    """The loop that the village runs."""
    egress = Egress(public_only=settings.profile == "production")
    try:
        await Dispatcher(store, egress).run()
    finally:
        await egress.close()
