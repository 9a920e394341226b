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
