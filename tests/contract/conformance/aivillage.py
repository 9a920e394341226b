"""AIVillage: sign-in, training, chat, agents, P2P, fog, knowledge."""

import json
import time
from contextlib import suppress
from typing import Any

import httpx
from contract.conformance.platform import EXAMPLES, RUN, SAMPLE, NotYet, Platform
from contract.shapes import mismatches
from websockets.sync.client import ClientConnection

LIMIT_HEADERS = {f"x-ratelimit-{name}" for name in ("tier", "limit", "remaining", "reset", "reset-after")}
TRAINING_SECONDS = 240


def run(p: Platform) -> None:
    """The whole document."""
    doors(p)
    with suppress(NotYet):
        training(p)
    models_and_chat(p)
    agents(p)
    p2p(p)
    fog(p)
    knowledge(p)
    tokens(p)


def doors(p: Platform) -> None:
    bare = httpx.Client(base_url=p.url, timeout=60)
    refused = (401, "AUTHENTICATION_REQUIRED", "error_code")
    p.error("aivillage: no token is 401", bare.get("/v1/models"), *refused)
    forged = {"Authorization": f"Bearer {p.token[:-3]}abc"}
    p.error("aivillage: a forged token is 401", bare.get("/v1/models", headers=forged), *refused)
    wrong = bare.post("/auth/token", json={"username": "nobody", "password": "x"})
    p.error("aivillage: a wrong password is 401", wrong, *refused)
    answer = p.post("/v1/models/train", {"phase_name": "no_such_phase"})
    p.error("aivillage: an unknown phase is 400", answer, 400, "VALIDATION_ERROR", "error_code")
    names = {k.lower() for k in answer.headers}
    p.check.that("aivillage: rate limit headers", names >= LIMIT_HEADERS, names)
    unknown = p.get("/v1/models/train/task_none/status")
    p.error("aivillage: an unknown task is 404", unknown, 404, "RESOURCE_NOT_FOUND", "error_code")
    p.call("aivillage GET /healthz")
    p.call("aivillage GET /")


def training(p: Platform) -> None:
    with p.socket("aivillage WS /ws", p.url.replace("http", "ws") + "/ws", p.headers()) as ws:
        hello = json.loads(ws.recv(timeout=10))
        found = mismatches(EXAMPLES["aivillage WS /ws"]["request"], hello)
        good = hello.get("type") == "connection_established" and not found
        p.check.that("aivillage WS /ws greets", good, found or hello)
        ws.send(json.dumps({"type": "ping", "timestamp": "2025-01-15T10:30:00Z"}))
        p.check.that("aivillage WS ping is answered", json.loads(ws.recv(timeout=10)).get("type") == "pong")
        ws.send(json.dumps({"type": "subscribe", "topics": ["training_progress", "agent_messages", "p2p_events"]}))
        ws.send(json.dumps({"type": "get_status", "components": ["agents", "p2p", "fog"]}))
        order = {"phase_name": "cognate", "parameters": {}, "real_training": True, "max_steps": 30, "batch_size": 4}
        task_id = p.call("aivillage POST /v1/models/train", body=order).get("data", {}).get("task_id")
        if not task_id:
            return
        seen = progress(ws, task_id)
    answered = any("agents" in json.dumps(m) and "progress" not in m for m in seen)
    p.check.that("aivillage WS get_status is answered", answered)
    steps = [m for m in seen if m.get("type") == "training_progress" and m.get("task_id") == task_id]
    p.check.that("aivillage WS training_progress arrives more than once", len(steps) > 1, len(steps))
    falls = len(steps) > 1 and steps[-1]["metrics"]["loss"] < steps[0]["metrics"]["loss"]
    p.check.that("aivillage WS training_progress carries a loss that falls", falls, steps[:1] + steps[-1:])
    status = f"/v1/models/train/{task_id}/status"

    def completed() -> bool:
        return p.get(status).json().get("data", {}).get("status") == "completed"

    p.wait("aivillage: the training completes", TRAINING_SECONDS, completed)
    p.call("aivillage GET /v1/models/train/{task_id}/status", path={"task_id": task_id})
    logs = p.get(f"/v1/models/train/{task_id}/logs")
    p.check.that("aivillage: the training has logs", logs.status_code == 200)


def progress(ws: ClientConnection, task_id: str) -> list[dict[str, Any]]:
    """What arrives until the training is at its end."""
    seen: list[dict[str, Any]] = []
    end = time.monotonic() + TRAINING_SECONDS
    while time.monotonic() < end:
        try:
            message = json.loads(ws.recv(timeout=5))
        except TimeoutError:
            continue
        seen.append(message)
        ours = message.get("type") == "training_progress" and message.get("task_id") == task_id
        if ours and message.get("progress", 0) >= 1:
            break
    return seen


def models_and_chat(p: Platform) -> None:
    listed = p.call("aivillage GET /v1/models", params={"status": "completed"})
    if not listed:
        return
    models = listed.get("data", {}).get("models", [])
    if p.check.that("aivillage: the trained model is listed", models, listed):
        download = p.get(models[0]["download_url"], follow_redirects=True)
        whole = download.status_code == 200 and len(download.content) > 10_000
        p.check.that("aivillage: the model can be downloaded", whole, download.status_code)
        chat(p, models[0]["model_id"])
    unknown = p.post("/v1/chat", {"model_id": "model_none", "message": "hi"})
    p.error("aivillage: chat with an unknown model is 404", unknown, 404, "RESOURCE_NOT_FOUND", "error_code")


