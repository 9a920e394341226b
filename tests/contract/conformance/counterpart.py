"""The platform's counterparts, played for real: an agent that executes tasks, and a webhook receiver."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Counterpart:
    """An HTTP server on loopback; `/hook` takes webhooks, anything else is a task."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.hooks: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.path.startswith("/hook"):
                    outer.hooks.append((dict(self.headers), raw))
                    reply: dict[str, Any] = {"received": True}
                else:
                    reply = outer.execute(json.loads(raw))
                payload = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None: ...  # the platform closes the connection of a task past its time

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Takes as long as, and fails when, the input says."""
        self.tasks.append(task)
        data = task.get("input_data", {})
        threading.Event().wait(data.get("sleep", 0))
        if data.get("fail"):
            return {"status": "FAILED", "error": "asked to fail"}
        return {"status": "COMPLETED", "result_data": {"echo": data, "records": 3}}


def signed_registration(agent_id: str, endpoint: str, tags: list[str]) -> dict[str, Any]:
    """The signature is Ed25519 over the canonical JSON (RFC 8785) of the other required fields."""
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    body: dict[str, Any] = {
        "agent_id": agent_id, "display_name": f"Agent {agent_id}", "public_key": pem, "endpoint": endpoint, "tags": tags
    }  # fmt: skip
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return body | {
        "signature": base64.b64encode(key.sign(canonical)).decode(),
        "metadata": {"region": "us-east-1", "max_concurrent_tasks": 10},
    }
