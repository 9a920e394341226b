"""What the gateway owns: every documented endpoint, the merged document, and the open paths."""

import json
import re
from pathlib import Path

import pytest
from http_harness import PASSWORD, Client

from cluster.identity.model import FINE_SCOPES
from serve_apps.core import Core
from serve_apps.dialects import DIALECTS
from serve_apps.gateway import Gateway, build_gateway
from serve_apps.kit.metrics import Metrics, exposition
from serve_apps.kit.routing import order, template
from serve_apps.scopes import OPEN as OPEN_TO_ALL
from serve_apps.scopes import SCOPES, SIGNED_IN

EXAMPLES = json.loads((Path(__file__).parents[2] / "contract" / "examples.json").read_text())
HTTP = {key: spec for key, spec in EXAMPLES.items() if spec["method"] != "WS"}
OPEN = {"/", "/healthz", "/health", "/readiness", "/metrics", "/docs", "/openapi.json"}
SPEAKS = {  # how to tell a dialect by its errors
    "aivillage": lambda body: "error_code" in body,
    "aifarm": lambda body: set(body) == {"error"} and "request_id" not in body["error"],
    "ains": lambda body: "request_id" in body["error"],
    "orchestra": lambda body: "metadata" in body,
    "forge": lambda body: body["status"] == 401,
}


def called(spec: dict) -> str:
    return re.sub(r"\{[^}]*\}", "some-id", spec["path"])


async def test_every_documented_endpoint_exists_and_asks_who_calls(client: Client):
    for key, spec in HTTP.items():
        path = called(spec)
        answer = await client.request(spec["method"], path, json=spec["request"] if spec["method"] != "GET" else None)
        if path in OPEN:
            assert answer.status_code in (200, 503), key
        else:
            assert answer.status_code == 401, (key, answer.text)
            assert path.startswith("/auth/") or SPEAKS[spec["system"]](answer.json()), (key, answer.text)


async def test_what_is_not_built_says_so(client: Client, admin, gateway: Gateway):
    stubs = {
        (method, template(route.path))
        for app in gateway.apps
        for route in app.api.routes
        for method in getattr(route, "methods", None) or ()
        if route.endpoint.__name__ == "not_built"
    }
    unbuilt = {key: spec for key, spec in HTTP.items() if (spec["method"], template(spec["path"])) in stubs}
    assert unbuilt
    for key, spec in unbuilt.items():
        answer = await client.request(spec["method"], called(spec), headers=admin, json=spec["request"])
        assert answer.status_code == 501, (key, answer.text)


def test_every_route_has_a_scope_and_every_scope_a_route(gateway: Gateway):
    served = {
        (app.dialect.tag, f"{method} {route.path_format}")
        for app in gateway.apps
        for route in app.api.routes
        for method in getattr(route, "methods", None) or ("WS",)
        if method != "HEAD"
    }
    assert served == {(tag, route) for tag, routes in SCOPES.items() for route in routes}
    assert {scope for routes in SCOPES.values() for scope in routes.values()} <= FINE_SCOPES | {
        OPEN_TO_ALL,
        SIGNED_IN,
        "admin",
    }


