"""What a seed stands for: the load, the faults, and how each attempt of each task goes. Pure: one seed, one plan."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

POOL = "pool"
CAPABILITIES = ("push:v1", "pull:v1", "pool:v1", "any:v1")
STRATEGIES = ("round_robin", "least_loaded", "trust_weighted", "fastest_response")
CLIENTS = ("ann", "ben", "cyd")
CHAIN_NUMBERS, SCHEDULE_NUMBERS = 10_000, 20_000  # steps and runs count from here, tasks from 0


@dataclass(frozen=True)
class Size:
    """How long the faults last, how many tasks come meanwhile, and for how long something is stopped at the most."""

    seconds: float = 5.0
    tasks: int = 120
    pause_seconds: float = 3.0


@dataclass(frozen=True)
class AgentPlan:
    """Who takes tasks: `way` is "push", "pull" or "pool"."""

    name: str
    way: str
    room: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class TaskPlan:
    """A task, submitted `at` so many seconds. Those of one `batch` go in one commit."""

    number: int
    at: float
    batch: int
    client: str
    spec: dict[str, Any]
    after: tuple[int, ...] = ()  # numbers of earlier tasks
    cancel_after: float | None = None


@dataclass(frozen=True)
class ChainPlan:
    """A chain of so many steps."""

    number: int
    at: float
    client: str
    steps: tuple[str, ...]  # capabilities


@dataclass(frozen=True)
class SchedulePlan:
    """A schedule whose first run is due so many seconds after it is made."""

    number: int
    at: float
    client: str
    due_after: float


@dataclass(frozen=True)
class Fault:
    """What happens to whom. `value`: seconds until its next start, of a stop, of a clock's step, of a second one."""

    at: float
    what: str  # "kill", "stop", "clock", "twin", "redis kill", "redis stop"
    part: str
    value: float


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn from a seed."""

    seed: int
    size: Size
    agents: tuple[AgentPlan, ...]
    tasks: tuple[TaskPlan, ...]
    chains: tuple[ChainPlan, ...]
    schedules: tuple[SchedulePlan, ...]
    faults: tuple[Fault, ...]

    def as_json(self) -> dict[str, Any]:
        """For a person who reads what a seed did."""
        return asdict(self)


def drawn(seed: int, size: Size) -> Plan:
    """The plan of a seed."""
    chance = random.Random(f"{seed}/{size}")
    agents = _agents(chance)
    return Plan(
        seed, size, agents, _tasks(chance, size), _chains(chance, size), _schedules(chance, size),
        _faults(chance, size, agents),
    )  # fmt: skip


def _agents(chance: random.Random) -> tuple[AgentPlan, ...]:
    pushed = [
        AgentPlan(f"push-{n}", "push", chance.randint(1, 6), ("push:v1", "any:v1")) for n in range(chance.randint(1, 3))
    ]
    pulling = [
        AgentPlan(f"pull-{n}", "pull", chance.randint(1, 4), ("pull:v1", "any:v1")) for n in range(chance.randint(1, 2))
    ]
    return (*pushed, *pulling, AgentPlan(POOL, "pool", chance.choice([2, 16, 64]), ("pool:v1", "any:v1")))


def workers(plan: Plan) -> int:
    """How many workers the village's pool has."""
    return 1 + plan.seed % 2


def _tasks(chance: random.Random, size: Size) -> tuple[TaskPlan, ...]:
    made: list[TaskPlan] = []
    batch, at = 0, 0.0
    while len(made) < size.tasks:
        batch += 1
        client = chance.choice(CLIENTS)
        together = min(chance.choice([1, 1, 1, 2, 8]), size.tasks - len(made))
        at += chance.expovariate(1) * size.seconds * 0.9 * together / size.tasks
        theirs = [task.number for task in made if task.client == client][-20:]  # another's is no dependency
        for _ in range(together):
            cancel_after = chance.uniform(0, 2) if chance.random() < 0.06 else None
            after = chance.sample(theirs, min(len(theirs), chance.choice([1, 1, 2]))) if chance.random() < 0.15 else []
            spec, when = _spec(chance, len(made), client), min(at, size.seconds)
            made.append(TaskPlan(len(made), when, batch, client, spec, tuple(sorted(after)), cancel_after))
    return tuple(made)


def _spec(chance: random.Random, number: int, client: str) -> dict[str, Any]:
    capability = chance.choice(CAPABILITIES)
    # A short timeout mends whatever goes wrong. These have none to speak of, and no agent that makes them need one.
    patient = capability in ("push:v1", "pool:v1") and chance.random() < 0.5
    spec: dict[str, Any] = {
        "client_id": client, "task_type": "torture", "capability_required": capability,
        "input_data": {"n": number, "patient": patient}, "priority": chance.choice([1, 5, 5, 5, 9]),
        "timeout_seconds": 300 if patient else chance.choice([1, 2, 2, 3]), "max_retries": chance.choice([0, 1, 1, 2]),
        "heartbeat_seconds": 0 if patient else chance.choice([0, 0, 0, 1]),
        "routing_strategy": chance.choice(STRATEGIES),
    }  # fmt: skip
    if capability == "any:v1" and chance.random() < 0.2:
        spec["verification"] = {"replicas": 2, "comparator": "json_subset", "fields": ["n"]}
    return spec


