"""AI Orchestra's envelope: `success`, `data`, `metadata`, `error`."""

from typing import Any

from cluster.clock import iso
from serve_apps.kit.call import Call
from serve_apps.kit.envelope import enveloped


def envelope(body: bytes, call: Call) -> bytes:
    """`{"success": true, "data": body, ...}`."""
    metadata = f'{{"request_id": "{call.request_id}", "timestamp": "{iso(call.at)}", "version": "v2"}}'
    return b'{"success": true, "data": ' + body + f', "metadata": {metadata}, "error": null}}'.encode()


def wrap_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, for the OpenAPI document."""
    metadata = {key: {"type": "string"} for key in ("request_id", "timestamp", "version")}
    return {
        "type": "object",
        "required": ["success", "data", "metadata", "error"],
        "properties": {
            "success": {"type": "boolean"},
            "data": schema,
            "metadata": {"type": "object", "properties": metadata},
            "error": {"type": "null"},
        },
    }


OrchestraRoute = enveloped(envelope)
