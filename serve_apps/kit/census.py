"""What is true of the whole village, counted in the store when somebody scrapes: not summed over replicas.

The store is asked at most once a second and for at most `PATIENCE_SECONDS`. While it is away these families are absent,
`village_store_up` is 0, and the rest of `/metrics` is as ever.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from cluster.clock import Clock
from cluster.events.cursor import Cursor
from cluster.events.model import START, order
from cluster.presence import Presence
from cluster.store import Store
from cluster.store.gauge import events_kept, up_to
from cluster.tasks.model import Task, TaskState
from cluster.trust.ledger import Standing
from cluster.workers.model import Agent
from serve_apps.kit.fresh import Fresh
from serve_apps.kit.metrics import Metrics
from serve_apps.kit.readiness import Check
from train.runs import Run, RunState

PATIENCE_SECONDS = 2.0
TRUST_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
UNKNOWN_TRUST = 0.5  # where an agent without a record stands
AGENT_STATES = ("active", "inactive")
# Of what parts tell with their sign of life: part, its word, the metric.
TOLD_COUNTERS = (
    ("router", "assigned", "village_router_assigned", "Tasks that the router has given to agents"),
    ("ledger", "counted", "village_ledger_records", "Outcomes that the trust ledger has counted"),
    ("audit", "written", "village_audit_entries", "Entries that the audit log has gained"),
    ("webhooks", "attempts", "village_webhook_attempts", "Calls of webhooks' receivers"),
)
TOLD_GAUGES = (
    ("router", "delivering", "village_router_deliveries", "Tasks that wait for their agent's answer"),
    ("webhooks", "in_flight", "village_webhook_deliveries_in_flight", "Deliveries of webhooks on their way now"),
)
OUTCOMES = ("delivered", "failed")


class Census:
    """The village's own families."""

    def __init__(self, store: Store, metrics: Metrics, clock: Clock) -> None:
        self.store, self.metrics, self.clock = store, metrics, clock
        self._fresh = Fresh(self._count)

    async def families(self) -> list[Metric]:
        """The families, at most a second old; `village_store_up` alone where the store does not answer in time."""
        return await self._fresh.get()

    async def _count(self) -> list[Metric]:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                ping = await self.store.ping()
                groups = await asyncio.gather(
                    self._tasks(), self._agents(), self._training(), self._events(), self._told()
                )
        except Exception:  # whatever it is, the process's own numbers are to be had
            self.metrics.scrape_errors.inc()
            return [gauge("village_store_up", "Whether the store answered this scrape", 0)]
        return [
            gauge("village_store_up", "Whether the store answered this scrape", 1),
            gauge("village_store_ping_seconds", "One round trip to the store", ping),
            *(family for group in groups for family in group),
        ]

    async def _tasks(self) -> list[Metric]:
        states = list(TaskState)
        counts, (waiting,), (delayed,), oldest = await asyncio.gather(
            self.store.counts(Task, "list", [("all", state) for state in states]),
            self.store.counts(Task, "waiting", [()]),
            self.store.counts(Task, "delayed", [()]),
            self.store.page(Task, "list", "all", TaskState.PENDING, limit=1, newest_first=False),
        )
        by_state = dict(zip(states, counts, strict=True))
        ready = max(0, by_state[TaskState.PENDING] - waiting - delayed)
        begun = oldest.items[0].created_at if oldest.items else None
        return [
            gauges("village_tasks", "Tasks kept, by state", "state", by_state),
            gauges(
                "village_task_queue", "Tasks that wait: for an agent, for others they depend on, for their next try",
                "reason", {"agent": ready, "dependency": waiting, "retry": delayed},
            ),
            gauge(
                "village_task_queue_oldest_seconds", "Age of the task that waits longest; 0 when none does",
                age(begun, self.clock()),
            ),
        ]  # fmt: skip

    async def _agents(self) -> list[Metric]:
        counts, below, known = await asyncio.gather(
            self.store.counts(Agent, "list", [("status", status) for status in AGENT_STATES] + [("all",)]),
            up_to(self.store, Standing, "score", TRUST_BOUNDS),
            self.store.count(Standing, "score"),
        )
        return [
            gauges("village_agents", "Agents, by status", "status", dict(zip(AGENT_STATES, counts, strict=False))),
            trust_histogram(below, known, max(0, counts[-1] - known)),
        ]

    async def _training(self) -> list[Metric]:
        states = list(RunState)
        counts, unfinished = await asyncio.gather(
            self.store.counts(Run, "created", [("all", state) for state in states]),
            self.store.ids(Run, "unfinished"),
        )
        by_state = dict(zip(states, counts, strict=True))
        runs = [run for run in await self.store.many(Run, unfinished) if run.state is RunState.RUNNING]
        return [
            gauges("village_training_runs", "Training runs kept, by state", "state", by_state),
            gauges("village_training_steps", "Steps that the runs now running have done", "phase",
                   added((run.phase, run.step) for run in runs)),
            gauges("village_training_planned_steps", "Steps that the runs now running will have", "phase",
                   added((run.phase, run.total_steps) for run in runs)),
            gauges("village_training_tokens_per_second", "As the runs now running last reported", "phase",
                   added((run.phase, run.metrics.get("tokens_per_second", 0.0)) for run in runs)),
        ]  # fmt: skip

    async def _events(self) -> list[Metric]:
        kept, last, cursors = await asyncio.gather(
            events_kept(self.store), self.store.last_event_id(), self.store.page(Cursor, "all", limit=100)
        )
        places = {cursor.cursor_id: cursor.event_id for cursor in cursors.items}
        if START in places.values():  # whoever has read nothing yet is as far behind as the stream is long
            first = await self.store.events(limit=1)
            places = {name: first[0].event_id if first and at == START else at for name, at in places.items()}
        lags = {name: lag(at, last) for name, at in places.items()}
        return [
            gauge("village_events", "Events that the stream keeps", kept),
            gauges(
                "village_events_reader_lag_seconds", "How much older than the newest event a reader's last one is",
                "reader", lags,
            ),
        ]  # fmt: skip

    async def _told(self) -> list[Metric]:
        names = sorted({part for part, *_ in (*TOLD_COUNTERS, *TOLD_GAUGES)})
        parts = {found.presence_id: found.data for found in await self.store.many(Presence, names)}
        found: list[Metric] = []
        for part, word, name, documentation in TOLD_COUNTERS:
            if word in parts.get(part, {}):
                found.append(CounterMetricFamily(name, documentation, parts[part][word]))
        for part, word, name, documentation in TOLD_GAUGES:
            if word in parts.get(part, {}):
                found.append(gauge(name, documentation, parts[part][word]))
        if "webhooks" in parts:
            deliveries = CounterMetricFamily(
                "village_webhook_deliveries", "Deliveries that ended, by outcome", labels=("outcome",)
            )
            for outcome in OUTCOMES:
                deliveries.add_metric((outcome,), parts["webhooks"].get(outcome, 0))
            found.append(deliveries)
        return found


