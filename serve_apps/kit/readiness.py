"""Readiness: every part is asked, with a time-out, and at most once a second however often we are asked."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from cluster.clock import Clock, utc_now
from cluster.presence import Presence
from cluster.store import Store

Probe = Callable[[], Awaitable[object]]  # raises, or returns something false, where the part is not ready

TIMEOUT_SECONDS = 2.0
FRESH_SECONDS = 1.0


def heartbeat(store: Store, name: str, clock: Clock = utc_now) -> Probe:
    """Whether the part `name` gave a sign of life lately."""

    async def probe() -> bool:
        found = await store.find(Presence, name)
        return found is not None and found.alive(clock())

    return probe


def reachable(store: Store) -> Probe:
    """Whether the store answers."""

    async def probe() -> bool:
        await store.ping()
        return True

    return probe


class Readiness:
    """What the village needs to be ready, by name."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self.probes = dict(probes)
        self._asked = -FRESH_SECONDS
        self._checks: dict[str, bool] = {}
        self._one_at_a_time = asyncio.Lock()

    async def checks(self) -> dict[str, bool]:
        """Name -> ready, at most `FRESH_SECONDS` old."""
        now = asyncio.get_running_loop().time
        async with self._one_at_a_time:
            if now() - self._asked >= FRESH_SECONDS:
                answers = await asyncio.gather(*(self._ask(probe) for probe in self.probes.values()))
                self._checks = dict(zip(self.probes, answers, strict=True))
                self._asked = now()
        return self._checks

    async def _ask(self, probe: Probe) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return bool(await probe())
        except Exception:  # whatever it is, the part is not ready
            return False
