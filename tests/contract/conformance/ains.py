"""DukeNet AINS: keys, agents, tasks, trust, chains, schedules, templates, webhooks, audit."""

import hashlib
import hmac
import json
from typing import Any

import httpx
from contract.conformance.counterpart import Counterpart, signed_registration
from contract.conformance.platform import EXAMPLES, RUN, Platform

CLIENT, AGENT, TAG = f"app_{RUN}", f"agent_{RUN}", f"data-{RUN}:v1"
SECRET = f"s3cret-{RUN}"
SCOPES = [
    "tasks:read", "tasks:write", "agents:read", "agents:write", "agents:admin", "webhooks:manage", "keys:manage",
    "audit:read",
]  # fmt: skip
LIMIT_HEADERS = {f"x-ratelimit-{a}-{b}" for a in ("limit", "remaining", "reset") for b in ("minute", "hour")}
CODE = "error.code"


class Ains:
    """The API as one client's program sees it."""

    def __init__(self, p: Platform) -> None:
        self.p, self.me = p, Counterpart()

    def get(self, path: str, **request: Any) -> httpx.Response:
        return self.p.http.get(path, headers=self.p.headers("ains"), **request)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.p.http.post(path, headers=self.p.headers("ains"), json=body)

    def state(self, task_id: str) -> str:
        return self.get(f"/ains/tasks/{task_id}").json().get("status", "")

    def submit(self, **over: Any) -> str:
        return self.p.call("ains POST /ains/tasks", body=order(**over)).get("task_id", "none")

    def reaches(self, what: str, task_id: str, state: str, seconds: float = 30) -> None:
        self.p.wait(f"ains: {what}", seconds, lambda: self.state(task_id) == state)


def order(**over: Any) -> dict[str, Any]:
    """A submission."""
    task = {"client_id": CLIENT, "task_type": "data_analysis", "capability_required": TAG, "input_data": {"n": 1}}
    return task | {"priority": 7} | over


def run(p: Platform) -> None:
    """The whole document."""
    keys(p)
    a = Ains(p)
    agents(a)
    hook = webhook(a)
    first = tasks(a)
    refusals(a)
    ends(a, first)
    standing(a)
    chains(a)
    schedules(a)
    templates(a)
    if hook:
        deliveries(a, hook)
    routing(a)
    audit_and_usage(a)
    poor_key(a)


def keys(p: Platform) -> None:
    body = {
        "client_id": CLIENT, "name": "Conformance", "scopes": SCOPES, "rate_limit_per_minute": 2000,
        "rate_limit_per_hour": 50000, "expires_at": "2036-12-31T23:59:59Z",
    }  # fmt: skip
    made = p.call("ains POST /ains/api-keys", headers={"Authorization": f"Bearer {p.token}"}, body=body)
    p.api_key = made.get("api_key", "")
    p.check.that("ains: the key starts with ains_", p.api_key.startswith("ains_"), made)
    p.error("ains: no key is 401", httpx.get(p.url + "/ains/tasks"), 401, "INVALID_API_KEY", CODE)
    p.call("ains GET /ains/api-keys", params={"client_id": CLIENT, "active_only": "true"})
    p.call("ains GET /ains/version")


def agents(a: Ains) -> None:
    p = a.p
    body = signed_registration(AGENT, a.me.url + "/tasks", [TAG, "ml-inference:v2"])
    forged = a.post("/ains/agents", body | {"agent_id": AGENT + "x"}).status_code
    p.check.that("ains: a registration whose signature does not match is refused", forged in (400, 401, 403), forged)
    p.call("ains POST /ains/agents", body=body)
    p.error("ains: registering twice is 409", a.post("/ains/agents", body), 409, "AGENT_ALREADY_EXISTS", CODE)


def webhook(a: Ains) -> str:
    events = ["task.assigned", "task.completed", "task.failed", "task.timeout"]
    body = {"agent_id": AGENT, "url": a.me.url + "/hook", "secret": SECRET, "active": True, "events": events}
    return a.p.call("ains POST /ains/webhooks", body=body).get("webhook_id", "")


