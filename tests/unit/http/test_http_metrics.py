"""`/metrics`: what a process counts is summed over replicas and never falls; what the store knows is told once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from http_harness import Client
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import ScriptedEngine

from cluster.errors import Unavailable
from cluster.events import Event
from cluster.events.cursor import Cursor
from cluster.presence import beat
from cluster.store import Store
from cluster.tasks.model import Task, TaskState
from cluster.trust.ledger import Standing
from cluster.workers.model import Agent
from serve_apps.chat.engine import ModelRef, Sampling, Turn
from serve_apps.chat.metered import Metered
from serve_apps.core import Core
from serve_apps.kit.census import trust_histogram
from serve_apps.kit.exposition import GONE_SECONDS, PROCESS, exposition, remember
from serve_apps.kit.metrics import Metrics
from train.runs import Run, RunState, Stage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def values(text: str) -> dict[str, float]:
    """Every sample, by its name and labels as they are written in PromQL."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def scraped(client: Client) -> dict[str, float]:
    return values((await client.get("/metrics")).text)


async def test_requests_are_counted_by_route_and_not_by_path(client: Client, admin):
    for _ in range(2):
        await client.get("/jobs/some-job", headers=admin)
    await client.get("/nowhere/1")
    await client.request("BREW", "/nowhere/2")
    text = (await client.get("/metrics")).text
    assert 'http_requests_total{endpoint="/jobs/{job_id}",method="GET",status="501"} 2.0' in text
    assert 'endpoint="unknown",method="GET",status="404"' in text and "some-job" not in text and "nowhere" not in text
    assert 'method="other"' in text and "BREW" not in text
    assert "websocket_connections 0.0" in text and "http_request_duration_seconds_bucket" in text
    assert "_created" not in text


async def test_limits_replays_and_remembered_credentials_are_counted(client: Client, core: Core, admin):
    key = admin | {"Idempotency-Key": "one"}
    for _ in range(2):
        await client.post("/ains/routing/test", headers=key, json={})
    core.metrics.limited.labels("AINS").inc()
    found = await scraped(client)
    assert found["village_idempotent_replays_total"] == 1
    assert found['village_identity_lookups_total{result="miss"}'] == 1
    assert found['village_identity_lookups_total{result="hit"}'] >= 1
    assert found['village_rate_limited_requests_total{dialect="AINS"}'] == 1


async def test_the_gateway_says_what_it_takes_of_the_machine(client: Client):
    found = await scraped(client)
    assert found["village_gateway_processes"] == 1
    assert found["village_gateway_resident_memory_bytes"] > 10 << 20 and found["village_gateway_cpu_seconds_total"] > 0


def task(number: int, state: TaskState, **more) -> Task:
    at = NOON + timedelta(seconds=number)
    return Task(
        task_id=f"task_{number}", owner="user_a", client_id="acme", task_type="t", capability_required="c",
        input_data={}, state=state, created_at=at, updated_at=at, **more,
    )  # fmt: skip


async def test_tasks_are_counted_by_state_and_the_queue_by_what_it_waits_for(client: Client, core: Core, store: Store):
    for number, state in enumerate([TaskState.RUNNING, TaskState.COMPLETED, TaskState.COMPLETED, TaskState.PENDING]):
        await store.create(task(number, state))
    await store.create(task(4, TaskState.PENDING, waiting_for=("task_0",)))
    await store.create(task(5, TaskState.PENDING, not_before=NOON + timedelta(hours=1)))
    core.census.clock = lambda: NOON + timedelta(seconds=63)
    found = await scraped(client)
    told = {state: found[f'village_tasks{{state="{state}"}}'] for state in TaskState}
    assert told == dict.fromkeys(TaskState, 0) | {"RUNNING": 1, "COMPLETED": 2, "PENDING": 3}
    queue = {reason: found[f'village_task_queue{{reason="{reason}"}}'] for reason in ("agent", "dependency", "retry")}
    assert queue == {"agent": 1, "dependency": 1, "retry": 1}
    assert found["village_task_queue_oldest_seconds"] == 60


async def test_an_empty_queue_has_no_age(client: Client):
    assert (await scraped(client))["village_task_queue_oldest_seconds"] == 0


async def test_agents_are_counted_by_status_and_by_trust(client: Client, store: Store):
    for number, status in enumerate(["active", "active", "inactive"]):
        await store.create(
            Agent(
                agent_id=f"a{number}", owner="user_a", display_name="a", public_key="", endpoint="http://127.0.0.1",
                tags=("t",), status=status, created_at=NOON, last_seen_at=NOON,
            )
        )  # fmt: skip
    await store.create(Standing(standing_id="a0", good=1000.0, as_of=NOON, length=1))
    found = await scraped(client)
    assert found['village_agents{status="active"}'] == 2 and found['village_agents{status="inactive"}'] == 1
    bucket = 'village_agent_trust_bucket{le="%s"}'
    # Two agents without a record stand at 0.5; the third has earned more than 0.9.
    assert [found[bucket % bound] for bound in ("0.4", "0.5", "0.9", "1.0", "+Inf")] == [0, 2, 2, 3, 3]