def components(report: Mapping[str, Check]) -> list[Metric]:
    """The health report as metrics. Pure."""
    ages = {name: check.beat_age_seconds for name, check in report.items()}
    return [
        gauges("village_component_up", "Whether a part answered, or gave a sign of life lately", "component",
               {name: float(check.ready) for name, check in report.items()}),
        gauges("village_component_beat_age_seconds", "Age of a part's last sign of life", "component",
               {name: seconds for name, seconds in ages.items() if seconds is not None}),
    ]  # fmt: skip


def trust_histogram(below: Sequence[int], known: int, strangers: int) -> Metric:
    """How many agents stand at or below each bound, as of their last record: evidence fades after. Pure."""
    counts = [
        count + (strangers if bound >= UNKNOWN_TRUST else 0) for bound, count in zip(TRUST_BOUNDS, below, strict=True)
    ]
    family = HistogramMetricFamily("village_agent_trust", "Trust scores of the agents, as of each one's last record")
    buckets = [(floatToGoString(bound), count) for bound, count in zip(TRUST_BOUNDS, counts, strict=True)]
    # Without a sum: it is not known, and a distribution of now has no use for one.
    family.add_metric((), [*buckets, ("+Inf", known + strangers)], None)
    return family


def age(since: datetime | None, now: datetime) -> float:
    """Seconds since then; 0 where there is no then. Pure."""
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0


def lag(read: str, last: str) -> float:
    """Seconds by which the event `read` is older than the event `last`. Pure."""
    return max(0.0, (order(last)[0] - order(read)[0]) / 1000)


def added(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The sum for each name. Pure."""
    sums: dict[str, float] = {}
    for name, value in pairs:
        sums[name] = sums.get(name, 0.0) + value
    return sums


def gauge(name: str, documentation: str, value: float) -> Metric:
    """A family of one."""
    return GaugeMetricFamily(name, documentation, value)


def gauges(name: str, documentation: str, label: str, values: Mapping[Any, float]) -> Metric:
    """A family by one label."""
    family = GaugeMetricFamily(name, documentation, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), number)
    return family
