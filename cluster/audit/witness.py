"""What requests tell the audit log where no record changes: refusals, denials, and that an API key was used.

Told in the background and in bounded numbers: an answer never waits for it, and whoever is refused a thousand times a
second writes two entries a minute. A process that is killed loses what it had not yet published, at most the counts of
the last minute; the first refusal of each kind is on its way before its answer is.
"""

import asyncio
import ipaddress
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextvars import Context
from dataclasses import dataclass

from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable
from cluster.events import Event
from cluster.origin import Origin
from cluster.store import Store

log = logging.getLogger("village.audit")
WINDOW_SECONDS = 60.0
MOST = 500  # of one kind that are told apart within a window
WAITING = 5000  # events that wait for a store that does not answer
AGAIN_SECONDS = 1.0
CLOSING_SECONDS = 2.0


@dataclass(slots=True)
class Repeated:
    """An event that was told, until when its like is only counted, and how many came."""

    event: Event
    until: float
    again: int = 0


class Collapse:
    """Lets one of each key through in a window, and counts the rest. Pure: the caller brings the time."""

    def __init__(self) -> None:
        self._told: dict[Hashable, Repeated] = {}  # in the order of `until`

    def suppressed(self, key: Hashable, now: float) -> bool:
        """Whether its like was told in this window; then it is counted."""
        told = self._told.get(key)
        if told is None or now >= told.until:
            return False
        told.again += 1
        return True

    def tell(self, key: Hashable, event: Event, now: float) -> None:
        """Begin a window with this event."""
        self._told[key] = Repeated(event, now + WINDOW_SECONDS)

    def full(self) -> bool:
        """Whether no further key is to be told apart."""
        return len(self._told) >= MOST

    def over(self, now: float) -> list[Repeated]:
        """Those whose window has ended; they are forgotten."""
        ended = []
        for key, told in self._told.items():
            if now < told.until:
                break
            ended.append(key)
        return [self._told.pop(key) for key in ended]


class Witness:
    """The gateway's side of the audit log: every method returns at once and raises nothing."""

    def __init__(self, store: Store, clock: Clock = utc_now, ticks: Callable[[], float] = time.monotonic) -> None:
        self.store, self.clock, self.ticks = store, clock, ticks
        self.lost = 0  # events that found no room
        self._kinds = {kind: Collapse() for kind in ("access.denied", "access.refused", "key.used")}
        self._waiting: deque[Event] = deque()
        self._publishing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def denied(self, origin: Origin, owner: str, endpoint: str, scope: str = "") -> None:
        """A good credential that may not do this. `endpoint` is the route's template."""
        key = (origin.principal_id, origin.method, endpoint)
        self._tell(
            "access.denied", key, origin, origin.principal_id, owner, endpoint, {"scope": scope} if scope else {}
        )

    def refused(self, origin: Origin, endpoint: str, reason: str) -> None:
        """A credential that is not good, or no longer."""
        key = (neighbourhood(origin.address), origin.method, endpoint)
        self._tell("access.refused", key, origin, origin.address, "", endpoint, {"reason": reason})

    def key_used(self, origin: Origin, owner: str, endpoint: str) -> None:
        """An API key opened something: told once a window for each endpoint and address; how often is `Usage`'s."""
        key = (origin.principal_id, origin.method, endpoint, origin.address)
        self._tell("key.used", key, origin, origin.principal_id, owner, endpoint, {})

    def _tell(
        self, kind: str, key: Hashable, origin: Origin, subject: str, owner: str, endpoint: str, data: dict[str, str]
    ) -> None:
        now, seen = self.ticks(), self._kinds[kind]
        if seen.suppressed(key, now):
            return
        self._end_windows(now)
        if seen.full():
            # More than anybody reads one by one: the rest of the window is one entry without names.
            key, subject, owner, data = "others", "", "", {"reason": "too many to tell apart"}
            endpoint, origin = "", Origin()
            if seen.suppressed(key, now):
                return
        told = {"endpoint": endpoint, "method": origin.method} | data
        event = Event(kind=kind, subject=subject, owner=owner, at=self.clock(), data=told, origin=origin)
        seen.tell(key, event, now)
        self._publish(event)
        if self._timer is None:
            # Not in the request's context: what goes along with its changes must not go along with this.
            self._timer = asyncio.get_running_loop().call_later(WINDOW_SECONDS, self._turn, context=Context())

    def _turn(self) -> None:
        self._end_windows(self.ticks())
        self._timer = asyncio.get_running_loop().call_later(WINDOW_SECONDS / 4, self._turn)

    def _end_windows(self, now: float) -> None:
        for kind, seen in self._kinds.items():
            for told in seen.over(now):
                if told.again and kind != "key.used":
                    data = told.event.data | {"count": told.again}
                    self._publish(told.event.model_copy(update={"at": self.clock(), "data": data}))

    def _publish(self, event: Event) -> None:
        if len(self._waiting) >= WAITING:
            self.lost += 1
            return
        self._waiting.append(event)
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.get_running_loop().create_task(self._drain(), context=Context())

    async def _drain(self) -> None:
        while self._waiting:
            try:
                await self.store.publish(self._waiting[0])
            except Unavailable:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            except Exception:
                log.exception("an event of the audit log could not be published")
                self.lost += 1
            self._waiting.popleft()

    async def settled(self) -> None:
        """Return once everything told so far is published."""
        if self._publishing is not None:
            await self._publishing

    async def close(self) -> None:
        """Publish what was only counted, as far as the store answers."""
        if self._timer is not None:
            self._timer.cancel()
        self._end_windows(self.ticks() + WINDOW_SECONDS)
        if self._publishing is not None:
            done, _ = await asyncio.wait([self._publishing], timeout=CLOSING_SECONDS)
            if not done:
                self._publishing.cancel()


def neighbourhood(address: str) -> str:
    """The address, or the network that one caller has all of: an IPv6 host may take any address of its /64."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False).network_address)
