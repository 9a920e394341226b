"""Webhooks over HTTP: the documents' shapes, and a dispatcher behind them."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from eventually import eventually
from http_harness import Client
from receiver import Receiver
from scripted_engine import ScriptedEngine
from standardwebhooks import Webhook as StandardWebhook
from test_contract import EXAMPLES, unlike
from test_http_chat import ASK, engine  # noqa: F401 - a fixture
from working_agent import registration

from cluster.egress import Egress
from cluster.identity.model import SYSTEM
from cluster.store import Store
from cluster.tasks.service import Tasks
from cluster.trust.service import Trust
from cluster.webhooks import sender
from cluster.webhooks.dispatcher import Dispatcher
from cluster.webhooks.service import Webhooks
from cluster.workers.service import Workers
from serve_apps.core import Core

HOOKS = "/ains/webhooks"
SECRET = "webhook_secret_key_for_hmac_verification"
TASK = {"client_id": "c", "task_type": "sum", "capability_required": "sums:v1", "input_data": {}}


@pytest.fixture
async def receiver(core: Core, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    """A receiver, and a dispatcher that runs."""
    monkeypatch.setattr(sender, "TICK_SECONDS", 0.02)
    core.trust, core.tasks = Trust(core.store), Tasks(core.store)
    core.workers = Workers(core.store, core.trust)
    store, egress = Store(core.store.url), Egress(public_only=False)
    running = asyncio.create_task(Dispatcher(store, egress).run())
    async with Receiver() as made:
        yield made
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    await egress.close()
    await store.close()


def wanted(url: str, **fields) -> dict:
    return {"url": url, "events": ["task.*"], "secret": SECRET} | fields


async def test_webhooks_have_the_shapes_of_the_document(client: Client, admin, receiver: Receiver):
    example = EXAMPLES["ains POST /ains/webhooks"]["request"]
    await client.post("/ains/agents", json=registration(example["agent_id"], receiver.url, ["a:v1"]), headers=admin)
    made = await client.post(HOOKS, json=example, headers=admin)
    assert not unlike("ains POST /ains/webhooks", made)
    hook = made.json()
    one = f"{HOOKS}/{hook['webhook_id']}"
    listed = await client.get(f"{HOOKS}?agent_id={example['agent_id']}", headers=admin)
    assert not unlike("ains GET /ains/webhooks", listed) and listed.json()["webhooks"] == [hook]
    changed = await client.patch(one, json={"url": receiver.url, "events": ["task.created"]}, headers=admin)
    assert not unlike("ains PATCH /ains/webhooks/{webhook_id}", changed)
    assert changed.json() == (await client.get(one, headers=admin)).json() and changed.json()["url"] == receiver.url
    await client.patch(one, json={"agent_id": ""}, headers=admin)
    await client.post("/ains/tasks", json=TASK, headers=admin)

    async def sent() -> dict | None:
        answer = await client.get(f"{one}/deliveries?limit=50&status=delivered", headers=admin)
        assert not unlike("ains GET /ains/webhooks/{webhook_id}/deliveries", answer)
        return answer.json() if answer.json()["total"] else None

    page = await eventually(sent)
    [delivery] = page["deliveries"]
    assert delivery["event"] == "task.created" and delivery["response_status"] == 200 and delivery["attempts"] == 1
    full = (await client.get(f"{one}/deliveries/{delivery['delivery_id']}", headers=admin)).json()
    assert full["data"]["client_id"] == "c" and full["history"][0]["success"] is True
    gone = await client.delete(one, headers=admin)
    assert not unlike("ains DELETE /ains/webhooks/{webhook_id}", gone)
    assert (await client.get(one, headers=admin)).json()["error"]["code"] == "RESOURCE_NOT_FOUND"
    for answer in (made, listed, changed, gone):
        assert SECRET not in answer.text


async def test_the_payload_is_the_documents_and_its_sample_accepts_it(client: Client, admin, receiver: Receiver):
    await client.post(HOOKS, json=wanted(receiver.url), headers=admin)
    await client.post("/ains/tasks", json=TASK, headers=admin)
    [got] = await eventually(lambda: receiver.got)
    payload = json.loads(got.body)
    assert payload.keys() >= {
        "event", "event_id", "webhook_id", "timestamp", "data", "signature", "delivery_attempt"
    }  # fmt: skip
    expected = hmac.new(SECRET.encode("utf-8"), got.body, hashlib.sha256).hexdigest()
    assert got.headers["x-ains-signature"] == f"sha256={expected}"
    StandardWebhook(SECRET.encode()).verify(got.body, got.headers)


async def test_a_secret_is_shown_once_and_only_if_it_was_made_here(client: Client, admin, receiver: Receiver):
    made = (await client.post(HOOKS, json={"url": receiver.url, "events": ["*"]}, headers=admin)).json()
    one, secret = f"{HOOKS}/{made['webhook_id']}", made["secret"]
    rotated = (await client.post(f"{one}/rotate-secret", headers=admin)).json()
    assert rotated["secret"] != secret and rotated["previous_secret_until"] > rotated["rotated_at"]
    given = await client.post(f"{one}/rotate-secret", json={"secret": SECRET, "grace_seconds": 0}, headers=admin)
    assert "secret" not in given.json()
    for answer in (await client.get(one, headers=admin), await client.get(HOOKS, headers=admin)):
        assert not any(value in answer.text for value in (secret, rotated["secret"], SECRET))
    tested = (await client.post(f"{one}/test", headers=admin)).json()
    assert tested["status"] == "delivered" and tested["response_status"] == 200 and tested["event"] == "webhook.test"
    [got] = [r for r in receiver.got if r.json["event"] == "webhook.test"]
    StandardWebhook(SECRET.encode()).verify(got.body, got.headers)
    assert len(got.headers["webhook-signature"].split()) == 1


async def test_replays_over_http(client: Client, admin, receiver: Receiver):
    made = (await client.post(HOOKS, json=wanted(receiver.url), headers=admin)).json()
    one = f"{HOOKS}/{made['webhook_id']}"
    tested = (await client.post(f"{one}/test", headers=admin)).json()
    again = await client.post(f"{one}/deliveries/{tested['delivery_id']}/replay", headers=admin)
    assert again.status_code == 202 and again.json()["delivery_id"] == tested["delivery_id"]
    await eventually(lambda: len(receiver.got) == 2)
    span = {"start": "2020-01-01T00:00:00Z", "end": "2120-01-01T00:00:00Z"}

    async def replayed() -> bool:  # not while the one before is on its way
        return (await client.post(f"{one}/replay", json=span, headers=admin)).json()["replayed"] == 1

    await eventually(replayed)
    await eventually(lambda: len(receiver.got) == 3)
    for body, field in (
        (span | {"start": "2020-01-01T00:00:00"}, "start"), (span | {"events": ["x.y"]}, "events"),
        ({"start": span["end"], "end": span["start"]}, "end"), ({"start": span["start"]}, "end"),
    ):  # fmt: skip
        answer = await client.post(f"{one}/replay", json=body, headers=admin)
        assert answer.status_code == 400 and answer.json()["error"]["details"]["field"] == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"events": ["task.nonsense"]}, "events"), ({"events": []}, "events"), ({"events": ["x" * 100]}, "events.0"),
        ({"url": "http://a:b@c/"}, "url"), ({"url": "ftp://c/"}, "url"), ({"url": "http://c/\r\nX: 1"}, "url"),
        ({"url": "http://c/" + "x" * 3000}, "url"), ({"secret": "short"}, "secret"), ({"secret": 7}, "secret"),
        ({"active": "perhaps"}, "active"), ({"description": "x" * 501}, "description"),
        ({"agent_id": "x" * 200}, "agent_id"),
    ],
)  # fmt: skip
async def test_a_bad_webhook_is_a_400_that_names_the_field(client: Client, admin, fields, field):
    answer = await client.post(HOOKS, json=wanted("http://127.0.0.1:1/") | fields, headers=admin)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "INVALID_FIELD_VALUE", answer.text
    assert error["details"]["field"] == field


async def test_an_unknown_agent_is_the_documents_404(client: Client, admin):
    answer = await client.post(HOOKS, json=wanted("http://127.0.0.1:1/", agent_id="nobody"), headers=admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "AGENT_NOT_FOUND")


async def test_anothers_webhook_is_a_404_on_every_route(client: Client, admin, user):
    made = (await client.post(HOOKS, json=wanted("http://127.0.0.1:1/"), headers=admin)).json()
    ann, one = await user("ann"), f"{HOOKS}/{made['webhook_id']}"
    span = {"start": "2020-01-01T00:00:00Z", "end": "2120-01-01T00:00:00Z"}
    for method, path, body in (
        ("GET", one, None), ("PATCH", one, {"active": False}), ("DELETE", one, None), ("POST", f"{one}/test", None),
        ("POST", f"{one}/rotate-secret", None), ("GET", f"{one}/deliveries", None),
        ("GET", f"{one}/deliveries/dlv_1", None), ("POST", f"{one}/deliveries/dlv_1/replay", None),
        ("POST", f"{one}/replay", span),
    ):  # fmt: skip
        answer = await client.request(method, path, json=body, headers=ann)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "RESOURCE_NOT_FOUND"), (method, path)
    assert (await client.get(HOOKS, headers=ann)).json()["total"] == 0
    refused = await client.post(HOOKS, json=wanted("http://127.0.0.1:1/", all_owners=True), headers=ann)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "INSUFFICIENT_PERMISSIONS")


async def test_nobody_assigns_an_owner_or_a_state_through_the_body(client: Client, admin, user, core: Core):
    ann = await user("ann")
    sneaky = {"owner": "client_other", "created_by": "user_village", "since": "evt_0-0", "webhook_id": "x"}
    made = (await client.post(HOOKS, json=wanted("http://127.0.0.1:1/") | sneaky, headers=ann)).json()
    await client.patch(f"{HOOKS}/{made['webhook_id']}", json=sneaky, headers=ann)
    hook = await core.webhooks.get(SYSTEM, made["webhook_id"])
    assert hook.owner.startswith("user_") and hook.created_by == hook.owner and hook.webhook_id.startswith("wh_")


async def test_in_production_an_address_of_ones_own_network_is_a_400(client: Client, admin, core: Core):
    core.webhooks = Webhooks(core.store, Egress(public_only=True))
    for host in ("127.0.0.1", "169.254.169.254", "[::1]", "localhost", "2130706433"):
        answer = await client.post(HOOKS, json=wanted(f"http://{host}/"), headers=admin)
        assert answer.status_code == 400 and answer.json()["error"]["details"]["field"] == "url"


async def test_a_finished_chat_is_told_of_without_what_was_said(
    client: Client,
    receiver: Receiver,
    engine: ScriptedEngine,  # noqa: F811
    user,
):
    ann = await user("ann")
    await client.post(HOOKS, json=wanted(receiver.url, events=["chat.completed"]), headers=ann)
    answer = await client.post("/v1/chat", json=ASK, headers=ann)
    assert answer.status_code == 200
    [got] = await eventually(lambda: receiver.got)
    assert got.json["event"] == "chat.completed"
    assert got.json["data"].keys() == {"conversation_id", "model_id", "completion_tokens", "message_count"}
    assert ASK["message"] not in got.body.decode()
