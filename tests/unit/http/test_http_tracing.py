"""A request as a span: one trace from the caller's header through the gateway to the agent, and no secret in it."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from eventually import eventually
from http_harness import Client
from otlp_receiver import Collector, collecting
from scripted_engine import ScriptedEngine
from working_agent import registration, working

from cluster import tracing
from cluster.events.model import START
from cluster.routing.router import Router
from cluster.settings import Settings
from cluster.store import Store
from cluster.tasks.delivery import Delivery
from cluster.tasks.service import Tasks
from cluster.trust.service import LedgerKeeper, Trust
from cluster.workers.service import Workers
from serve_apps.chat.engine import ModelRef, Sampling, Turn
from serve_apps.chat.metered import Metered
from serve_apps.core import Core
from serve_apps.kit.metrics import Metrics

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
WORK = {"client_id": "acme", "task_type": "sum", "capability_required": "sums:v1", "input_data": {"a": 1}}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Asked for before `client`: a gateway is traced from its start or never."""
    with collecting() as kept:
        tracing.configure(Settings(otlp_endpoint=kept.url), "gateway")
        yield kept
        tracing.close()


async def test_one_submitted_task_is_one_trace_from_its_caller_to_the_agent_and_the_ledger(
    collector: Collector, client: Client, core: Core, store: Store, admin: dict[str, str]
):
    trust = Trust(store)
    core.tasks, core.workers, core.trust = Tasks(store), Workers(store, trust), trust
    delivery = Delivery("http://127.0.0.1:1", public_only=False)
    async with working() as agent:
        body = registration("ada", agent.url, ["sums:v1"])
        assert (await client.post("/ains/agents", json=body, headers=admin)).is_success
        routing = asyncio.create_task(Router(store, trust, delivery).run())
        answer = await client.post("/ains/tasks", json=WORK, headers=admin | CALLER | {"X-Request-Id": "req_mine"})
        task_id = answer.json()["task_id"]

        async def done() -> bool:
            return (await client.get(f"/ains/tasks/{task_id}", headers=admin)).json()["status"] == "COMPLETED"

        await eventually(done)
        keeper = LedgerKeeper(store)
        while await keeper.step(wait_seconds=0):
            pass
        routing.cancel()
        await asyncio.gather(routing, return_exceptions=True)
        await delivery.close()
    tracing.close()
    [asked] = collector.named("POST /ains/tasks")
    [deliver], [credit] = collector.named("task.deliver"), collector.named("trust.credit")
    assert (asked.trace_id, asked.parent_id) == (TRACE, PARENT)
    assert (deliver.trace_id, deliver.parent_id) == (TRACE, asked.span_id)
    assert (credit.trace_id, credit.parent_id) == (TRACE, deliver.span_id)
    assert agent.headers[0]["traceparent"].startswith(f"00-{TRACE}-")
    about = asked.attributes
    assert about["http.route"] == "/ains/tasks" and about["village.dialect"] == "AINS"
    assert about["village.request_id"] == "req_mine" and about["village.principal_id"].startswith("user_")
    created = next(event for event in await store.events(START) if event.kind == "task.created")
    assert created.origin is not None and created.origin.traceparent == f"00-{TRACE}-{asked.span_id}-01"
    # Its round trips to the store are inside it: the limits and the commit at least.
    assert len([span for span in collector.spans if span.parent_id == asked.span_id and span != deliver]) >= 2


async def test_a_span_is_named_by_its_route_and_its_failure_is_told(
    collector: Collector, client: Client, core: Core, admin: dict[str, str]
):
    async def broken(*_, **__):
        raise RuntimeError("a bug")

    core.tasks = Tasks(core.store)
    core.tasks.get = broken
    await client.get("/ains/tasks/task_nobody", headers=admin)
    await client.get("/nowhere/1")
    tracing.close()
    assert collector.named("GET /ains/tasks/{task_id}")[0].failed and collector.named("GET unknown")


async def test_no_credential_reaches_the_collector(
    collector: Collector, client: Client, core: Core, admin: dict[str, str]
):
    token = admin["Authorization"].split()[1]
    made = await client.post("/ains/api-keys", json={"client_id": "acme", "name": "k"}, headers=admin)
    key = next(value for value in made.json().values() if str(value).startswith("ains_"))
    await client.get("/ains/tasks?token=in-the-query", headers={"X-API-Key": key, "Cookie": "session=in-a-cookie"})
    await client.post("/auth/token", json={"username": "ann", "password": "in-the-body"})
    tracing.close()
    assert len(collector.spans) > 5
    for secret in (token, key, "in-the-query", "in-a-cookie", "in-the-body"):
        assert secret.encode() not in collector.raw


async def test_what_is_asked_every_few_seconds_is_not_traced(collector: Collector, client: Client):
    for page in ("/healthz", "/health", "/readiness", "/metrics"):
        assert (await client.get(page)).status_code == 200
    tracing.close()
    assert not collector.spans


async def test_a_reply_is_a_span_and_the_models_server_is_told_of_the_trace(collector: Collector):
    model, sampling = ModelRef("model_1", "seedling", "/none", context_length=256), Sampling(max_tokens=5)
    engine = Metered(ScriptedEngine(), Metrics().registry)
    with tracing.span("asked"):
        assert [step async for step in engine.generate(model, (Turn("user", "my prompt"),), sampling)]
        async with httpx.AsyncClient() as other:
            await other.post(f"{collector.url}/v1/chat/completions")
    tracing.close()
    [asked], [reply], [call] = (collector.named(name) for name in ("asked", "chat.generate", "POST"))
    assert reply.parent_id == call.parent_id == asked.span_id
    assert reply.attributes["gen_ai.usage.output_tokens"] == 5 and reply.attributes["village.outcome"] == "length"
    assert b"my prompt" not in collector.raw
