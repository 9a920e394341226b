"""Health: every part is asked at once, with a time-out, and at most once a second however often we are asked."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable, VillageError
from cluster.presence import LATE_SECONDS, Presence
from cluster.store import Store
from serve_apps.kit.fresh import Fresh

Probe = Callable[[], Awaitable[object]]  # raises, or returns something false, where the part is not ready

TIMEOUT_SECONDS = 2.0
SLOW_SECONDS = 0.5  # an answer that takes longer says that something is wrong
ESSENTIAL = frozenset({"redis", "router"})  # without one of these the village does nothing; without others, less


class State(StrEnum):
    """How a part fares."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # it answers, but late; of the village: a part of it is away
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True)
class Sign:
    """A sign of life that was found in the store; false where it is too old."""

    alive: bool
    age_seconds: float
    data: Mapping[str, Any]

    def __bool__(self) -> bool:
        return self.alive


@dataclass(frozen=True)
class Check:
    """What a probe found. `beat_age_seconds` is None for a part that is asked directly."""

    state: State
    seconds: float
    beat_age_seconds: float | None = None
    error: str = ""

    @property
    def ready(self) -> bool:
        """Whether the part can be counted on."""
        return self.state is not State.UNHEALTHY

    def told(self) -> dict[str, Any]:
        """As the health pages show it."""
        shown: dict[str, Any] = {"status": self.state, "latency_ms": round(self.seconds * 1000, 2)}
        if self.beat_age_seconds is not None:
            shown["last_beat_seconds"] = round(self.beat_age_seconds, 1)
        return shown | ({"error": self.error} if self.error else {})


def heartbeat(store: Store, name: str, clock: Clock = utc_now) -> Probe:
    """Whether the part `name` gave a sign of life lately."""

    async def probe() -> Sign:
        found, now = await store.find(Presence, name), clock()
        if found is None:
            raise Unavailable("no sign of life yet", component=name)
        return Sign(found.alive(now), (now - found.at).total_seconds(), found.data)

    return probe


def reachable(store: Store) -> Probe:
    """Whether the store answers."""

    async def probe() -> bool:
        await store.ping()
        return True

    return probe


def judged(answer: object, seconds: float) -> Check:
    """What an answer says of a part. Pure."""
    age = answer.age_seconds if isinstance(answer, Sign) else None
    if not answer:
        return Check(State.UNHEALTHY, seconds, age, "no sign of life lately" if age is not None else "not ready")
    late = seconds > SLOW_SECONDS or (age is not None and age > LATE_SECONDS)
    return Check(State.DEGRADED if late else State.HEALTHY, seconds, age)


def overall(checks: Mapping[str, Check]) -> State:
    """Of the village: unhealthy without a part that everything needs, degraded while any other is not healthy. Pure."""
    if any(not check.ready for name, check in checks.items() if name in ESSENTIAL):
        return State.UNHEALTHY
    return State.HEALTHY if all(c.state is State.HEALTHY for c in checks.values()) else State.DEGRADED


class Readiness:
    """What the village needs to be ready, by name."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self.probes = dict(probes)
        self._report = Fresh(self._ask_all)

    async def report(self) -> dict[str, Check]:
        """Each part's state, at most a second old."""
        return await self._report.get()

    async def checks(self) -> dict[str, bool]:
        """Name -> ready."""
        return {name: check.ready for name, check in (await self.report()).items()}

    async def _ask_all(self) -> dict[str, Check]:
        answers = await asyncio.gather(*(self._ask(probe) for probe in self.probes.values()))
        return dict(zip(self.probes, answers, strict=True))

    async def _ask(self, probe: Probe) -> Check:
        now = asyncio.get_running_loop().time
        begun = now()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                answer = await probe()
        except TimeoutError:
            return Check(State.UNHEALTHY, now() - begun, error=f"no answer within {TIMEOUT_SECONDS:g} s")
        except Exception as error:  # whatever it is, the part is not ready
            # The page is open to all: of an error that is not ours only its name, which holds no address.
            why = error.message if isinstance(error, VillageError) else type(error).__name__
            return Check(State.UNHEALTHY, now() - begun, error=why)
        return judged(answer, now() - begun)
