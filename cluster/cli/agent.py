"""A small real agent: registers with a signature, takes tasks over HTTP, does them, and answers."""

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cluster.ids import new_id
from cluster.workers.signature import signed_bytes

TAGS = ["word-count:v1", "sha256:v1", "factorise:v1"]


def word_count(data: dict[str, Any]) -> dict[str, Any]:
    """How many words, and the most frequent ones."""
    words = str(data["text"]).lower().split()
    return {"words": len(words), "most_frequent": Counter(words).most_common(3)}


def sha256(data: dict[str, Any]) -> dict[str, Any]:
    """The digest of a text."""
    return {"sha256": hashlib.sha256(str(data["text"]).encode()).hexdigest()}


def factorise(data: dict[str, Any]) -> dict[str, Any]:
    """Prime factors by trial division."""
    left, factors, divisor = int(data["number"]), [], 2
    while divisor * divisor <= left:
        while left % divisor == 0:
            factors.append(divisor)
            left //= divisor
        divisor += 1
    return {"factors": factors + ([left] if left > 1 else [])}


ABILITIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "word_count": word_count, "sha256": sha256, "factorise": factorise
}  # fmt: skip


class DemoAgent:
    """An HTTP server on loopback that does what ABILITIES says, and nothing that a task carries in itself."""

    def __init__(self, name: str = "", on_task: Callable[[dict[str, Any], dict[str, Any]], None] | None = None) -> None:
        self.agent_id = name or new_id("agent")
        self.only_tag = f"{self.agent_id}:v1"  # for a task that shall come here and nowhere else
        self.on_task = on_task
        self.key = Ed25519PrivateKey.generate()
        agent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return None

            def do_POST(self) -> None:
                task = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = json.dumps(agent.execute(task)).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/tasks"

    def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """The answer to a delivery: what it does not know, or cannot do, is a failure with its reason."""
        ability = ABILITIES.get(task["task_type"])
        try:
            if ability is None:
                raise ValueError(f"this agent does not know {task['task_type']}")
            answer = {"status": "COMPLETED", "result_data": ability(task["input_data"])}
        except (KeyError, ValueError) as error:
            answer = {"status": "FAILED", "error": repr(error)}
        if self.on_task:
            self.on_task(task, answer)
        return answer

    def registration(self) -> dict[str, Any]:
        """The signed body for `POST /ains/agents`."""
        pem = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        said = {
            "agent_id": self.agent_id, "display_name": f"Demo agent {self.agent_id[-6:]}", "public_key": pem,
            "endpoint": self.endpoint, "tags": [*TAGS, self.only_tag],
        }  # fmt: skip
        signature = base64.b64encode(self.key.sign(signed_bytes(**said))).decode()
        return said | {"signature": signature, "metadata": {"max_concurrent_tasks": 4}}

    def start(self) -> None:
        """Serve in the background."""
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Close the door."""
        self.server.shutdown()
        self.server.server_close()