def tasks(a: Ains) -> str:
    p = a.p
    first = a.submit(
        input_data={"sleep": 2}, routing_strategy="trust_weighted", timeout_seconds=60, max_retries=3,
        metadata={"user_id": "u"},
    )  # fmt: skip
    second = p.call("ains POST /ains/tasks", body=order(depends_on=[first]))
    behind = {"task_id": second.get("task_id", "none")}
    p.check.that("ains: a task behind another is blocked", second.get("is_blocked") is True, second)
    p.call("ains GET /ains/tasks/{task_id}/dependencies", path=behind)
    p.call("ains PATCH /ains/tasks/{task_id}/priority", path=behind, body={"priority": 9})
    a.reaches("the first task completes", first, "COMPLETED")
    a.reaches("the dependent task completes after it", behind["task_id"], "COMPLETED")
    done = p.call("ains GET /ains/tasks/{task_id}", path={"task_id": first})
    p.check.that("ains: the result is what the agent answered", done.get("result_data", {}).get("records") == 3, done)
    got = any(t.get("task_id") == first and t.get("input_data") == {"sleep": 2} for t in a.me.tasks)
    p.check.that("ains: the agent got the input", got, a.me.tasks[:1])
    body = {"tasks": [order(input_data={"n": n}) for n in range(100)]}
    batch = p.call("ains POST /ains/tasks/batch", body=body)
    ids = batch.get("task_ids", ["none"])
    whole = batch.get("submitted") == 100 and len(set(ids)) == 100
    p.check.that("ains: a batch of 100 is taken whole", whole, batch)
    over = a.post("/ains/tasks/batch", {"tasks": [order()] * 101})
    p.error("ains: a batch of 101 is refused", over, 400, "BATCH_SIZE_EXCEEDED", CODE)
    p.wait("ains: the batch completes", 60, lambda: all(a.state(task_id) == "COMPLETED" for task_id in ids[-5:]))
    return first


def refusals(a: Ains) -> None:
    for what, over, code in (
        ("priority 11", {"priority": 11}, "INVALID_PRIORITY"),
        ("timeout 0", {"timeout_seconds": 0}, "INVALID_TIMEOUT"),
        ("strategy", {"routing_strategy": "astrology"}, "INVALID_ROUTING_STRATEGY"),
        ("dependency", {"depends_on": ["task_none"]}, "DEPENDENCY_NOT_FOUND"),
        ("retries", {"max_retries": 1000}, "MAX_RETRIES_EXCEEDED"),
    ):
        a.p.error(f"ains: a bad {what} is 400", a.post("/ains/tasks", order(**over)), 400, code, CODE)
    short = order()
    del short["task_type"]
    a.p.error("ains: a missing field is 400", a.post("/ains/tasks", short), 400, "MISSING_REQUIRED_FIELD", CODE)
    for url, code in (
        ("/ains/tasks/task_none", "TASK_NOT_FOUND"),
        ("/ains/agents/none", "AGENT_NOT_FOUND"),
        ("/ains/task-chains/chain_none", "CHAIN_NOT_FOUND"),
    ):
        a.p.error(f"ains: {code}", a.get(url), 404, code, CODE)


def ends(a: Ains, finished: str) -> None:
    p = a.p
    slow = a.submit(input_data={"sleep": 20}, timeout_seconds=1, max_retries=0)
    fails = a.submit(input_data={"fail": True}, max_retries=1)
    stay = a.submit(capability_required=f"nobody-{RUN}:v1")
    p.call("ains POST /ains/tasks/{task_id}/cancel", path={"task_id": stay}, body={"reason": "requirements changed"})
    late = a.post(f"/ains/tasks/{finished}/cancel", {"reason": "late"})
    p.error("ains: cancelling a finished task is 409", late, 409, "TASK_NOT_CANCELLABLE", CODE)
    a.reaches("a task past its time is TIMEOUT", slow, "TIMEOUT")
    a.reaches("a failing task is retried, then FAILED", fails, "FAILED", 60)
    failed = p.call("ains GET /ains/tasks/{task_id}", path={"task_id": fails})
    p.check.that("ains: it was retried once", failed.get("retry_count") == 1, failed)
    wanted = {"client_id": CLIENT, "status": "COMPLETED", "limit": 25, "offset": 0}
    listed = p.call("ains GET /ains/tasks", params=wanted)
    page = listed.get("pagination", {})
    good = len(listed.get("results", [])) == 25 and page.get("has_more") is True
    good = good and page.get("next_offset") == 25 and page.get("total", 0) >= 102
    p.check.that("ains: the task list is paged as documented", good, page)


