"""AIVillage's envelope: `success`, `data`, `message`, `timestamp`, `request_id`."""

import json
from typing import Any

from cluster.clock import iso
from serve_apps.kit.call import Call
from serve_apps.kit.envelope import enveloped


def envelope(body: bytes, call: Call) -> bytes:
    """`{"success": true, "data": body, ...}`."""
    message = json.dumps(call.message).encode()
    rest = f', "timestamp": "{iso(call.at)}", "request_id": "{call.request_id}"}}'.encode()
    return b'{"success": true, "data": ' + body + b', "message": ' + message + rest


def wrap_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, for the OpenAPI document."""
    return {
        "type": "object",
        "required": ["success", "data", "message", "timestamp", "request_id"],
        "properties": {
            "success": {"type": "boolean"},
            "data": schema,
            "message": {"type": "string"},
            "timestamp": {"type": "string", "format": "date-time"},
            "request_id": {"type": "string"},
        },
    }


VillageRoute = enveloped(envelope)
