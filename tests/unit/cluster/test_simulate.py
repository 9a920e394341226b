"""Counterfactuals: the same trace under other strategies, deterministic, through the router's own parts."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from eventually import eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from working_agent import fail

from cluster.errors import Invalid, UnknownStrategy
from cluster.identity.model import SYSTEM, Principal
from cluster.routing.figures import fairness, figures, jain, quantiles, recorded
from cluster.routing.replaying import AS_SUBMITTED, Replaying, Window
from cluster.routing.simulate import Simulation, Trace, Try, overridden, tried
from cluster.routing.strategies import CATALOGUE
from cluster.tasks.model import Task, TaskState
from cluster.trust.ledger import Standing
from cluster.workers.model import PULL, Agent

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def agent(name: str, room: int = 1, **fields: Any) -> Agent:
    return Agent(
        **{
            "agent_id": name, "owner": "u", "display_name": name, "public_key": "", "endpoint": "http://x",
            "tags": ("sums:v1",), "max_concurrent_tasks": room, "created_at": NOON, "last_seen_at": NOON,
        } | fields
    )  # fmt: skip


def task(number: int, at: float = 0.0, seconds: float | None = 1.0, by: str = "ada", **fields: Any) -> Task:
    """One that was recorded: submitted `at` seconds after noon, `seconds` with the agent `by`."""
    created = NOON + timedelta(seconds=at)
    over = {} if seconds is None else {
        "started_at": created, "completed_at": created + timedelta(seconds=seconds), "state": TaskState.COMPLETED,
        "agent_id": by, "attempt": 1,
    }  # fmt: skip
    plain = {
        "task_id": f"task_{number:05d}", "owner": "u", "client_id": "c", "share": "c", "task_type": "t",
        "capability_required": "sums:v1", "created_at": created, "updated_at": created,
    }  # fmt: skip
    return Task(**plain | over | fields)


def traced(
    tasks: list[Task], *agents: Agent, standings: dict[str, Standing] | None = None, **tries: list[Try]
) -> Trace:
    known = dict(tries)
    for one in tasks:
        if one.agent_id not in tries and (last := tried(one)):
            known.setdefault(one.agent_id, []).append(last)
    return Trace(tasks, agents, standings or {}, known)


def simulated(trace: Trace, strategy: str = "", seed: int = 0) -> dict[str, Any]:
    return figures(Simulation(trace, strategy, seed).run())


def test_one_agent_works_one_after_the_other():
    found = simulated(traced([task(n, 0.0, 2.0) for n in range(5)], agent("ada")))
    assert found["completed"] == 5 and found["makespan_seconds"] == 10.0
    assert found["latency_seconds"] == {"p50": 6.0, "p95": 10.0, "p99": 10.0}
    assert found["waiting_seconds"]["p50"] == 4.0
    assert found["agents"]["ada"] == {"tries": 5, "completed": 5, "failed": 0, "busy_seconds": 10.0, "busy_share": 1.0}


def test_more_room_is_less_waiting():
    tasks = [task(n, 0.0, 2.0) for n in range(10)]
    few = traced(tasks, agent("ada"))
    more = traced(tasks, *overridden([agent("ada")], {"ada": {"max_concurrent_tasks": 10}}))
    assert simulated(few)["makespan_seconds"] == 20.0 and simulated(more)["makespan_seconds"] == 2.0


def mixed(seed: int, count: int = 120) -> Trace:
    chance, tasks, at = random.Random(seed), [], 0.0
    names = ["fast", "slow", "lost"]
    for number in range(count):
        at += chance.expovariate(2.0)
        by = chance.choice(names)
        seconds = {"fast": 0.2, "slow": 3.0, "lost": 1.0}[by] * chance.uniform(0.8, 1.2)
        ended = {"state": TaskState.FAILED, "error": "x"} if by == "lost" and chance.random() < 0.7 else {}
        client = f"c{chance.randrange(3)}"
        asked = {"priority": chance.randint(1, 10), "share": client, "client_id": client, "max_retries": 1}
        asked["depends_on"] = (tasks[-1].task_id,) if tasks and chance.random() < 0.1 else ()
        tasks.append(task(number, at, seconds, by, **asked | ended))
    return traced(tasks, *(agent(name, 2) for name in names))


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(["", *CATALOGUE]), st.integers(0, 5))
def test_the_same_seed_gives_the_same_answer_and_no_task_is_lost(seed, strategy, chance):
    trace = mixed(seed, 60)
    found = simulated(trace, strategy, chance)
    assert found == simulated(trace, strategy, chance)
    assert found["completed"] + found["failed"] + found["unfinished"] == found["tasks"] == 60
    assert found["unfinished"] == 0 and all(0 <= a["busy_share"] <= 1 + 1e-9 for a in found["agents"].values())


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_where_one_agent_is_fast_and_reliable_fastest_response_beats_turns(seed):
    trace = mixed(seed)
    turns, fastest = simulated(trace, "round_robin"), simulated(trace, "fastest_response")
    assert fastest["latency_seconds"]["p50"] < turns["latency_seconds"]["p50"]
    assert fastest["agents"]["fast"]["tries"] > turns["agents"]["fast"]["tries"]
    assert simulated(trace, "trust_weighted")["failed"] <= turns["failed"]


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(list(CATALOGUE)))
def test_no_agent_has_more_than_it_may(seed, strategy):
    trace = mixed(seed)
    simulation, peak = Simulation(trace, strategy, 0), {}
    hold = simulation.table.hold

    def watched(agent_id: str, *rest: Any) -> None:
        hold(agent_id, *rest)
        peak[agent_id] = max(peak.get(agent_id, 0), len(simulation.table.entries[agent_id].held))

    simulation.table.hold = watched  # type: ignore[method-assign]
    simulation.run()
    assert peak and max(peak.values()) <= 2


def test_a_busy_client_does_not_hold_up_a_quiet_one():
    crowd = [task(n, 0.0, 1.0, share="loud", client_id="loud") for n in range(600)]
    quiet = [task(1000 + n, 0.5, 1.0, share="quiet", client_id="quiet") for n in range(5)]
    outcome = Simulation(traced([*crowd, *quiet], agent("ada", 2)), "").run()
    waits = [(r.begun - r.arrived).total_seconds() for r in outcome.runs if r.task.client_id == "quiet" and r.begun]
    assert max(waits) < 10 and len(outcome.runs) == 605 and all(run.ended for run in outcome.runs)
    assert figures(outcome)["fairness"]["clients"].keys() == {"loud", "quiet"}


def test_retries_timeouts_dependencies_and_tasks_that_nobody_may_have():
    tasks = [
        task(1, 0, 1.0, state=TaskState.FAILED, error="x", max_retries=2),
        task(2, 0, 400.0, timeout_seconds=300, max_retries=0, state=TaskState.TIMEOUT),
        task(3, 0, None, depends_on=("task_00002",)),
        task(4, 0, None, trust_min=0.99),
        task(5, 0, None, capability_required="rare:v1"),
        task(6, 3000, 1.0),
        task(7, 0, 1.0, depends_on=("task_elsewhere",)),
        task(8, 0, 320.0, timeout_seconds=300, extended_seconds=60.0),
    ]
    outcome = Simulation(traced(tasks, agent("ada", 9, endpoint=PULL), ada=[Try(1.0, False)]), "").run()
    states = [run.task.state for run in outcome.runs]
    assert states[:2] == ["FAILED", "TIMEOUT"] and states[2] == "FAILED" and states[3:5] == ["PENDING", "PENDING"]
    assert states[5:] == ["COMPLETED"] * 3 and outcome.runs[0].task.attempt == 3
    assert outcome.runs[0].served < 1000 and figures(outcome)["unfinished"] == 2
    assert recorded(tasks, {"ada": 9}).agents["ada"].tries == 5


def test_figures_by_hand():
    assert quantiles([]) == {"p50": None, "p95": None, "p99": None}
    assert quantiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert jain([]) is None and jain([1, 1]) == 1.0 and jain([1, 0]) == 0.5
    assert fairness([])["jain_index"] is None


@pytest.fixture
def replaying(village) -> Replaying:
    return Replaying(village.store, village.trust)


def around(**fields: Any) -> Window:
    now = datetime.now(UTC)
    return Window(now - timedelta(hours=1), now + timedelta(hours=1), **fields)


async def test_of_what_was_really_recorded(village, replaying: Replaying, retry_at_once):
    await village.agent("ada", room=100)
    await village.agent("bob", fail, room=100)
    village.route()
    eve = Principal(principal_id="user_1", owner="user_1", username="eve", scopes=frozenset({"read"}))
    tasks = [await village.submit(client_id=f"c{n % 2}", max_retries=5) for n in range(12)]
    hers = await village.submit(who=eve)
    for one in [*tasks, hers]:
        await eventually(village.reaches(one.task_id, "COMPLETED"))
    cancelled = await village.submit(capability_required="rare:v1")
    await village.tasks.cancel(SYSTEM, cancelled.task_id, "not wanted")
    await village.keep_ledger()
    found = await replaying.simulate(SYSTEM, around())
    assert found["sample"] == {"tasks": 13, "scanned": 14, "truncated": False, "agents": 2, "agents_gone": []}
    assert found["observed"]["completed"] == 13 and set(found["strategies"]) == {AS_SUBMITTED, *CATALOGUE}
    turns, trusted = found["strategies"]["round_robin"], found["strategies"]["trust_weighted"]
    assert turns["agents"]["bob"]["failed"] > 0 == trusted["agents"]["bob"]["failed"]  # retried ones are in the ledger
    assert found == await replaying.simulate(SYSTEM, around())
    own = await replaying.simulate(eve, around(strategies=("least_loaded",)))
    assert own["sample"]["tasks"] == 1 and list(own["observed"]["fairness"]["clients"]) == ["client"]
    without = await replaying.simulate(
        SYSTEM, around(agents={"bob": {"status": "inactive"}}, strategies=("round_robin",))
    )
    assert without["strategies"]["round_robin"]["agents"]["bob"]["tries"] == 0
    cut = await replaying.simulate(SYSTEM, around(limit=5, capability="sums:v1"))
    assert cut["sample"]["tasks"] == 5 and cut["sample"]["truncated"]


async def test_a_window_without_tasks_says_so_and_nonsense_is_refused(village, replaying: Replaying):
    found = await replaying.simulate(SYSTEM, around())
    assert found["sample"]["tasks"] == 0 and found["message"] and found["observed"] is None
    with pytest.raises(UnknownStrategy):
        await replaying.simulate(SYSTEM, around(strategies=("best",)))
    await village.submit()
    with pytest.raises(Invalid, match="no agent nobody"):
        await replaying.simulate(SYSTEM, around(agents={"nobody": {"max_concurrent_tasks": 1}}))
    assert (await replaying.simulate(SYSTEM, around()))["strategies"]["round_robin"]["unfinished"] == 1