def standing(a: Ains) -> None:
    p, path = a.p, {"agent_id": AGENT}
    p.call("ains GET /ains/agents", params={"tag": TAG, "trust_min": 0.1, "limit": 25})
    detail = p.call("ains GET /ains/agents/{agent_id}", path=path)
    counts = detail.get("total_tasks_completed", 0) >= 102 and detail.get("total_tasks_failed", 0) >= 1
    p.check.that("ains: the agent's own counts", counts, detail)
    p.call("ains GET /ains/agents/leaderboard", params={"limit": 10})
    before = p.call("ains GET /ains/agents/{agent_id}/trust", path=path)
    history = p.call("ains GET /ains/agents/{agent_id}/trust/history", path=path, params={"limit": 10})
    adds_up = all(
        abs(r["trust_score_before"] + r["trust_delta"] - r["trust_score_after"]) < 1e-6
        for r in history.get("records", [])
    )
    good = adds_up and history.get("total_records", 0) >= 103
    p.check.that("ains: each trust record adds up", good, str(history)[:200])
    body = {"delta": -0.1, "reason": "conformance"}
    moved = p.call("ains POST /ains/agents/{agent_id}/trust/adjust", path=path, body=body)
    was, now = moved.get("trust_score_before", 9), moved.get("trust_score_after", 0)
    good = abs(was - 0.1 - now) < 1e-6 and abs(was - before.get("trust_score", 0)) < 1e-6
    p.check.that("ains: an adjustment moves the score by its delta", good, [before, moved])


def chains(a: Ains) -> None:
    p = a.p
    steps = [
        {"name": n, "task_type": n, "capability_required": TAG, "input_data": {"step": n}, "use_previous_output": i > 0}
        for i, n in enumerate(("extract", "transform", "load"))
    ]
    body = {"name": "ETL", "client_id": CLIENT, "description": "three steps", "steps": steps}
    chain_id = p.call("ains POST /ains/task-chains", body=body).get("chain_id")
    if not chain_id:
        return
    here = f"/ains/task-chains/{chain_id}"
    p.wait("ains: the chain completes", 60, lambda: a.get(here).json().get("status") == "COMPLETED")
    p.call("ains GET /ains/task-chains/{chain_id}", path={"chain_id": chain_id})
    passed_on = any(t["task_type"] == "load" and "transform" in json.dumps(t["input_data"]) for t in a.me.tasks)
    p.check.that("ains: a chain step receives the previous output", passed_on)


def schedules(a: Ains) -> None:
    key = "ains POST /ains/scheduled-tasks"
    body = EXAMPLES[key]["request"] | {"client_id": CLIENT, "capability_required": TAG}
    made = a.p.call(key, body=body)
    if made:
        a.p.check.that("ains: 02:00 New York is 02:00 there", "T02:00:00-0" in str(made.get("next_run_at")), made)
    bad = a.post("/ains/scheduled-tasks", body | {"cron_expression": "61 * * * *"})
    a.p.error("ains: a bad cron line is 400", bad, 400, "INVALID_CRON_EXPRESSION", CODE)


def templates(a: Ains) -> None:
    p, key = a.p, "ains POST /ains/task-templates"
    made = p.call(key, body=EXAMPLES[key]["request"] | {"client_id": CLIENT, "capability_required": TAG})
    if made:
        body = {
            "template_id": made["template_id"],
            "priority": 8,
            "input_data": {"hyperparameters": {"n_estimators": 200}},
        }
        task_id = p.call("ains POST /ains/tasks/from-template", status=201, body=body).get("task_id", "none")
        a.reaches("the template's task completes", task_id, "COMPLETED")
        merged = a.get(f"/ains/tasks/{task_id}").json().get("input_data", {})
        deep = merged.get("hyperparameters", {})
        good = deep.get("n_estimators") == 200 and deep.get("max_depth") == 10 and merged.get("validation_split") == 0.2
        p.check.that("ains: template input merges deeply", good, merged)
    unknown = a.post("/ains/tasks/from-template", {"template_id": "tmpl_none"})
    p.error("ains: an unknown template is 404", unknown, 404, "TEMPLATE_NOT_FOUND", CODE)


