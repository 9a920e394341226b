"""AI Orchestra: chat with modes and swarms, token streaming, health, metrics."""

import json
import re
from contextlib import suppress
from typing import Any

import httpx
from contract.conformance.platform import NOT_BUILT, RUN, NotYet, Platform

CODE = "error.code"


def run(p: Platform) -> None:
    """The whole document."""
    bare = httpx.Client(base_url=p.url)
    p.error(
        "orchestra: no token is 401",
        bare.post("/chat/v2/chat", json={"message": "hi"}),
        401,
        "AUTHENTICATION_ERROR",
        CODE,
    )
    p.error("orchestra: a missing message is 400", p.post("/chat/v2/chat", {}), 400, "VALIDATION_ERROR", CODE)
    chat(p)
    with suppress(NotYet):
        socket(p)
    for key in ("orchestra GET /health", "orchestra GET /readiness"):
        p.call(key)
    text = p.http.get("/metrics").text
    p.called.add("orchestra GET /metrics")
    good = re.search(r"(?m)^http_requests_total\{[^}]*\} \d", text) and "websocket_connections" in text
    p.check.that("orchestra GET /metrics is Prometheus text", good, text[:200])
    old = p.post("/chat/v1/chat", {"text": "Hello", "sessionId": "123"})
    what = "orchestra: the v1 request form is still served and marked deprecated"
    if old.status_code in (404, NOT_BUILT):  # not among the document's endpoints: it comes with the chat
        p.check.later(what)
    else:
        names = {k.lower() for k in old.headers}
        p.check.that(what, old.status_code == 200 and "deprecation" in names, [old.status_code, names])


def chat(p: Platform) -> None:
    key = "orchestra POST /chat/v2/chat"
    said: dict[str, Any] = {}
    for mode in ("lite", "balanced", "quality"):
        body = {"message": "Explain quantum computing", "session_id": f"user-{RUN}", "optimization_mode": mode}
        said = p.call(key, body=body)
        if not said:
            return
    for swarm in ("coding-team", "research-team", "creative-team", "coding-debate"):
        body = {
            "message": "Reverse a list",
            "session_id": f"swarm-{RUN}",
            "optimization_mode": "lite",
            "swarm_type": swarm,
        }
        said = p.call(key, body=body)
        steps = said.get("data", {}).get("metadata", {}).get("processing_steps", [])
        p.check.that(f"orchestra: {swarm} shows the steps of more than one member", len(steps) > 1, str(said)[:200])


def socket(p: Platform) -> None:
    url = p.url.replace("http", "ws") + f"/chat/ws/client-{RUN}/session-{RUN}"
    with p.socket("orchestra WS /chat/ws/{client_id}/{session_id}", url, p.headers()) as ws:
        ws.send(json.dumps({"type": "control", "data": {"action": "ping"}}))
        p.check.that("orchestra WS control ping", json.loads(ws.recv(timeout=10)).get("type") == "control")
        ws.send(json.dumps({"type": "chat", "data": {"message": "Hello AI", "context": {}}}))
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1].get("type") != "chat":
            seen.append(json.loads(ws.recv(timeout=60)))
        good = any(m["type"] == "stream" for m in seen) and seen[-1]["data"].get("response")
        p.check.that("orchestra WS streams tokens, then the whole reply", good, seen[-1:])