def chat(p: Platform, model_id: str) -> None:
    body = {
        "model_id": model_id, "message": "What is the capital of France?", "conversation_id": f"conv_{RUN}",
        "stream": False, "parameters": {"temperature": 0.0, "max_tokens": 16, "top_p": 0.9},
    }  # fmt: skip
    said = p.call("aivillage POST /v1/chat", body=body).get("data", {})
    if not said:
        return
    usage = said["usage"]
    adds_up = usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    p.check.that("aivillage: chat usage adds up", usage["completion_tokens"] > 0 and adds_up, said)
    again = p.call("aivillage POST /v1/chat", body=body | {"conversation_id": f"conv_{RUN}b"}).get("data", {})
    p.check.that("aivillage: greedy chat is repeatable", said["response"] == again.get("response"), [said, again])
    with p.http.stream("POST", "/v1/chat", headers=p.headers(), json=body | {"stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data:")]
    p.check.that("aivillage: chat streams server-sent events", len(lines) > 2, lines[:2])


def agents(p: Platform) -> None:
    found = p.call("aivillage GET /v1/agents").get("data", {})
    if found:
        good = found.get("total_agents") == 54 and len(found.get("categories", [])) == 6
        p.check.that(
            "aivillage: 54 agents in six categories", good, [found.get("total_agents"), found.get("categories")]
        )
    key = "aivillage POST /v1/agents/{agent_id}/message"
    p.call(key, path={"agent_id": "governance_king"}, body=EXAMPLES[key]["request"])
    key = "aivillage POST /v1/agents/conversation"
    p.call(key, body=EXAMPLES[key]["request"] | {"conversation_id": f"conv_a{RUN}"})
    unknown = p.post("/v1/agents/nobody/message", {"message": {"type": "query", "content": "hi"}})
    p.error("aivillage: a message to an unknown agent is 404", unknown, 404, "RESOURCE_NOT_FOUND", "error_code")


def p2p(p: Platform) -> None:
    p.call("aivillage GET /v1/p2p/status")
    seek = {"discovery_types": ["local", "dht"], "timeout_seconds": 3, "max_peers": 50}
    p.call("aivillage POST /v1/p2p/discover", body=seek)
    key = "aivillage POST /v1/p2p/message"
    unknown = p.post("/v1/p2p/message", {"recipient": "peer_none", "message": {"type": "x", "payload": {}}})
    p.error("aivillage: a message to an unknown peer is 503", unknown, 503, "P2P_NETWORK_ERROR", "error_code", key)


def fog(p: Platform) -> None:
    nodes = p.call("aivillage GET /v1/fog/nodes", params={"status": "all"}).get("data", {})
    if nodes:
        p.check.that("aivillage: at least one fog node", nodes.get("nodes"), nodes)
    order = EXAMPLES["aivillage POST /v1/fog/jobs"]["request"] | {
        "job_name": f"conformance-{RUN}", "privacy_tier": "bronze", "max_cost": 5.0,
        "requirements": {"cpu_cores": 1, "memory_gb": 1, "gpu_count": 0, "estimated_duration_hours": 0.01},
        "code": {"inline": "print('fog says', 6 * 7)", "entry_point": "main.py"}, "environment": {}, "data": {},
    }  # fmt: skip
    job_id = p.call("aivillage POST /v1/fog/jobs", body=order).get("data", {}).get("job_id")
    if not job_id:
        return
    status = f"/v1/fog/jobs/{job_id}/status"

    def completed() -> bool:
        return p.get(status).json().get("data", {}).get("status") == "completed"

    p.wait("aivillage: the fog job completes", 120, completed)
    p.call("aivillage GET /v1/fog/jobs/{job_id}/status", path={"job_id": job_id})
    logs = p.get(f"/v1/fog/jobs/{job_id}/logs").text
    p.check.that("aivillage: the fog job's own output is in its logs", "fog says 42" in logs, logs)
    need = {"cpu_cores": 100_000, "memory_gb": 1, "gpu_count": 0, "estimated_duration_hours": 1}
    huge = p.post("/v1/fog/jobs", order | {"requirements": need})
    p.error("aivillage: a job no node can hold is 503", huge, 503, "INSUFFICIENT_RESOURCES", "error_code")


def knowledge(p: Platform) -> None:
    key = "aivillage POST /v1/knowledge"
    if p.call(key, body=EXAMPLES[key]["request"] | {"content": SAMPLE}):
        ask = {"query": "Which transport gives the highest throughput?", "max_results": 5, "include_sources": True}
        answer = p.call("aivillage POST /v1/query", body=ask | {"mode": "comprehensive"}).get("data", {})
        good = "QUIC" in json.dumps(answer) and answer.get("sources")
        p.check.that("aivillage: the answer names QUIC from its source", good, answer)
    about = json.dumps({"category": "research", "tags": ["p2p"], "auto_extract": True})
    files = {"file": ("transport.md", SAMPLE.encode(), "text/markdown"), "metadata": (None, about, "application/json")}
    sent = p.judge("aivillage POST /v1/upload", p.post("/v1/upload", files=files), {200, 201})
    p.call("aivillage GET /v1/files", params={"category": "research"})
    if sent:
        back = p.get(sent["data"]["download_url"])
        p.check.that("aivillage: the file comes back byte for byte", back.content == SAMPLE.encode(), back.status_code)


def tokens(p: Platform) -> None:
    fresh = p.call("aivillage POST /auth/refresh", body={"refresh_token": p.refresh})
    p.check.that("aivillage: refresh gives a new access token", fresh.get("access_token"), fresh)
    used = p.http.post("/auth/refresh", json={"refresh_token": p.refresh})
    p.error("aivillage: a used refresh token is refused", used, 401, "AUTHENTICATION_REQUIRED", "error_code")
