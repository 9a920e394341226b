"""An agent that tasks are sent to: it registers, counts words, and says goodbye."""

import base64
import json
import os
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Agent(BaseHTTPRequestHandler):
    def do_POST(self):
        task = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            report = {"status": "COMPLETED", "result_data": {"words": len(task["input_data"]["text"].split())}}
        except Exception as error:
            report = {"status": "FAILED", "error": repr(error)}
        answer = json.dumps(report).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


server = ThreadingHTTPServer(("127.0.0.1", 0), Agent)
key = Ed25519PrivateKey.generate()
said = {
    "agent_id": f"counter-{secrets.token_hex(4)}",
    "display_name": "Counter",
    "public_key": key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    "endpoint": f"http://127.0.0.1:{server.server_port}/",
    "tags": ["count:v1"],
}
signature = base64.b64encode(key.sign(rfc8785.dumps(said))).decode()
village = httpx.Client(
    base_url=os.environ.get("VILLAGE_URL", "http://127.0.0.1:8080"),
    headers={"Authorization": "Bearer " + os.environ["TOKEN"]},
)
made = village.post("/ains/agents", json=said | {"signature": signature})
print(made.status_code, made.text, flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    village.delete(f"/ains/agents/{said['agent_id']}")
