"""Replicated verification: the judge by rule, the loop against a real store and router, killed at each commit."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dying import Dying
from eventually import eventually
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from working_agent import complete

from cluster.errors import Conflict
from cluster.events import Event
from cluster.events.keeping import keep
from cluster.identity.model import SYSTEM
from cluster.store import Store, Write
from cluster.tasks import machine
from cluster.tasks.events import began, changed
from cluster.tasks.model import Task
from cluster.tasks.service import TaskSpec
from cluster.tasks.verification import (
    Agreed,
    Hopeless,
    More,
    Open,
    Replica,
    Replication,
    Verification,
    alike,
    countable,
    judge,
    replica_id,
    same,
)
from cluster.tasks.verifier import Verifier, concerns
from cluster.trust.score import TrustEvent
from cluster.trust.service import Trust

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def done(agent: str, result: Any = 1) -> Replica:
    return Replica(agent, ended=True, completed=True, result=result)


ASK = Verification(replicas=2)
NONE, UNLIKE = "no agreement:", "different results"


@pytest.mark.parametrize(
    ("replicas", "trust", "verdict"),
    [
        ([], {}, More(())),
        ([Replica()], {}, Open()),
        ([Replica("a")], {}, More(("a",))),
        ([Replica("a")], {"a": 0.8}, Open()),  # one that is trusted so far is enough
        ([Replica("a")], {"a": 0.7}, More(("a",))),
        ([Replica("a"), Replica("b")], {}, Open()),
        ([Replica("a"), Replica()], {}, Open()),
        ([Replica("a", ended=True), Replica("b")], {}, More(("a", "b"))),
        ([done("a"), Replica("b")], {}, Open()),
        ([done("a"), done("b")], {}, Agreed(1, ("a", "b"), ())),
        ([done("a"), done("a")], {}, More(("a",))),  # an agent has one vote
        ([done("a"), done("b", 2)], {}, More(("a", "b"))),
        ([done("a"), done("b", 2), done("c")], {}, Agreed(1, ("a", "c"), ("b",))),
        ([done("a"), done("b", 2)], {"b": 0.9}, Agreed(2, ("b",), ("a",))),
        ([done("a", n) for n in range(4)], {}, More(("a",))),
        ([done(f"a{n}", n) for n in range(5)], {}, Hopeless(f"{NONE} 5 of 5 replicas completed, with 5 {UNLIKE}")),
        ([Replica("a", ended=True)] * 5, {}, Hopeless(f"{NONE} 0 of 5 replicas completed, with 0 {UNLIKE}")),
        ([done(f"a{n}", n) for n in range(4)] + [Replica("z")], {}, Open()),
    ],
)  # fmt: skip
def test_what_the_judge_decides(replicas, trust, verdict):
    assert judge(ASK, replicas, trust) == verdict


agents = st.sampled_from("abcdef")
over = st.builds(Replica, agents, st.just(True), st.booleans(), st.integers(0, 2))
replicas = st.lists(over | st.builds(Replica, agents | st.just("")), max_size=7)


@given(st.integers(1, 4), replicas, st.dictionaries(agents, st.floats(0, 1)))
def test_only_enough_trust_agrees_and_nobody_is_on_both_sides(asked, some, trust):
    ask = Verification(replicas=asked)
    verdict = judge(ask, some[: ask.most], trust)
    if isinstance(verdict, Agreed):
        doubt = 1.0
        for agent in verdict.agents:
            doubt *= 1 - trust.get(agent, 0.5)
        assert doubt <= ask.target * (1 + 1e-6) and not set(verdict.agents) & set(verdict.against)
        first = {r.agent_id: r.result for r in reversed(some[: ask.most]) if r.completed}
        assert all(first[agent] == verdict.result for agent in verdict.agents)
        assert all(first[agent] != verdict.result for agent in verdict.against)
    elif isinstance(verdict, More):
        assert len(some) < ask.most and all(replica.ended or replica.agent_id for replica in some)
    elif isinstance(verdict, Hopeless):
        assert len(some[: ask.most]) == ask.most and all(replica.ended for replica in some[: ask.most])
    else:
        assert any(not replica.ended for replica in some)


@given(st.integers(1, 9), st.floats(0.5, 0.999), st.floats(0, 0.0009))
def test_fewer_replicas_are_needed_of_agents_with_more_trust(asked, trust, more):
    def needed(of: float) -> int:
        ask, some = Verification(replicas=asked), []
        while isinstance(judge(ask, some, dict.fromkeys(map(str, range(20)), of)), More):
            some.append(Replica(str(len(some))))
        return len(some)

    assert needed(0.5) == asked and 1 <= needed(trust + more) <= needed(trust) <= asked


numeric, subset = (
    Verification(comparator="numeric", tolerance=0.01),
    Verification(comparator="json_subset", fields=("a.b", "c")),
)


@pytest.mark.parametrize(
    ("ask", "a", "b", "agree"),
    [
        (ASK, {"x": [1, 2.0]}, {"x": [1.0, 2]}, True),
        (ASK, {"x": 1}, {"x": True}, False),
        (ASK, {"x": 1}, {"x": 1, "y": 2}, False),
        (ASK, [1], [1, 2], False),
        (ASK, None, None, True),
        (ASK, 0.1 + 0.2, 0.3, False),
        (numeric, {"x": 100.0, "s": "same"}, {"x": 100.9, "s": "same"}, True),
        (numeric, {"x": 100.0}, {"x": 102.0}, False),
        (numeric, {"x": 0.0}, {"x": 0.009}, True),
        (numeric, 10**400, 1.0, False),
        (numeric, {"s": "1"}, {"s": 1}, False),
        (subset, {"a": {"b": 1, "z": 1}, "c": 2}, {"a": {"b": 1, "z": 9}, "c": 2, "t": 3}, True),
        (subset, {"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 3}, False),
    ],
)  # fmt: skip
def test_which_results_agree(ask, a, b, agree):
    assert alike(ask, a, b) is agree and alike(ask, b, a) is agree


def test_an_empty_answer_agrees_with_nobody_where_members_are_named():
    assert not countable(subset, {}) and not countable(subset, {"a": 1, "c": 2}) and countable(ASK, {})
    assert judge(subset.model_copy(update={"replicas": 1}), [done("a", {}), done("b", {})], {}) == More(("a", "b"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0}, {"replicas": 10}, {"comparator": "json_subset"}, {"comparator": "exact", "fields": ["a"]},
        {"comparator": "exact", "tolerance": 0.1}, {"comparator": "numeric", "tolerance": -1.0},
        {"comparator": "loose"},
    ],
)  # fmt: skip
def test_an_ask_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValidationError):
        Verification(**wrong)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_a_result_agrees_with_itself(value):
    assert same(value, value, 0.0)


def test_a_verified_task_is_never_ready():
    task = Task(
        task_id="task_1", owner="u", client_id="c", task_type="t", capability_required="x:v1", created_at=NOON,
        updated_at=NOON, verification=Replication(),
    )  # fmt: skip
    assert not task.ready and "place" not in changed(None, task).data
    with pytest.raises(Conflict):
        machine.assign(task, "ada", "", NOON)


# ---- the loop


async def submitted(village, **fields: Any) -> Task:
    """A verified task, as a submission with `verification` commits it."""
    order = {"client_id": "c", "task_type": "sum", "capability_required": "sums:v1", "input_data": {"a": 1}}
    ask = {name: fields.pop(name) for name in ("replicas", "comparator", "tolerance", "fields") if name in fields}
    [write] = await village.tasks.prepare(SYSTEM, [TaskSpec(**order | fields)])
    assert isinstance(write.after, Task)
    task = write.after.model_copy(update={"verification": Replication(**ask)})
    assert await village.store.commit(Write(None, task, event=changed(None, task)))
    return task


async def replicas_of(village, task: Task) -> list[Task]:
    now = await village.task(task.task_id)
    assert now.verification is not None
    return await village.store.many(Task, [replica_id(task.task_id, n + 1) for n in range(now.verification.asked)])


def verify(village) -> None:
    village.running.append(asyncio.create_task(keep(Verifier(village.store))))


async def lying(_: dict[str, Any]) -> dict[str, Any]:
    return {"status": "COMPLETED", "result_data": {"echo": "a lie"}}


async def test_two_agents_that_agree_complete_the_task(village):
    for name in ("ada", "bob", "eve"):
        await village.agent(name)
    village.route()
    verify(village)
    task = await submitted(village, replicas=2, routing_strategy="trust_weighted")
    ended = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert ended.result_data == {"echo": {"a": 1}} and ended.agent_id == "" and ended.verification.disagreed == ()
    some = await replicas_of(village, task)
    assert (
        len(some) == 2
        and {r.agent_id for r in some} == set(ended.verification.agreed)
        and len(ended.verification.agreed) == 2
    )
    await village.keep_ledger()
    assert [(await village.trust.standing(r.agent_id)).completed for r in some] == [1, 1]


async def test_who_disagrees_loses_trust_once_and_the_others_result_counts(village):
    await village.agent("liar", lying)
    village.route()
    verify(village)
    task = await submitted(village, replicas=2)
    await eventually(lambda: replicas_of(village, task))
    await eventually(village.reaches(replica_id(task.task_id, 1), "COMPLETED"))
    await village.agent("ada")
    await village.agent("bob")
    ended = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert ended.result_data == {"echo": {"a": 1}} and ended.verification.disagreed == ("liar",)
    await village.keep_ledger()
    history = (await village.trust.history("liar")).items
    assert [line.event_type for line in history] == [TrustEvent.DISAGREED, TrustEvent.COMPLETED]
    assert history[0].task_id == replica_id(task.task_id, 1) and history[0].reason == "Result disagreed with 2 others"
    assert await village.trust.verify("liar") is None


async def test_one_agent_with_much_trust_is_enough(village):
    await village.agent("ada")
    await village.trust.adjust(SYSTEM, "ada", 0.4, "proved")
    village.route()
    verify(village)
    task = await submitted(village, replicas=3)
    ended = await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert ended.verification.agreed == ("ada",) and len(await replicas_of(village, task)) == 1


async def test_without_agreement_the_task_fails_and_nobody_is_blamed(village):
    async def own(task: dict[str, Any]) -> dict[str, Any]:
        return {"status": "COMPLETED", "result_data": task["task_id"]}

    for number in range(3):
        await village.agent(f"a{number}", own)
        await village.trust.adjust(SYSTEM, f"a{number}", -0.1, "below the middle one alone is not enough")
    village.route()
    verify(village)
    task = await submitted(village, replicas=1)
    failed = await eventually(village.reaches(task.task_id, "FAILED"))
    assert failed.error == f"{NONE} 3 of 3 replicas completed, with 3 {UNLIKE}"
    assert not [event for event in await village.store.events() if event.kind == "task.disagreed"]


async def test_a_replica_that_is_not_needed_any_more_is_cancelled_and_so_are_those_of_a_cancelled_task(
    village,
):
    for name in ("ada", "bob", "eve"):
        await village.register(name, "pull:")
    task = await submitted(village, replicas=2)
    verifier = Verifier(village.store)
    await run(verifier)
    await give(village, task, 1, "ada")
    await run(verifier)
    await give(village, task, 2, "bob")
    await run(verifier)
    await village.trust.adjust(SYSTEM, "bob", 0.4, "proved meanwhile")
    await answer(village, task, 2, 7)
    await run(verifier)
    ended = await village.task(task.task_id)
    assert ended.state == "COMPLETED" and ended.result_data == 7
    [late, _] = await replicas_of(village, task)
    assert late.state == "CANCELLED" and late.reason == "its result is not needed any more"
    other = await submitted(village, replicas=2)
    await run(verifier)
    await village.tasks.cancel(SYSTEM, other.task_id, "enough")
    await run(verifier)
    [replica] = await replicas_of(village, other)
    assert replica.state == "CANCELLED" and replica.reason == f"{other.task_id} is CANCELLED"


async def test_replicas_are_kept_apart_and_follow_the_tasks_priority(village):
    for name in ("ada", "bob"):
        await village.register(name, "pull:")
    task, verifier = await submitted(village, replicas=3), Verifier(village.store)
    await run(verifier)
    await village.tasks.prioritise(SYSTEM, task.task_id, 9)
    await run(verifier)
    assert [r.priority for r in await replicas_of(village, task)] == [9]
    await give(village, task, 1, "ada")
    await run(verifier)
    [_, second] = await replicas_of(village, task)
    assert second.excluded == ("ada",) and second.created_at == task.created_at and second.priority == 9
    await give(village, task, 2, "bob")
    await run(verifier)
    [first, _, third] = await replicas_of(village, task)
    assert first.excluded == ("bob",) and third.excluded == ("ada", "bob")


async def test_dependencies_come_first_and_dependents_after(village):
    await village.agent("ada")
    await village.trust.adjust(SYSTEM, "ada", 0.4, "proved")
    village.route()
    verify(village)
    first = await village.submit(capability_required="later:v1")
    task = await submitted(village, replicas=1, depends_on=(first.task_id,))
    behind = await village.submit(depends_on=(task.task_id,))
    broken = await submitted(village, replicas=1, depends_on=(first.task_id,))
    await village.tasks.cancel(SYSTEM, broken.task_id, "not wanted")
    await village.agent("bob", complete, ("later:v1",))
    await eventually(village.reaches(behind.task_id, "COMPLETED"))
    assert (await village.task(task.task_id)).state == "COMPLETED" and not await replicas_of(village, broken)


async def run(verifier: Verifier) -> None:
    """Until it has nothing to do."""
    await verifier.open()
    while await verifier.step(wait_seconds=0):
        pass


async def give(village, task: Task, number: int, agent: str) -> None:
    """What the router would do."""
    before, version = await village.store.load(Task, replica_id(task.task_id, number))
    assert before is not None and agent not in before.excluded
    assigned = machine.assign(before, agent, "1.x", NOON)
    running = machine.start(assigned, assigned.attempt, NOON)
    assert await village.store.commit(Write(before, running, version, began(before, assigned, running)))


async def answer(village, task: Task, number: int, result: Any) -> None:
    """What the agent would do."""
    name, at = replica_id(task.task_id, number), NOON + timedelta(seconds=1)
    await village.store.change(Task, name, lambda t: machine.finish(t, t.attempt, result, at), changed)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6, 7, 8])
async def test_killed_at_any_commit_it_goes_on_and_blames_nobody_twice(village, at: int, after: bool):
    agents, results = ["ada", "bob", "eve"], [1, 2, 1]
    task = await submitted(village, replicas=2)
    dying: Store = Dying(village.store.url, at, after)
    verifier = Verifier(dying)
    for number in range(1, 4):
        try:
            await run(verifier)
        except asyncio.CancelledError:
            verifier = Verifier(village.store)
            await run(verifier)
        await give(village, task, number, agents[number - 1])
        await answer(village, task, number, results[number - 1])
    with suppress(asyncio.CancelledError):
        await run(verifier)
    await run(Verifier(village.store))
    await dying.close()
    ended = await village.task(task.task_id)
    assert ended.state == "COMPLETED" and ended.result_data == 1 and ended.verification.disagreed == ("bob",)
    told = [event for event in await village.store.events() if event.kind in ("task.disagreed", "task.completed")]
    assert [e.subject for e in told if e.kind == "task.disagreed"] == [replica_id(task.task_id, 2)]
    assert [e.subject for e in told].count(task.task_id) == 1
    await village.keep_ledger()
    assert [(await Trust(village.store).standing(name)).length for name in agents] == [1, 2, 1]


async def test_two_loops_at_once_do_each_step_once(village):
    for name in ("ada", "bob", "eve", "dan"):
        await village.agent(name)
    village.route()
    verify(village)
    other = Store(village.store.url)
    village.running.append(asyncio.create_task(keep(Verifier(other))))
    tasks = [await submitted(village, replicas=2) for _ in range(8)]
    for task in tasks:
        await eventually(village.reaches(task.task_id, "COMPLETED"))
        assert len(await replicas_of(village, task)) == 2
    await other.close()


async def test_a_task_that_cannot_be_settled_does_not_stop_the_others(village, monkeypatch):
    broken, fine = await submitted(village), await submitted(village)
    settle = Verifier._settle

    async def sometimes(self: Verifier, task_id: str) -> int:
        if task_id == broken.task_id:
            raise RuntimeError("a bug")
        return await settle(self, task_id)

    monkeypatch.setattr(Verifier, "_settle", sometimes)
    await run(Verifier(village.store))
    assert len(await replicas_of(village, fine)) == 1 and not await replicas_of(village, broken)


def test_what_concerns_no_verified_task_is_not_looked_at():
    def happened(kind: str, **data: Any) -> Event:
        return Event(kind=kind, subject="task_1", owner="u", at=NOON, data=data)

    assert concerns(happened("task.created", place=1.0)) == "" == concerns(happened("task.created", waiting=True))
    assert concerns(happened("task.completed", parent_id="chain_1")) == "" == concerns(happened("task.completed"))
    assert concerns(happened("task.created")) == "task_1" == concerns(happened("task.cancelled"))
    assert concerns(happened("task.assigned", parent_id="task_0")) == "task_0"