def test_a_trust_bucket_holds_all_below_its_bound():
    family = trust_histogram([0, 1, 1, 1, 2, 2, 2, 2, 2, 3], known=3, strangers=4)
    counts = {sample.labels["le"]: sample.value for sample in family.samples}
    assert (counts["0.4"], counts["0.5"], counts["+Inf"]) == (1, 6, 7) and len(family.samples) == 11


async def test_training_is_told_by_phase(client: Client, store: Store):
    stage = Stage(phase="cognate", config={}, step=10, total_steps=100, metrics={"tokens_per_second": 250.0})
    for number, state in enumerate([RunState.RUNNING, RunState.RUNNING, RunState.COMPLETED]):
        await store.create(
            Run(
                run_id=f"task_{number}", owner="user_a", model_id="m", model_name="m", state=state,
                stages=(stage,), created_at=NOON, updated_at=NOON,
            )
        )  # fmt: skip
    found = await scraped(client)
    assert found['village_training_runs{state="running"}'] == 2 and found['village_training_runs{state="failed"}'] == 0
    assert found['village_training_steps{phase="cognate"}'] == 20
    assert found['village_training_planned_steps{phase="cognate"}'] == 200
    assert found['village_training_tokens_per_second{phase="cognate"}'] == 500


async def test_the_stream_its_readers_and_the_parts_that_beat_are_told(client: Client, core: Core, store: Store):
    before = (await scraped(client))["village_events"]
    ids = []
    for _ in range(3):
        ids.append(await store.publish(Event(kind="x.happened", subject="x", owner="", at=NOON)))
        await asyncio.sleep(0.02)  # the stream's ids are milliseconds
    await store.create(Cursor(cursor_id="ledger", event_id=ids[0]))
    await store.create(Cursor(cursor_id="audit", event_id=ids[-1]))
    await beat(store, "router", NOON, {"assigned": 7, "delivering": 2, "agents": 1})
    await beat(store, "webhooks", NOON, {"delivered": 5, "failed": 1, "attempts": 9, "in_flight": 3})
    found = values(await fresh(core))
    assert found["village_events"] == before + 3
    assert found['village_events_reader_lag_seconds{reader="audit"}'] == 0
    assert 0.04 <= found['village_events_reader_lag_seconds{reader="ledger"}'] < 5
    assert (found["village_router_assigned_total"], found["village_router_deliveries"]) == (7, 2)
    assert found['village_webhook_deliveries_total{outcome="delivered"}'] == 5
    assert found['village_webhook_deliveries_total{outcome="failed"}'] == 1
    assert (found["village_webhook_attempts_total"], found["village_webhook_deliveries_in_flight"]) == (9, 3)
    assert 0 < found["village_store_ping_seconds"] < 1 and found["village_store_up"] == 1


async def fresh(core: Core) -> str:
    """The village's families without what was counted a moment ago."""
    return await exposition(Metrics(), [], core.settings.run_dir / "metrics.json", await core.census._count())


async def test_parts_are_told_by_name(client: Client, core: Core):
    async def away() -> bool:
        return False

    core.readiness.probes["router"] = away
    found = await scraped(client)
    assert found['village_component_up{component="store"}'] == 1
    assert found['village_component_up{component="router"}'] == 0