def _chains(chance: random.Random, size: Size) -> tuple[ChainPlan, ...]:
    return tuple(
        ChainPlan(
            CHAIN_NUMBERS + n * 100, chance.uniform(0, size.seconds * 0.6), chance.choice(CLIENTS),
            tuple(chance.choice(CAPABILITIES) for _ in range(chance.randint(2, 4))),
        )
        for n in range(chance.randint(2, 5))
    )  # fmt: skip


def _schedules(chance: random.Random, size: Size) -> tuple[SchedulePlan, ...]:
    return tuple(
        SchedulePlan(
            SCHEDULE_NUMBERS + n, chance.uniform(0, size.seconds * 0.4), chance.choice(CLIENTS),
            chance.uniform(0.2, size.seconds * 0.5),
        )
        for n in range(chance.randint(2, 5))
    )  # fmt: skip


def _faults(chance: random.Random, size: Size, agents: tuple[AgentPlan, ...]) -> tuple[Fault, ...]:
    outside = [agent.name for agent in agents if agent.way != "pool"]
    own = ["router", "router", "ledger", "stream", "gate-0", "gate-1", "worker-0", "worker-0"]
    made: list[Fault] = []
    at = 0.3
    while at < size.seconds:
        what = chance.choices(["kill", "stop", "clock", "twin", "redis kill", "redis stop"], [10, 4, 3, 3, 2, 1])[0]
        if what == "kill":
            made.append(Fault(at, what, chance.choice([*own, *outside]), chance.uniform(0, 1)))
        elif what == "stop":
            part = chance.choice([*own, *outside])
            made.append(Fault(at, what, part, chance.uniform(0.2, size.pause_seconds)))
        elif what == "clock":
            step = chance.choice([-1, 1]) * chance.uniform(0.5, size.pause_seconds)
            made.append(Fault(at, what, chance.choice(["router", "ledger", "stream", "gate-0", "worker-0"]), step))
        elif what == "twin":
            part = chance.choice(["router", "router", "ledger", "stream"])
            made.append(Fault(at, what, part, chance.uniform(0.5, size.pause_seconds)))
        elif what == "redis kill":
            made.append(Fault(at, what, "redis", chance.uniform(0, 0.5)))
        else:
            made.append(Fault(at, what, "redis", chance.uniform(0.5, size.pause_seconds)))
        at += chance.expovariate(2.0)
    return tuple(made)


@dataclass(frozen=True)
class Conduct:
    """How an agent goes about one attempt: `what`, and for how many seconds."""

    what: str
    seconds: float


WELL = {
    "push": (("done", 10), ("slow", 4)), "pull": (("done", 10), ("slow", 4)), "pool": (("done", 40), ("slow", 2))
}  # fmt: skip
# By way. "lie": another result than everybody's. "late": after the try's time. "twice": reports it twice. "both":
# answers, and reports as well.
BADLY = {
    "push": (
        ("fail", 2), ("lie", 1), ("report", 5), ("twice", 2), ("late", 1), ("never", 1), ("both", 2), ("error", 1),
        ("garbage", 1), ("silent", 1), ("busy", 1), ("cut", 1),
    ),
    "pull": (("fail", 2), ("lie", 1), ("twice", 2), ("late", 1), ("never", 1), ("progress", 2)),
    "pool": (("fail", 2), ("lie", 1), ("die", 1), ("long", 1), ("unsayable", 1), ("progress", 2)),
}  # fmt: skip
ENDS = frozenset({"done", "slow", "fail", "lie", "error", "garbage", "busy", "cut", "die", "unsayable", "progress"})


def conduct(seed: int, way: str, input_data: Mapping[str, Any], attempt: int, *, well: bool = False) -> Conduct:
    """How the attempt goes; `well` once the faults are over."""
    if well:
        return Conduct("done", 0.0)
    chance = random.Random(f"{seed}/{way}/{input_data['n']}/{attempt}")
    kinds = [(kind, weight) for kind, weight in WELL[way] + BADLY[way] if kind in ENDS or not input_data.get("patient")]
    what = chance.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
    if what != "done":
        return Conduct(what, chance.uniform(0.05, 0.6))
    # The village's own workers take many that are short at once, which is worth a fault as well.
    return Conduct(what, chance.uniform(0.0, 0.002) if way == "pool" else chance.uniform(0.005, 0.05))
