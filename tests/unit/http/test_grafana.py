"""The dashboard: every expression asks for metrics, and labels of theirs, that a gateway in use really has."""

import asyncio
import json
import re
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from eventually import eventually
from http_harness import Client
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import ScriptedEngine
from working_agent import registration, working

from cluster.audit.keeper import AuditKeeper
from cluster.egress import Egress
from cluster.presence import Presence
from cluster.routing.router import Router
from cluster.store import Store
from cluster.tasks.delivery import Delivery
from cluster.tasks.service import Tasks
from cluster.trust.service import LedgerKeeper, Trust
from cluster.webhooks.dispatcher import Dispatcher
from cluster.workers.service import Workers
from serve_apps.chat.engine import ModelRef, Sampling, Turn
from serve_apps.chat.metered import Metered
from serve_apps.core import Core
from serve_apps.kit.readiness import heartbeat
from train.runs import Run, RunState, Stage

FOLDER = Path(__file__).parents[3] / "configs" / "grafana"
PAGE = FOLDER.parents[1] / "docs" / "observability.md"
DASHBOARD = json.loads((FOLDER / "village.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

TOKEN = re.compile(
    r"""(?x) (?P<text>"[^"]*") | (?P<range>\[[^\]]*\]) | (?P<name>[a-zA-Z_:][\w:]*) | (?P<number>\d+(\.\d+)?)
    | (?P<sign>[{}(),]|=~|!~|!=|=|[-+*/<>]) | (?P<space>\s+) | (?P<wrong>.)"""
)
FUNCTIONS = {"rate", "increase", "histogram_quantile"}
AGGREGATES = {"sum", "topk", "max", "min", "avg", "count"}
GROUPING = {"by", "without", "on", "ignoring"}


def asked(expression: str) -> tuple[set[str], set[str]]:
    """Metrics and labels that a PromQL expression names. Raises AssertionError for what is not PromQL."""
    found = [(match.lastgroup, match.group()) for match in TOKEN.finditer(expression)]
    tokens = [(kind, text) for kind, text in found if kind not in ("space", "number", "range", "text")]
    assert not [text for kind, text in tokens if kind == "wrong"], expression
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
    metrics, labels, in_labels, depth = set(), set(), 0, 0
    for index, (kind, text) in enumerate(tokens):
        following = tokens[index + 1][1] if index + 1 < len(tokens) else ""
        depth += (text == "(") - (text == ")")
        if text == "{" or text in GROUPING:
            in_labels = True
        elif text in "})":
            in_labels = False
        elif kind == "name" and in_labels:
            labels.add(text)
        elif (kind == "name" and following == "(") or text in AGGREGATES:
            assert text in FUNCTIONS | AGGREGATES, f"unknown function {text} in {expression}"
        elif kind == "name":
            metrics.add(text)
    assert depth == 0
    return metrics, labels


def test_an_expression_is_read_as_promql_means_it():
    both = 'sum by (model) (rate(a_total{kind="x",model=~"y|z"}[5m])) / on (model) histogram_quantile(0.5, b_bucket)'
    assert asked(both) == ({"a_total", "b_bucket"}, {"model", "kind"})
    assert asked("topk(10, sum by (le, endpoint) (rate(c[$__rate_interval])))") == ({"c"}, {"le", "endpoint"})


async def drive(client: Client, core: Core, store: Store, admin: dict[str, str]) -> None:
    """Some of everything that a village does, by the parts that do it."""
    trust = Trust(store)
    core.tasks, core.workers, core.trust = Tasks(store), Workers(store, trust), trust
    delivery, egress = Delivery("http://127.0.0.1:1", public_only=False), Egress(public_only=False)
    running = [
        asyncio.create_task(Router(store, trust, delivery).run()),
        asyncio.create_task(Dispatcher(store, egress).run()),
    ]
    async with working() as agent:
        body = registration("ada", agent.url, ["sums:v1"])
        for _ in range(2):
            await client.post("/ains/agents", json=body, headers=admin | {"Idempotency-Key": "once"})
        work = {"client_id": "acme", "task_type": "sum", "capability_required": "sums:v1", "input_data": {"a": 1}}
        task_id = (await client.post("/ains/tasks", json=work, headers=admin)).json()["task_id"]

        async def done() -> bool:
            return (await client.get(f"/ains/tasks/{task_id}", headers=admin)).json()["status"] == "COMPLETED"

        await eventually(done)
    for keeper in (LedgerKeeper(store), AuditKeeper(store)):
        await keeper.beat()
    parts = ["router", "ledger", "audit", "webhooks"]

    async def beating() -> bool:
        return len(await store.many(Presence, parts)) == len(parts)

    await eventually(beating)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await delivery.close()
    await egress.close()
    await store.create(
        Run(
            run_id="task_1", owner="user_a", model_id="m", model_name="m", state=RunState.RUNNING,
            stages=(Stage(phase="cognate", config={}, step=1, total_steps=9),), created_at=NOON, updated_at=NOON,
        )
    )  # fmt: skip
    engine = Metered(ScriptedEngine(), core.metrics.registry)
    model = ModelRef("model_1", "seedling", "/none", context_length=256)
    assert [step async for step in engine.generate(model, (Turn("user", "hello"),), Sampling(max_tokens=3))]


async def limited(client: Client, core: Core) -> None:
    """One request too many."""
    policy = core.limiter.policy
    tight = {name: {b: dict.fromkeys(s, 1) for b, s in buckets.items()} for name, buckets in policy.dialects.items()}
    core.limiter.policy = policy.model_copy(update={"dialects": tight})
    answers = [await client.get("/jobs") for _ in range(3)]
    assert answers[-1].status_code == 429
    core.limiter.policy = policy


async def test_every_panel_asks_for_what_a_gateway_really_has(
    client: Client, core: Core, store: Store, admin: dict[str, str]
):
    await drive(client, core, store, admin)
    await limited(client, core)
    core.readiness.probes["router"] = heartbeat(store, "router")
    labels: dict[str, set[str]] = defaultdict(set)
    answer: httpx.Response = await client.get("/metrics")
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels[sample.name] |= sample.labels.keys()
    for expression in EXPRESSIONS:
        metrics, used = asked(expression)
        assert metrics, expression
        assert not metrics - labels.keys(), f"no such metric: {metrics - labels.keys()} in {expression}"
        known: set[str] = set.union(*(labels[name] for name in metrics))
        assert not used - known, f"no such label: {used - known} in {expression}"
    # And nothing is measured that no panel shows.
    shown = {name for expression in EXPRESSIONS for name in asked(expression)[0]}
    ours = {name.removesuffix("_sum").removesuffix("_count") for name in labels}
    families = {name for name in ours if f"{name}_bucket" not in labels}
    assert not families - shown, f"on no panel: {families - shown}"
    told = set(re.findall(r"`((?:village|http|websocket)_\w+)`", PAGE.read_text()))
    assert {name.removesuffix("_bucket") for name in shown} == told, "the page's table is not true"


def test_the_dashboard_can_be_loaded_as_it_stands():
    assert DASHBOARD["uid"] == "village" and len(PANELS) > 30
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at: dict[str, Any] = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}" and panel["title"]
        for target in panel["targets"]:
            _, used = asked(target["expr"])
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            # An aggregation keeps only the labels that it names.
            assert "by (" not in target["expr"] or shown <= used, target


def test_what_grafana_and_prometheus_read_is_yaml():
    read = {file.name: yaml.safe_load(file.read_text()) for file in FOLDER.glob("*.yaml")}
    assert read["prometheus.yaml"]["scrape_configs"][0]["static_configs"] and len(read) == 3
