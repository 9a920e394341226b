"""The tasks as the event stream tells them, in its order. Pure.

Every step is held against the table of `cluster.tasks.machine`, so what the store did under any number of writers has
to be something that the machine alone could have done.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from cluster.events import Event
from cluster.tasks.events import ENDED
from cluster.tasks.machine import NEXT, TaskEvent
from cluster.tasks.model import FINAL, HELD, Task, TaskState


@dataclass(frozen=True)
class Finding:
    """A promise that was broken."""

    promise: str
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.about}: {self.text}"


def _from(event: TaskEvent) -> frozenset[TaskState]:
    return frozenset(state for state, what in NEXT if what is event)


S, E = TaskState, TaskEvent
WAITING, AT_WORK = frozenset({S.PENDING}), frozenset({S.RUNNING})
# What each kind of event may come after, and where it leads. A retry is a failure or an expiry with tries left.
STEPS: dict[str, tuple[frozenset[TaskState], TaskState]] = {
    "task.assigned": (_from(E.ASSIGN), S.ASSIGNED), "task.started": (_from(E.START), S.RUNNING),
    "task.released": (_from(E.RELEASE), S.PENDING), "task.retry": (_from(E.FAIL) | _from(E.EXPIRE), S.PENDING),
    "task.ready": (WAITING, S.PENDING), "task.updated": (WAITING, S.PENDING),
    "task.accepted": (AT_WORK, S.RUNNING), "task.progress": (AT_WORK, S.RUNNING), "task.extended": (AT_WORK, S.RUNNING),
    "task.completed": (_from(E.FINISH), S.COMPLETED), "task.failed": (_from(E.FAIL), S.FAILED),
    "task.timeout": (_from(E.EXPIRE), S.TIMEOUT), "task.cancelled": (_from(E.CANCEL), S.CANCELLED),
}  # fmt: skip


@dataclass
class Story:
    """One task so far."""

    state: TaskState = TaskState.PENDING
    attempt: int = 0
    agent_id: str = ""
    retries: int = 0
    priority: int | None = None
    ends: int = 0


@dataclass
class Replay:
    """`rooms`: how many tasks each agent may hold. `after`: what must have completed before a task is given out.
    `verified`: tasks that no agent gets, since their replicas' agreement completes them.
    """

    rooms: Mapping[str, int]
    after: Mapping[str, Iterable[str]]
    verified: Collection[str] = ()
    stories: dict[str, Story] = field(default_factory=dict)
    held: dict[str, set[str]] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)  # at one time, by agent
    findings: list[Finding] = field(default_factory=list)

    def find(self, promise: str, about: str, text: str) -> None:
        """Note what is wrong."""
        self.findings.append(Finding(promise, about, text))

    def see(self, event: Event) -> None:
        """The next event of the stream."""
        if event.kind == "task.created":
            self._created(event)
        elif event.kind in STEPS:
            self._step(event)

    def _created(self, event: Event) -> None:
        if event.subject in self.stories:
            self.find("legal steps", event.subject, "was created twice")
        self.stories[event.subject] = Story()

    def _step(self, event: Event) -> None:
        task_id, data, story = event.subject, event.data, self.stories.get(event.subject)
        if story is None:
            self.find("legal steps", task_id, f"{event.kind} of a task that was never created")
            return
        before, to = STEPS[event.kind]
        if story.ends:
            if event.kind in ENDED.values():
                story.ends += 1
                self.find("one effective completion", task_id, f"{event.kind} after it was {story.state}")
            else:
                self.find("legal steps", task_id, f"{event.kind} after it was {story.state}")
            return
        if story.state not in before and not (event.kind == "task.completed" and task_id in self.verified):
            self.find("legal steps", task_id, f"{event.kind} of a task that was {story.state}")
        if data["status"] != to:
            self.find("legal steps", task_id, f"{event.kind} says {data['status']}")
        self._attempts(event, story)
        if event.kind == "task.assigned":
            self._take(event, story)
        elif to not in HELD:
            self._leave(task_id, story)
        story.retries += event.kind == "task.retry"
        story.state, story.ends = to, int(to in FINAL)

    def _attempts(self, event: Event, story: Story) -> None:
        wanted = story.attempt + (event.kind == "task.assigned")
        if event.data["attempt"] != wanted:
            self.find(
                "legal steps", event.subject, f"{event.kind} of attempt {event.data['attempt']}, where {wanted} is next"
            )
        story.attempt = event.data["attempt"]
        if event.kind != "task.assigned" and event.data["agent_id"] != story.agent_id:
            text = f"{event.kind} by {event.data['agent_id'] or 'nobody'}, but {story.agent_id or 'nobody'} has it"
            self.find("legal steps", event.subject, text)

    def _take(self, event: Event, story: Story) -> None:
        task_id, agent_id = event.subject, event.data["agent_id"]
        story.agent_id = agent_id
        held = self.held.setdefault(agent_id, set())
        held.add(task_id)
        self.most[agent_id] = max(len(held), self.most.get(agent_id, 0))
        if agent_id in self.rooms and len(held) > self.rooms[agent_id]:
            text = f"held {len(held)} tasks with {task_id}, and may hold {self.rooms[agent_id]}"
            self.find("no agent above its limit", agent_id, text)
        for name in self.after.get(task_id, ()):
            other = self.stories.get(name)
            if other is None or other.state is not TaskState.COMPLETED:
                state = "not there" if other is None else other.state
                self.find("dependencies and chains in order", task_id, f"given out while {name} was {state}")

    def _leave(self, task_id: str, story: Story) -> None:
        if story.agent_id:
            self.held[story.agent_id].discard(task_id)
            story.agent_id = ""


def replayed(
    events: Iterable[Event], rooms: Mapping[str, int], after: Mapping[str, Iterable[str]] | None = None,
    verified: Collection[str] = (),
) -> Replay:  # fmt: skip
    """All of them, one after the other."""
    replay = Replay(rooms, after or {}, verified)
    for event in events:
        replay.see(event)
    return replay


def agree(replay: Replay, tasks: Mapping[str, Task], held: Mapping[str, Iterable[str]]) -> list[Finding]:
    """What the records say at the end, against what the events told. `held`: the store's sets, by agent."""
    findings: list[Finding] = []
    for task_id in sorted(replay.stories.keys() | tasks.keys()):
        story, task = replay.stories.get(task_id), tasks.get(task_id)
        if story is None or task is None:
            what = "a record without events" if story is None else "events without a record"
            findings.append(Finding("records agree with events", task_id, what))
            continue
        told = (story.state, story.attempt, story.retries)
        kept = (task.state, task.attempt, task.retry_count)
        if told != kept:
            findings.append(Finding("records agree with events", task_id, f"told {told}, kept {kept}"))
    for agent_id in sorted(replay.held.keys() | held.keys()):
        told, kept = replay.held.get(agent_id, set()), set(held.get(agent_id, ()))
        if told != kept:
            text = f"holds {sorted(told)} by the events, {sorted(kept)} by its set"
            findings.append(Finding("no slot leaked", agent_id, text))
    return findings
