"""An agent that takes its tasks itself, as from behind a NAT: it registers, polls, counts words, and reports."""

import base64
import os
import secrets
import time

import httpx
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

key = Ed25519PrivateKey.generate()
said = {
    "agent_id": f"counter-{secrets.token_hex(4)}",
    "display_name": "Counter",
    "public_key": key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    "endpoint": "pull:",
    "tags": ["count:v1"],
}
signature = base64.b64encode(key.sign(rfc8785.dumps(said))).decode()
url = os.environ.get("VILLAGE_URL", "http://127.0.0.1:8080")
village = httpx.Client(base_url=url, headers={"Authorization": "Bearer " + os.environ["TOKEN"]}, timeout=40)
made = village.post("/ains/agents", json=said | {"signature": signature})
print(made.status_code, made.text, flush=True)
while True:
    answer = village.get(f"/ains/agents/{said['agent_id']}/tasks/next", params={"wait": 30})
    if answer.status_code != 200:
        time.sleep(float(answer.headers.get("retry-after", 0)))  # 204: nothing came in half a minute
        continue
    task = answer.json()
    try:
        report = {"status": "COMPLETED", "result_data": {"words": len(task["input_data"]["text"].split())}}
    except Exception as error:
        report = {"status": "FAILED", "error": repr(error)}
    token = {"X-Task-Token": task["task_token"]}
    httpx.post(f"{url}/ains/tasks/{task['task_id']}/result", json=report, headers=token)