def test_a_route_without_a_scope_does_not_start(core: Core, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(SCOPES["AINS"], "GET /ains/version")
    with pytest.raises(KeyError, match="/ains/version"):
        build_gateway(core)


async def test_no_route_answers_to_a_key_without_its_scope(client: Client, core: Core):
    who = await core.identity.create_user("nobody", PASSWORD, frozenset())
    nobody = {"Authorization": f"Bearer {(await core.identity.token(who.username, PASSWORD)).access_token}"}
    for routes in SCOPES.values():
        for route, scope in routes.items():
            method, path = route.split()
            if method == "WS" or scope == OPEN_TO_ALL:
                continue
            path = re.sub(r"\{[^}]*\}", "some-id", path)
            assert (await client.request(method, path)).status_code == 401, route
            answer = await client.request(method, path, headers=nobody, content=b"{nonsense")
            assert answer.status_code == 403 or scope == SIGNED_IN, (route, answer.text)


async def test_open_paths_need_nobody(client: Client):
    for path in OPEN:
        assert (await client.get(path)).status_code == 200, path
        assert (await client.get(path, headers={"Authorization": "Bearer stale"})).status_code == 200, path


async def test_one_document_describes_every_built_route(client: Client, gateway: Gateway):
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    operations = [o for path in document["paths"].values() for o in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids)), sorted(i for i in ids if ids.count(i) > 1)
    assert all(len(operation["tags"]) == 1 for operation in operations)
    assert {o["tags"][0] for o in operations} <= {tag["name"] for tag in document["tags"]}
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= document["components"]["schemas"].keys()
    for app in gateway.apps:
        for route in app.api.routes:
            if getattr(route, "include_in_schema", False) and hasattr(route, "operation_id"):
                assert set(m.lower() for m in route.methods) <= document["paths"][route.path_format].keys()
    info = document["paths"]["/"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(info["required"]) >= {"success", "data", "request_id"}
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert document["paths"]["/ains/api-keys"]["post"]["security"]


async def test_the_docs_page_loads_nothing_from_elsewhere(client: Client):
    page = (await client.get("/docs")).text
    assert "/ains/api-keys" in page and "http://" not in page and "https://" not in page and "<script" not in page


async def test_what_is_not_ready_is_named(client: Client, core: Core):
    async def away() -> bool:
        raise ConnectionError

    core.readiness.probes["router"] = away
    answer = await client.get("/readiness")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "checks": {"store": True, "router": False}})
    health = (await client.get("/health")).json()
    assert health["status"] == "degraded" and health["components"]["router"] == "degraded"
    assert {"version", "uptime", "timestamp", "checks"} <= health.keys()


async def test_metrics_count_requests_by_route_and_not_by_path(client: Client, admin):
    for _ in range(2):
        await client.get("/jobs/some-job", headers=admin)
    await client.get("/nowhere/1")
    text = (await client.get("/metrics")).text
    assert 'http_requests_total{endpoint="/jobs/{job_id}",method="GET",status="501"} 2.0' in text
    assert 'endpoint="unknown",method="GET",status="404"' in text and "some-job" not in text
    assert "websocket_connections 0.0" in text and "http_request_duration_seconds_bucket" in text


async def test_metrics_of_a_dead_sibling_are_left_out(tmp_path: Path):
    own = Metrics()
    own.answered("GET", "/x", 200, 0.01)
    gone = tmp_path / "gateway-1.sock"
    gone.touch()
    assert 'http_requests_total{endpoint="/x",method="GET",status="200"} 1.0' in await exposition(own, [gone])


def test_no_two_dialects_own_a_path():
    owned = [path for dialect in DIALECTS for path in dialect.owns]
    assert len(owned) == len(set(owned))


def test_the_longest_prefix_owns_a_path(gateway: Gateway):
    def tag(path: str, kind: str = "http") -> str:
        return gateway.owner({"type": kind, "path": path}).dialect.tag  # type: ignore[attr-defined]

    assert tag("/v1/fine-tune") == "Forge" and tag("/v1/models") == "AIVillage" and tag("/models/active") == "Forge"
    assert tag("/") == "AIVillage" and tag("/farm/ws", "websocket") == "AIFarm" and tag("/jobsomething") == "AIVillage"


def test_a_literal_path_comes_before_one_with_parameters(gateway: Gateway):
    ains = next(app for app in gateway.apps if app.dialect.tag == "AINS")
    paths = [route.path for route in ains.api.routes]
    assert paths.index("/ains/agents/leaderboard") < paths.index("/ains/agents/{agent_id}")
    assert sorted(paths, key=lambda p: order(type("R", (), {"path": p}))) == paths
