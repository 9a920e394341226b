"""The OpenAPI document as a page for people, which loads nothing from anywhere and runs nothing."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; max-height: 28rem; border-radius: 4px;
  margin: .3rem 0; }
nav a { margin-right: 1.2rem; white-space: nowrap; }
h2 { margin-top: 2.5rem; border-bottom: 2px solid var(--line); }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; scroll-margin-top: 1rem; }
details > *:not(summary) { margin-left: 1.2rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary b { display: inline-block; min-width: 4.2rem; font: bold 13px ui-monospace, monospace; }
.scope, .planned { font-size: 13px; border: 1px solid var(--line); border-radius: 4px; padding: 0 .4rem;
  margin-left: .5rem; white-space: nowrap; }
.planned { background: var(--soft); }
.about { opacity: .8; display: block; margin-left: 1.2rem; }
table { border-collapse: collapse; font-size: 14px; }
td { padding: .15rem 1rem .15rem 0; vertical-align: top; }
h4 { margin: .8rem 0 .2rem; }
"""


def page(document: dict[str, Any]) -> str:
    """The page."""
    tags = document["tags"]
    links = "".join(f"<a href='#{escape(tag['name'])}'>{escape(tag['description'])}</a>" for tag in tags)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width'><title>AIVillage API</title><style>{STYLE}</style>"
        f"<h1>AIVillage API</h1><p>{_prose(document['info']['description'])} "
        f"The machine-readable form is <a href=openapi.json>openapi.json</a>.</p>"
        f"<nav>{links}</nav>{''.join(_dialect(document, tag) for tag in tags)}</html>"
    )


def _dialect(document: dict[str, Any], tag: dict[str, str]) -> str:
    name = tag["name"]
    entries = [
        _operation(document, method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if name in operation["tags"]
    ] + [_socket(socket) for socket in document["x-websockets"] if socket["tag"] == name]
    return f"<section><h2 id='{escape(name)}'>{escape(tag['description'])}</h2>{''.join(entries)}</section>"


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    ways = [scopes for way in operation["security"][:1] for scopes in way.values()]
    needs = [scope for scopes in ways for scope in scopes or ("signed in",)]
    head = _head(method.upper(), path, needs, operation.get("x-status") == "planned", operation.get("description", ""))
    body = [_parameters(document, operation), *_requests(document, operation), *_answers(document, operation)]
    if "x-planned-response" in operation:
        body.append(f"<h4>Answer, once it is built</h4>{_json(operation['x-planned-response'])}")
    return f"<details id='{escape(operation['operationId'])}'>{head}{''.join(body)}</details>"


def _socket(socket: dict[str, Any]) -> str:
    planned = socket["x-status"] == "planned"
    head = _head("WS", socket["path"], [socket["scope"]], planned, socket["description"])
    shown = "".join(f"<h4>Example</h4>{_json(value)}" for value in socket["examples"].values() if value is not None)
    return f"<details>{head}{shown}</details>"


def _head(method: str, path: str, needs: list[str], planned: bool, about: str) -> str:
    marks = "".join(f"<span class=scope>{escape(need)}</span>" for need in needs or ["open"])
    marks += "<span class=planned>planned</span>" if planned else ""
    told = f"<span class=about>{_prose(about)}</span>" if about else ""
    return f"<summary><b>{method}</b><code>{escape(path)}</code>{marks}{told}</summary>"


def _parameters(document: dict[str, Any], operation: dict[str, Any]) -> str:
    rows = []
    for given in operation.get("parameters", []):
        one = _resolved(document, given)
        where = one["in"] + (", required" if one.get("required") and one["in"] != "path" else "")
        rows.append(_row(_code(one["name"]), where, _prose(one["description"]) + _bounds(document, one["schema"])))
    return f"<h4>Parameters</h4>{_table(rows)}" if rows else ""


def _bounds(document: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a value may be: choices, limits, and what counts where it is left out."""
    told = []
    for one in (_resolved(document, choice) for choice in schema.get("anyOf", [schema])):
        if "enum" in one:
            told.append("one of " + ", ".join(_code(value) for value in one["enum"]))
        low, high = one.get("minimum", one.get("minLength")), one.get("maximum", one.get("maxLength"))
        if low is not None or high is not None:
            told.append(" ".join(f"{word} {n}" for word, n in (("from", low), ("to", high)) if n is not None))
    if schema.get("default") not in (None, "", [], {}):
        told.append(f"without it {_code(json.dumps(schema['default']))}")
    return "".join(f"; {each}" for each in told)


def _requests(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<h4>Request {_code(media)}</h4>"
        for choice in content["schema"].get("anyOf", [content["schema"]]):
            yield _fields(document, _resolved(document, choice))
        for example in content.get("examples", {}).values():
            yield _json(example["value"])


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> str:
    rows = []
    for name, one in schema.get("properties", {}).items():
        kinds = [_resolved(document, choice).get("type", "any") for choice in one.get("anyOf", [one])]
        must = ", required" if name in schema.get("required", ()) else ""
        about = (_prose(one.get("description", "")) + _bounds(document, one)).removeprefix("; ")
        rows.append(_row(_code(name), " or ".join(kinds) + must, about))
    return _table(rows) if rows else ""


def _answers(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    refused = []
    for status, given in operation["responses"].items():
        response = _resolved(document, given)
        if "$ref" in given:
            codes = response["content"]["application/json"]["examples"]
            refused.append(
                _row(_code(status), _prose(response["description"]), " ".join(_code(code) for code in codes))
            )
            continue
        kinds = ", ".join(_code(kind) for kind in response.get("content", {}))
        yield f"<h4>Answer {_code(status)} {kinds}</h4>{_prose(response['description'])}"
        for content in response.get("content", {}).values():
            for example in content.get("examples", {}).values():
                yield _json(example["value"])
    yield f"<h4>Errors</h4>{_table(refused)}"


def _resolved(document: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in given:
        return given
    _, _, kind, name = given["$ref"].split("/")
    return document["components"][kind][name]


def _table(rows: list[str]) -> str:
    return f"<table>{''.join(rows)}</table>"


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}</tr>"


def _code(text: Any) -> str:
    return f"<code>{escape(str(text))}</code>"


def _prose(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