@asynccontextmanager
async def sibling(path: Path, metrics: Metrics) -> AsyncIterator[None]:
    """Another replica, as far as a scrape can tell: it answers on a Unix socket."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = metrics.text().encode()
        head = f"HTTP/1.1 200 OK\r\n{PROCESS}: {metrics.process}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    serving = await asyncio.start_unix_server(answer, path)
    try:
        yield
    finally:
        serving.close()
        await serving.wait_closed()


async def test_replicas_are_summed_and_the_village_is_not(client: Client, core: Core, store: Store):
    await store.create(task(1, TaskState.PENDING))
    core.settings.run_dir.mkdir(parents=True, exist_ok=True)
    other = Metrics()
    other.answered("GET", "/x", 200, 0.01)
    other.socket(+1)
    core.metrics.answered("GET", "/x", 200, 0.01)
    async with sibling(core.settings.run_dir / "gateway-1.sock", other):
        found = await scraped(client)
    key = 'http_requests_total{endpoint="/x",method="GET",status="200"}'
    assert (found[key], found["websocket_connections"], found["village_gateway_processes"]) == (2, 1, 2)
    assert found['village_tasks{state="PENDING"}'] == 1
    # A counter that falls would be read as a restart of every replica; what is open now is gone with its process.
    found = await scraped(client)
    assert (found[key], found["websocket_connections"], found["village_gateway_processes"]) == (2, 0, 1)
    assert found['http_request_duration_seconds_count{endpoint="/x",method="GET"}'] == 2


async def test_a_replica_that_begins_anew_begins_beside_what_it_had_counted(tmp_path: Path):
    file, key = tmp_path / "metrics.json", 'http_requests_total{endpoint="/x",method="GET",status="200"}'
    for process in range(1, 4):
        own = Metrics()
        own.answered("GET", "/x", 200, 0.01)
        assert values(await exposition(own, [], file))[key] == process
        assert values(await exposition(own, [], file))[key] == process


def test_the_dead_are_kept_as_one(tmp_path: Path):
    file = tmp_path / "metrics.json"
    for second in range(3):
        own = Metrics()
        own.answered("GET", "/x", 200, 0.01)
        remember(file, {own.process: own.text()}, second)
    later = GONE_SECONDS + 10
    silent = remember(file, {}, later)
    assert len(silent) == 1 and values(silent[0])['http_requests_total{endpoint="/x",method="GET",status="200"}'] == 3
    assert remember(file, {}, later + 1) == silent


def test_a_memory_that_was_cut_off_begins_anew(tmp_path: Path):
    file = tmp_path / "metrics.json"
    file.write_text('{"abc": {"at"')
    assert remember(file, {"def": ""}, 1.0) == [] and remember(file, {}, 2.0) == [""]


async def test_a_socket_without_a_process_is_left_out(tmp_path: Path):
    own = Metrics()
    own.answered("GET", "/x", 200, 0.01)
    (tmp_path / "gateway-1.sock").touch()
    text = await exposition(own, [tmp_path / "gateway-1.sock"], tmp_path / "metrics.json")
    assert 'http_requests_total{endpoint="/x",method="GET",status="200"} 1.0' in text


OURS = ModelRef("model_1", "seedling", "/none", context_length=256)
THEIRS = ModelRef("model_2", "my-secret-project", "/none", context_length=256, owner="user_ann")
HELLO = (Turn("user", "hello"),)


async def test_a_reply_is_counted_with_its_tokens_and_times():
    own = Metrics()
    engine = Metered(ScriptedEngine(), own.registry)
    steps = [step async for step in engine.generate(OURS, HELLO, Sampling(max_tokens=5))]
    found, last = values(own.text()), steps[-1]
    assert found['village_chat_tokens_total{kind="completion",model="seedling"}'] == last.completion_tokens == 5
    assert found['village_chat_tokens_total{kind="prompt",model="seedling"}'] == last.prompt_tokens
    assert found['village_chat_replies_total{model="seedling",outcome="length"}'] == 1
    assert found['village_chat_first_token_seconds_count{model="seedling"}'] == 1
    first, whole = (found[f'village_chat_{n}_seconds_sum{{model="seedling"}}'] for n in ("first_token", "reply"))
    assert 0 < first <= whole and found["village_chat_running"] == 0


async def test_a_reply_that_does_not_stream_has_no_first_token():
    own = Metrics()
    engine = Metered(ScriptedEngine(), own.registry)
    assert [step async for step in engine.generate(OURS, HELLO, Sampling(max_tokens=5, stream=False))]
    assert 'village_chat_first_token_seconds_count{model="seedling"}' not in values(own.text())


async def test_a_reply_that_is_broken_off_or_fails_is_counted_as_such():
    own, broken = Metrics(), ScriptedEngine()
    broken.failure, broken.fails_after = Unavailable("the engine died"), 2
    engine = Metered(ScriptedEngine(), own.registry)
    async with aclosing(engine.generate(OURS, HELLO, Sampling(max_tokens=5))) as steps:
        await anext(steps)
    assert values(own.text())['village_chat_replies_total{model="seedling",outcome="aborted"}'] == 1
    engine.engine = broken
    with pytest.raises(Unavailable):
        _ = [step async for step in engine.generate(OURS, HELLO, Sampling(max_tokens=5))]
    found = values(own.text())
    assert found['village_chat_replies_total{model="seedling",outcome="failed"}'] == 1
    assert found['village_chat_tokens_total{kind="completion",model="seedling"}'] == 3


async def test_the_name_of_a_users_model_is_on_no_open_page():
    own = Metrics()
    engine = Metered(ScriptedEngine(), own.registry)
    assert [step async for step in engine.generate(THEIRS, HELLO, Sampling(max_tokens=5))]
    assert 'model="private"' in own.text() and "my-secret-project" not in own.text() and "model_2" not in own.text()