def deliveries(a: Ains, webhook_id: str) -> None:
    p = a.p
    p.wait("ains: a webhook arrives", 20, lambda: any(b"task.completed" in raw for _, raw in a.me.hooks))
    good = 0
    for headers, raw in a.me.hooks:
        signed = {k.lower(): v for k, v in headers.items()}.get("x-ains-signature", "").removeprefix("sha256=")
        own = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
        good += (
            hmac.compare_digest(signed, own) and {"event", "event_id", "timestamp", "data"} <= json.loads(raw).keys()
        )
    told = [good, len(a.me.hooks)]
    p.check.that("ains: X-AINS-Signature is the HMAC-SHA256 of the raw body", good == len(a.me.hooks) > 0, told)
    path = {"webhook_id": webhook_id}
    p.call("ains GET /ains/webhooks", params={"agent_id": AGENT})
    p.call("ains GET /ains/webhooks/{webhook_id}/deliveries", path=path, params={"limit": 50})
    p.call("ains PATCH /ains/webhooks/{webhook_id}", path=path, body={"active": False})
    p.call("ains DELETE /ains/webhooks/{webhook_id}", path=path)


def routing(a: Ains) -> None:
    body = {"capability_required": TAG, "routing_strategy": "trust_weighted", "priority": 7}
    a.p.call("ains POST /ains/routing/test", body=body)
    a.p.call("ains GET /ains/routing/strategies")
    nobody = a.post("/ains/routing/test", body | {"capability_required": "none:v1"})
    a.p.error("ains: routing with no capable agent is 503", nobody, 503, "INSUFFICIENT_CAPACITY", CODE)


def audit_and_usage(a: Ains) -> None:
    p = a.p
    p.call("ains GET /ains/audit-logs", params={"client_id": CLIENT, "limit": 50})
    key_id = a.get("/ains/api-keys", params={"client_id": CLIENT}).json()["keys"][0]["key_id"]
    usage = p.call("ains GET /ains/api-keys/{key_id}/usage", path={"key_id": key_id}, params={"period": "7d"})
    if usage:
        p.check.that("ains: usage counts the requests of this run", usage.get("total_requests", 0) > 40, usage)
    names = {k.lower() for k in a.get("/ains/version").headers}
    p.check.that("ains: rate limit headers", names >= LIMIT_HEADERS, names)


def poor_key(a: Ains) -> None:
    p = a.p
    body = {"client_id": CLIENT, "name": "poor", "scopes": ["agents:read"], "rate_limit_per_minute": 5}
    poor = p.http.post("/ains/api-keys", headers={"Authorization": f"Bearer {p.token}"}, json=body).json()
    x = {"X-API-Key": poor.get("api_key", "")}
    refused = p.http.post("/ains/tasks", headers=x, json=order())
    p.error("ains: a key without the scope is 403", refused, 403, "INSUFFICIENT_PERMISSIONS", CODE)
    # Eight and eight more: a minute may turn while the first are counted.
    limited = next(
        (r for r in (p.http.get("/ains/agents", headers=x) for _ in range(16)) if r.status_code == 429), refused
    )
    p.error("ains: past its limit a key is 429", limited, 429, "RATE_LIMIT_EXCEEDED", CODE)
    retry = limited.headers.get("retry-after", "")
    p.check.that("ains: 429 says when to retry", retry.isdigit(), dict(limited.headers))
    p.call("ains DELETE /ains/api-keys/{key_id}", path={"key_id": poor.get("key_id", "none")})
    p.error("ains: a revoked key is 401", p.http.get("/ains/agents", headers=x), 401, "INVALID_API_KEY", CODE)
