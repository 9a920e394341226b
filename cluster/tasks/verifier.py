"""The loop that has tasks verified: makes replicas, judges their results, ends the task. See `verification`.

Each step is one commit on the task and its replicas, whose ids follow from its own: killed anywhere, or with a twin, it
goes on, and no agent is blamed twice.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from cluster.clock import Clock, utc_now
from cluster.errors import Unavailable
from cluster.events import Event
from cluster.events.cursor import keep_place, place_of
from cluster.events.keeping import keep
from cluster.events.model import START
from cluster.presence import BEAT_SECONDS, beat
from cluster.settings import Settings
from cluster.store import Store, Write
from cluster.store.store import RACES
from cluster.tasks import machine
from cluster.tasks.events import changed
from cluster.tasks.machine import TaskEvent
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.tasks.verification import Agreed, Hopeless, More, Replica, Replication, judge, replica_id
from cluster.trust.ledger import Standing

log = logging.getLogger("village.verification")
MARKS = ('"parent_id":"task_', '"verified":')
TOGETHER = 16  # tasks that are looked at beside each other
OF_REPLICA = frozenset({"task.assigned", "task.completed", "task.failed", "task.cancelled", "task.timeout"})
OF_TASK = frozenset({"task.created", "task.ready", "task.updated", "task.cancelled"})
Versioned = tuple[Task, str]


class Verifier:
    """See the module."""

    NAME = "verification"

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self.store, self.clock = store, clock
        self.cursor = START
        self.settled = 0

    async def open(self) -> None:
        """Find the place where the last one stopped."""
        self.cursor = await place_of(self.store, self.NAME)

    async def step(self, wait_seconds: float = BEAT_SECONDS) -> int:
        """Read one batch and settle the tasks that it concerns; how many commits that took."""
        batch, after = await self.store.batch(self.cursor, OF_REPLICA | OF_TASK, wait_seconds=wait_seconds, marks=MARKS)
        concerned = list(dict.fromkeys(name for event in batch if (name := concerns(event))))
        done = 0
        for start in range(0, len(concerned), TOGETHER):
            done += sum(await asyncio.gather(*(self._try(name) for name in concerned[start : start + TOGETHER])))
        self.cursor = after
        if done:  # what concerned no verified task is cheap to read again; the next beat notes it
            await keep_place(self.store, self.NAME, self.cursor)
        return done

    async def _try(self, task_id: str) -> int:
        try:
            return await self._settle(task_id)
        except Unavailable:
            raise
        except Exception:  # nothing that one task holds may stop all the others
            log.exception("%s cannot be verified", task_id)
            return 0

    async def _settle(self, task_id: str) -> int:
        for _ in range(RACES):
            task, version = await self.store.load(Task, task_id)
            if task is None or task.verification is None:
                return 0
            ids = [replica_id(task_id, number) for number in range(1, task.verification.asked + 1)]
            replicas = await self.store.load_many(Task, ids)
            at = self.clock()
            agents = {replica.agent_id for replica, _ in replicas} - {""}
            standings = await self.store.many(Standing, sorted(agents))
            trust = {standing.standing_id: standing.score(at) for standing in standings}
            writes = settled((task, version), task.verification, replicas, trust, at)
            if not writes:
                return 0
            if await self.store.commit(*writes):
                self.settled += 1
                return 1
        log.error("%s and its replicas are changed by too many at once", task_id)  # their next event comes here again
        return 0

    async def beat(self) -> None:
        """Say that it lives, and how far it is."""
        await keep_place(self.store, self.NAME, self.cursor)
        await beat(self.store, self.NAME, self.clock(), {"cursor": self.cursor, "settled": self.settled})


def concerns(event: Event) -> str:
    """The id of the task that may be a verified one, and may go on; empty for an event that says nothing of one."""
    parent = event.data.get("parent_id", "")
    if event.kind in OF_REPLICA and parent.startswith("task_"):
        return parent
    if event.kind in OF_TASK and "place" not in event.data and not event.data.get("waiting"):
        return event.subject
    return ""


def settled(
    parent: Versioned, ask: Replication, replicas: Sequence[Versioned], trust: Mapping[str, float], at: datetime
) -> list[Write]:
    """What the state of the replicas means for the task and for them, as writes of one commit."""
    task, version = parent
    if task.state in FINAL:
        return [_cancelled(*one, f"{task.task_id} is {task.state}", at) for one in replicas if _live(one[0])]
    if task.state is not TaskState.PENDING or task.waiting_for:
        return []
    seen = [
        Replica(r.agent_id, r.state in FINAL, r.state is TaskState.COMPLETED, r.result_data) for r, _ in replicas
    ]  # fmt: skip
    match judge(ask, seen, trust):
        case Agreed(result, agents, against):
            outcome = ask.model_copy(update={"agreed": agents, "disagreed": against})
            after = machine.advance(task, TaskEvent.AGREE, at, result_data=result, verification=outcome)
            blamed = [r for r, _ in replicas if r.state is TaskState.COMPLETED and r.agent_id in against]
            first = {r.agent_id: r for r in reversed(blamed)}  # one line each, for the result that was its vote
            told = tuple(_disagreed(first[agent], len(agents), at) for agent in against)
            ended = Write(task, after, version, (changed(task, after), *told))
            return [
                ended,
                *(_cancelled(*one, "its result is not needed any more", at) for one in replicas if _live(one[0])),
            ]
        case Hopeless(reason):
            after = machine.advance(task, TaskEvent.FAIL, at, error=reason, reason=reason)
            return [Write(task, after, version, changed(task, after))]
        case More(excluded):
            number = ask.asked + 1
            child = _replica(task, number, excluded, at)
            after = task.model_copy(
                update={"verification": ask.model_copy(update={"asked": number}), "updated_at": at}
            )  # fmt: skip
            made = Write(None, child, event=changed(None, child))
            return [Write(task, after, version), made, *_kept_apart(task, replicas, at)]
        case _:
            return _kept_apart(task, replicas, at)


def _live(task: Task) -> bool:
    return task.state not in FINAL


def _replica(task: Task, number: int, excluded: Sequence[str], at: datetime) -> Task:
    # With the task's own time of creation, so that a later replica does not wait through the whole queue again.
    return task.model_copy(
        update={
            "task_id": replica_id(task.task_id, number), "parent_id": task.task_id, "verification": None,
            "depends_on": (), "excluded": tuple(dict.fromkeys((*task.excluded, *excluded))), "updated_at": at,
        }
    )  # fmt: skip


def _kept_apart(task: Task, replicas: Sequence[Versioned], at: datetime) -> list[Write]:
    """The replicas that still run or wait, if they came back: for no agent that has another, in the task's place."""
    writes = []
    for replica, version in replicas:
        if not _live(replica):
            continue
        others = [r.agent_id for r, _ in replicas if r.agent_id and r.task_id != replica.task_id]
        excluded = tuple(dict.fromkeys((*replica.excluded, *(name for name in others if name != replica.agent_id))))
        after = replica.model_copy(update={"excluded": excluded})
        event = None
        if replica.state is TaskState.PENDING and replica.priority != task.priority:
            after = after.model_copy(update={"priority": task.priority, "updated_at": at})
            event = changed(replica, after)
        if after != replica:
            writes.append(Write(replica, after, version, event))
    return writes


def _cancelled(replica: Task, version: str, reason: str, at: datetime) -> Write:
    after = machine.cancel(replica, reason, at)
    return Write(replica, after, version, changed(replica, after))


def _disagreed(replica: Task, others: int, at: datetime) -> Event:
    """For the ledger: its agent's result is not what the others agreed on."""
    data = {
        "task_id": replica.task_id, "parent_id": replica.parent_id, "client_id": replica.client_id,
        "task_type": replica.task_type, "status": replica.state, "capability": replica.capability_required,
        "agent_id": replica.agent_id, "attempt": replica.attempt, "outcome": "DISAGREED", "others": others,
    }  # fmt: skip
    return Event(kind="task.disagreed", subject=replica.task_id, owner=replica.owner, at=at, data=data)


async def verify_tasks(store: Store, settings: Settings) -> None:
    """The loop that the village runs."""
    await keep(Verifier(store))
