"""Traces: nothing when off; when on, one trace from a task to its agent and the ledger, over a real OTLP receiver."""

import asyncio
import gc
import timeit
from collections.abc import Iterator

import pytest
from eventually import eventually
from otlp_receiver import Collector, collecting
from working_agent import fail

from cluster import tracing
from cluster.events.model import START
from cluster.origin import Origin, current, within
from cluster.settings import Settings
from cluster.tasks.model import Task

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as kept:
        tracing.configure(Settings(otlp_endpoint=kept.url), "test")
        yield kept
        tracing.close()


def test_tracing_is_off_unless_the_setting_says_where():
    tracing.configure(Settings(), "test")
    assert not tracing.on() and tracing.traceparent() == "" and tracing.origin() is None
    with tracing.span("work", CALLER, task_id="task_1") as span:
        span.set_attribute("a", 1)
        tracing.describe("other", a=1)
        assert tracing.traceparent() == ""
    tracing.begin("reply").end()

    async def app(*_):
        return None

    assert tracing.served(app) is app


def test_a_span_costs_less_than_two_microseconds_when_off():
    def work() -> None:
        with tracing.span("task.deliver", CALLER, task_id="task_1", agent_id="ada", attempt=1):
            pass

    gc.disable()  # the best of several: what it costs, not what else this machine does
    try:
        assert min(timeit.repeat(work, number=2000, repeat=20)) / 2000 < 2e-6
    finally:
        gc.enable()


def test_a_span_continues_its_parent_and_those_inside_continue_it(collector: Collector):
    with tracing.span("outer", CALLER, agent_id="ada"):
        header = tracing.traceparent()
        assert header.startswith(f"00-{TRACE}-") and header.endswith("-01") and header != CALLER
        with tracing.span("inner", links=[CALLER, "", "nonsense"]):
            tracing.describe(found=3)
    assert tracing.traceparent() == ""
    tracing.close()
    [inner], [outer] = collector.named("inner"), collector.named("outer")
    assert (outer.trace_id, outer.parent_id, outer.service) == (TRACE, PARENT, "village-test")
    assert (inner.trace_id, inner.parent_id) == (TRACE, outer.span_id) == (TRACE, header.split("-")[2])
    assert outer.attributes["agent_id"] == "ada" and inner.attributes["found"] == 3 and inner.links == (PARENT,)


def test_an_exception_marks_its_span_and_goes_on(collector: Collector):
    with pytest.raises(ValueError, match="nine"), tracing.span("work"):
        raise ValueError("nine")
    tracing.close()
    assert collector.named("work")[0].failed


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", CALLER.replace("00-", "ff-", 1)])
def test_a_parent_that_is_none_begins_a_trace(collector: Collector, header: str):
    with tracing.span("work", header):
        assert tracing.traceparent()
    tracing.close()
    [found] = collector.named("work")
    assert found.parent_id == "" and found.trace_id != TRACE


def test_a_caller_who_does_not_trace_is_not_traced(collector: Collector):
    with tracing.span("work", CALLER[:-2] + "00"):
        assert tracing.traceparent().endswith("-00")
    tracing.close()
    assert not collector.spans


async def test_only_commands_inside_a_span_are_traced_and_they_say_no_secret(collector: Collector, village):
    await village.submit()
    with tracing.span("work"):
        task = await village.submit(input_data={"password": "hunter2"})
        assert (await village.task(task.task_id)).input_data == {"password": "hunter2"}
    tracing.close()
    [work] = collector.named("work")
    commands = [span for span in collector.spans if span.name != "work"]
    assert commands and all(span.parent_id == work.span_id for span in commands)
    assert b"hunter2" not in collector.raw


async def test_one_submitted_task_is_one_trace_down_to_the_agent_and_the_ledger(collector: Collector, village):
    agent = await village.agent("ada")
    village.route()
    with tracing.span("submit", CALLER), within(Origin(traceparent=tracing.traceparent(), principal_id="user_a")):
        task = await village.submit()
    await eventually(village.reaches(task.task_id, "COMPLETED"))
    await village.keep_ledger()
    await village.close()
    tracing.close()
    [submit], [deliver], [credit] = (collector.named(n) for n in ("submit", "task.deliver", "trust.credit"))
    assert {span.trace_id for span in (submit, deliver, credit)} == {TRACE}
    assert deliver.parent_id == submit.span_id and credit.parent_id == deliver.span_id
    assert deliver.attributes == {"task_id": task.task_id, "attempt": 1, "agent_id": "ada"}
    [sent] = [span for span in collector.spans if span.parent_id == deliver.span_id and span.name == "POST"]
    # The agent may go on from the very call that brought it the task.
    assert agent.headers[0]["traceparent"] == f"00-{TRACE}-{sent.span_id}-01"
    assert agent.url not in str(sent.attributes)
    events = {event.kind: event for event in await village.store.events(START)}
    assert events["task.created"].origin.principal_id == "user_a"
    assert events["task.completed"].origin.traceparent == f"00-{TRACE}-{deliver.span_id}-01"
    assert events["trust.changed"].origin.traceparent == f"00-{TRACE}-{credit.span_id}-01"


@pytest.mark.usefixtures("retry_at_once")
async def test_every_try_of_a_task_is_in_its_trace_though_the_router_was_killed_between(collector: Collector, village):
    await village.agent("ada", fail)
    with tracing.span("submit", CALLER):
        task = await village.submit(max_retries=3)
    first = village.route()
    await eventually(lambda: tried(village, task.task_id, 2))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    village.route()
    await eventually(village.reaches(task.task_id, "FAILED"))
    await village.close()
    tracing.close()
    tries = collector.named("task.deliver")
    assert len(tries) >= 4 and {span.trace_id for span in tries} == {TRACE}


async def tried(village, task_id: str, times: int) -> Task | None:
    task = await village.task(task_id)
    return task if task.attempt >= times else None


async def test_untraced_work_leaves_no_trace_on_its_events(village):
    await village.agent("ada")
    village.route()
    task = await village.submit()
    assert task.traceparent == "" and current() is None
    await eventually(village.reaches(task.task_id, "COMPLETED"))
    assert all(event.origin is None for event in await village.store.events(START))


async def test_a_collector_that_is_away_keeps_nobody_waiting(village):
    with collecting() as gone:
        pass
    tracing.configure(Settings(otlp_endpoint=gone.url), "test")
    try:
        begun = asyncio.get_running_loop().time()
        for _ in range(20):
            with tracing.span("work"):
                await village.submit()
        assert asyncio.get_running_loop().time() - begun < 2
    finally:
        tracing.close()
