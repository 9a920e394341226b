"""The OpenAPI document: valid, whole, true to the routes and the contract's examples, and the same as is committed."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from http_harness import Client
from schemathesis.specs.openapi.definitions import OPENAPI_31

from serve_apps.dialects import DIALECTS
from serve_apps.gateway import Gateway
from serve_apps.kit.documented import NOT_BUILT
from serve_apps.kit.openapi import examples
from serve_apps.openapi import document, text
from serve_apps.scopes import OPEN, SCOPES, SIGNED_IN

ROOT = Path(__file__).parents[3]
CONTRACT = ROOT / "tests" / "contract" / "examples.json"
DOCUMENT: dict[str, Any] = document()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
BUILT = {name: operation for name, operation in OPERATIONS.items() if operation.get("x-status") != "planned"}


def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema | {"components": DOCUMENT["components"]})


def resolved(response: dict[str, Any]) -> dict[str, Any]:
    reference = response.get("$ref")
    return DOCUMENT["components"]["responses"][reference.rpartition("/")[2]] if reference else response


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema of the document's paths and components."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "schema":
                yield value
            elif key not in ("example", "examples"):
                yield from schemas(value)
    elif isinstance(node, list):
        for value in node:
            yield from schemas(value)


def test_the_document_is_valid_openapi_3_1():
    faults = jsonschema_rs.validator_for(OPENAPI_31).iter_errors(DOCUMENT)
    assert not [f"{fault.instance_path}: {fault.message}" for fault in faults]
    for schema in (*schemas(DOCUMENT), *DOCUMENT["components"]["schemas"].values()):
        jsonschema_rs.meta.validate(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"})


def test_every_reference_leads_somewhere():
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT))):
        node = DOCUMENT
        for part in reference.split("/"):
            node = node[part]


def test_the_committed_document_is_what_the_code_says():
    assert (ROOT / "docs" / "openapi.json").read_text() == text(DOCUMENT), "docs/openapi.json is stale: `make openapi`"


def test_the_examples_are_those_of_the_contract():
    shipped = ROOT / "serve_apps" / "kit" / "examples.json"
    assert shipped.read_bytes() == CONTRACT.read_bytes(), f"{shipped.name} is stale: `make openapi`"


def test_every_documented_endpoint_is_in_the_document_with_its_example():
    sockets = {socket["path"] for socket in DOCUMENT["x-websockets"]}
    for key, spec in json.loads(CONTRACT.read_text()).items():
        if spec["method"] == "WS":
            assert any(re.sub(r"\{.*?\}", "", path) == re.sub(r"\{.*?\}", "", spec["path"]) for path in sockets), key
            continue
        operation = next(
            operation for name, operation in OPERATIONS.items()
            if re.sub(r"\{.*?\}", "{}", name) == re.sub(r"\{.*?\}", "{}", f"{spec['method']} {spec['path']}")
        )  # fmt: skip
        shown = json.dumps(operation)
        for told in (spec["request"], spec["response"]):
            assert told is None or json.dumps(told) in shown, key


def test_every_example_of_a_request_keeps_its_schema():
    wrong = []
    for name, operation in OPERATIONS.items():
        for media in operation.get("requestBody", {}).get("content", {}).values():
            for system, example in media.get("examples", {}).items():
                wrong += [
                    f"{system} {name}: {e.message}" for e in validator(media["schema"]).iter_errors(example["value"])
                ]
    assert not wrong, "\n".join(wrong)


def test_an_example_of_an_answer_lacks_nothing_but_what_we_have_beside_the_documents():
    answers = {f"{n} {s}": r for n, o in BUILT.items() for s, r in o["responses"].items() if "$ref" not in r}
    wrong = []
    for name, response in (answers | DOCUMENT["components"]["responses"]).items():
        media = response.get("content", {}).get("application/json", {})
        if media.get("examples"):
            checked = validator(media["schema"])
            for system, example in media["examples"].items():
                faults = [f for f in checked.iter_errors(example["value"]) if not (name in answers and lacks(f))]
                wrong += [f"{name} {system}: {fault.message}" for fault in faults]
    assert not wrong, "\n".join(wrong)


def lacks(fault: jsonschema_rs.ValidationError) -> bool:
    return fault.message.endswith("is a required property")


def test_operation_ids_are_unique_and_tell_the_dialect():
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(ids) == len(set(ids)), sorted(i for i in ids if ids.count(i) > 1)
    for operation in OPERATIONS.values():
        [tag] = operation["tags"]
        assert re.fullmatch(rf"{tag.lower()}_[a-z0-9_]+", operation["operationId"])


def test_every_route_is_in_the_document_with_its_scope(gateway: Gateway):
    told = set()
    for tag, routes in SCOPES.items():
        for route, scope in routes.items():
            method, path = route.split()
            if method == "WS":
                [socket] = [s for s in DOCUMENT["x-websockets"] if (s["tag"], s["path"]) == (tag, path)]
                assert socket["scope"] == scope
                continue
            told.add(route)
            ways = OPERATIONS[route]["security"]
            if scope == OPEN:
                assert ways == [], route
            else:
                needed = [] if scope == SIGNED_IN else [scope]
                assert ways == [{"bearer": needed}, {"apiKey": needed}], route
    assert told == OPERATIONS.keys()


def test_every_parameter_and_operation_is_described():
    for name, operation in OPERATIONS.items():
        assert operation.get("description"), name
        for parameter in operation.get("parameters", []):
            assert "$ref" in parameter or parameter["description"], (name, parameter)
        placed = {p["name"] for p in operation.get("parameters", []) if p.get("in") == "path"}
        assert placed == set(re.findall(r"\{(\w+)", name)), name


def test_what_is_planned_says_so_and_promises_nothing(gateway: Gateway):
    stubs = {
        f"{method} {route.path}"
        for app in gateway.apps
        for route in app.api.routes
        for method in getattr(route, "methods", None) or ()
        if getattr(route, "endpoint", None) in NOT_BUILT
    }
    assert OPERATIONS.keys() - BUILT.keys() == stubs
    for name in stubs:
        assert "501" in OPERATIONS[name]["responses"], name
        assert not [status for status in OPERATIONS[name]["responses"] if status < "300"], name


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.tag)
def test_every_error_is_the_dialects_own_with_its_codes(dialect):
    for code, status in dialect.codes.values():
        response = DOCUMENT["components"]["responses"].get(f"{dialect.tag}.{status}")
        if response is not None:  # a status that no operation of the dialect answers with is left out
            assert code in response["content"]["application/json"]["examples"], (code, status)
    mine = [o for o in OPERATIONS.values() if o["tags"] == [dialect.tag]]
    for operation in mine:
        for status, response in operation["responses"].items():
            if status >= "400" and "$ref" in response:
                assert response["$ref"].endswith(f"/{dialect.tag}.{status}")


def test_every_answer_tells_its_request_id_and_where_the_caller_stands():
    counted = {tag: d.uncounted for d in DIALECTS for tag in (d.tag,)}
    for name, operation in OPERATIONS.items():
        for status, response in operation["responses"].items():
            headers = resolved(response)["headers"] if "$ref" in response or status < "300" else {"X-Request-ID": 1}
            assert "X-Request-ID" in headers, (name, status)
            if name.split()[1] not in counted[operation["tags"][0]] and status < "300":
                assert "RateLimit" in headers and any(n.lower().startswith("x-ratelimit") for n in headers), name


def test_a_post_takes_an_idempotency_key():
    for name, operation in OPERATIONS.items():
        takes = {"$ref": "#/components/parameters/Idempotency-Key"} in operation.get("parameters", [])
        assert takes == name.startswith("POST "), name


def test_both_documents_of_one_endpoint_are_shown():
    assert {system for system, _ in examples("GET", "/health")} == {"orchestra", "forge"}
    shown = OPERATIONS["GET /health"]["responses"]["200"]["content"]["application/json"]["examples"]
    assert shown.keys() == {"orchestra", "forge"}


async def test_the_gateway_serves_the_committed_document(client: Client):
    assert (await client.get("/openapi.json")).json() == DOCUMENT


class Page(HTMLParser):
    """Every tag is closed, ids are unique, and links lead to the page itself or the document."""

    EMPTY = frozenset({"meta", "!doctype", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.entries = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        self.loads += [tag] if tag in ("script", "link", "img", "iframe") or "src" in given else []
        self.entries += tag == "details"
        if tag not in self.EMPTY and tag != "td":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


async def test_the_docs_page_lists_everything_and_loads_nothing(client: Client):
    answer = await client.get("/docs")
    page = Page()
    page.feed(answer.text)
    assert not page.open and not page.loads
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} == {d.tag for d in DIALECTS}
    assert [link for link in page.links if not link.startswith("#")] == ["openapi.json"]
    assert page.entries == len(OPERATIONS) + len(DOCUMENT["x-websockets"])
    assert "default-src 'none'" in answer.headers["content-security-policy"]
