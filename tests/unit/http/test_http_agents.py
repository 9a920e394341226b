"""Agents over HTTP: changed, heard, silent, taken out and back; and whose they are."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eventually import eventually
from http_harness import Client
from test_ains import TAG, Program, core, shop  # noqa: F401 - fixtures
from working_agent import accept, forget

from cluster.store import Store
from cluster.workers.model import Agent
from cluster.workers.presence import Expiry
from cluster.workers.signature import signed_bytes
from serve_apps.core import Core


class Owner:
    """Keeps its key, and signs with it."""

    def __init__(self, client: Client, headers: dict[str, str], agent_id: str = "ada") -> None:
        self.client, self.headers, self.agent_id = client, headers, agent_id
        self.key = Ed25519PrivateKey.generate()
        self.said: dict[str, Any] = {
            "agent_id": agent_id, "display_name": "Ada", "public_key": pem(self.key), "endpoint": "http://127.0.0.1:9/",
            "tags": [TAG],
        }  # fmt: skip

    def signed(self, key: Ed25519PrivateKey | None = None, **change: Any) -> str:
        return base64.b64encode((key or self.key).sign(signed_bytes(**(self.said | change)))).decode()

    async def register(self, **metadata: Any):
        body = self.said | {"signature": self.signed(), "metadata": metadata}
        return await self.client.post("/ains/agents", json=body, headers=self.headers)

    async def ask(self, method: str, path: str = "", body: Any = None, **more: Any):
        url = f"/ains/agents/{self.agent_id}{path}"
        return await self.client.request(method, url, json=body, headers=self.headers, **more)


def pem(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture
async def ada(client: Client, core: Core, user) -> Owner:  # noqa: F811
    owner = Owner(client, await user("ann"))
    assert (await owner.register(max_concurrent_tasks=2)).status_code == 201
    return owner


async def kinds(store: Store) -> list[tuple[str, Any]]:
    return [(e.kind, e.data.get("changed")) for e in await store.events() if e.kind.startswith("agent.")]


async def test_what_is_given_changes(ada: Owner, core: Core):  # noqa: F811
    body = {"display_name": "Ada II", "metadata": {"max_concurrent_tasks": 5, "region": "eu"}, "tags": [TAG, "x:v2"]}
    answer = await ada.ask("PATCH", "", body)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["display_name"], shown["max_concurrent_tasks"], shown["tags"]) == ("Ada II", 5, [TAG, "x:v2"])
    less = (await ada.ask("PATCH", "", {"metadata": {"region": None}})).json()
    assert less["metadata"] == {"max_concurrent_tasks": 5} == (await ada.ask("GET")).json()["metadata"]
    changed = ["display_name", "tags", "metadata", "max_concurrent_tasks"]
    assert await kinds(core.store) == [
        ("agent.registered", None), ("agent.updated", changed), ("agent.updated", ["metadata"])
    ]  # fmt: skip


async def test_where_it_is_called_and_by_which_key_it_is_known_is_signed(ada: Owner, core: Core):  # noqa: F811
    moved = {"endpoint": "http://127.0.0.1:10/"}
    assert (await ada.ask("PATCH", "", moved)).status_code == 400
    assert (await ada.ask("PATCH", "", moved | {"signature": ada.signed()})).status_code == 400
    answer = await ada.ask("PATCH", "", moved | {"signature": ada.signed(**moved)})
    assert (answer.status_code, answer.json()["endpoint"]) == (200, moved["endpoint"])
    ada.said |= moved
    new = Ed25519PrivateKey.generate()
    key = {"public_key": pem(new)}
    body = key | {"signature": ada.signed(**key), "new_key_signature": ada.signed(new, **key)}
    assert (await ada.ask("PATCH", "", body)).status_code == 200
    assert (await core.store.get(Agent, "ada")).public_key == pem(new)


@pytest.mark.parametrize(
    "body",
    [
        {"tags": []}, {"tags": ["x"]}, {"display_name": ""}, {"metadata": {"max_concurrent_tasks": 0}},
        {"metadata": {"ttl_seconds": 1}}, {"metadata": {"notes": "x" * 70_000}}, {"endpoint": "ftp://x/"},
    ],
)  # fmt: skip
async def test_a_change_that_is_not_right_changes_nothing(ada: Owner, core: Core, body):  # noqa: F811
    before = await core.store.get(Agent, "ada")
    answer = await ada.ask("PATCH", "", body)
    assert answer.status_code == 400, answer.text
    assert await core.store.get(Agent, "ada") == before


async def test_an_agent_is_its_owners_and_an_admins(ada: Owner, client: Client, admin, user):
    ben = await user("ben")
    for method, path, body in (
        ("PATCH", "", {"display_name": "Eve"}), ("DELETE", "", None), ("POST", "/heartbeat", {}),
        ("GET", "/tasks/next?wait=0", None),
    ):  # fmt: skip
        refused = await client.request(method, f"/ains/agents/ada{path}", json=body, headers=ben)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "INSUFFICIENT_PERMISSIONS")
        nobody = await client.request(method, f"/ains/agents/none{path}", json=body, headers=ben)
        assert (nobody.status_code, nobody.json()["error"]["code"]) == (404, "AGENT_NOT_FOUND")
    assert (await client.get("/ains/agents/ada", headers=ben)).json()["display_name"] == "Ada"
    changed = await client.patch("/ains/agents/ada", json={"display_name": "Ada II"}, headers=admin)
    assert changed.status_code == 200


async def test_an_agent_that_beat_and_fell_silent_is_taken_out_until_its_next_beat(ada: Owner, core: Core):  # noqa: F811
    silent = (await ada.ask("GET")).json()
    assert silent["expires_at"] is None and silent["heartbeat"] is None
    assert await Expiry(core.store, lambda: core.clock() + timedelta(days=9)).step() == 0
    await ada.ask("PATCH", "", {"metadata": {"ttl_seconds": 60}})
    answer = await ada.ask("POST", "/heartbeat", {"status": "DEGRADED", "metrics": {"cpu": 0.9}, "other": 1})
    assert answer.status_code == 200, answer.text
    beat = answer.json()
    assert (beat["agent_id"], beat["status"], beat["next_heartbeat_in"]) == ("ada", "active", 20.0)
    left = datetime.fromisoformat(beat["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=55) < left <= timedelta(seconds=60)
    shown = (await ada.ask("GET")).json()
    assert shown["heartbeat"]["metrics"] == {"cpu": 0.9} and shown["heartbeat"]["status"] == "DEGRADED"
    expiry = Expiry(core.store)
    assert await expiry.step() == 0
    expiry.clock = lambda: core.clock() + timedelta(seconds=61)
    assert await expiry.step() == 1 and await expiry.step() == 0
    gone = (await ada.ask("GET")).json()
    assert (gone["status"], gone["reason"], gone["expires_at"]) == ("inactive", "no heartbeat", None)
    last = (await core.store.events())[-1]
    assert (last.kind, last.data["reason"]) == ("agent.deactivated", "no heartbeat")
    assert (await ada.ask("POST", "/heartbeat")).json()["status"] == "active"
    assert (await kinds(core.store))[-1] == ("agent.updated", ["status", "health"])


async def test_taking_an_agent_out_leaves_it_what_it_has_begun(shop: Program):  # noqa: F811
    agent = await shop.agent("ada", accept, max_concurrent_tasks=4)
    begun = await shop.submit()
    await shop.reaches(begun, "RUNNING")
    answer = await shop.ask("DELETE", "/ains/agents/ada?reason=moved")
    gone = answer.json()
    assert answer.status_code == 200, answer.text
    assert (gone["status"], gone["reason"], gone["tasks_released"], gone["tasks_left"]) == ("inactive", "moved", 0, 1)
    waiting = await shop.submit()
    [sent] = agent.tasks
    done = await shop.client.post(
        f"/ains/tasks/{begun}/result", json={"status": "COMPLETED"}, headers={"X-Task-Token": sent["task_token"]}
    )
    assert done.json()["status"] == "COMPLETED"
    assert (await shop.task(waiting))["status"] == "PENDING" and len(agent.tasks) == 1
    for path, body in (("/heartbeat", {}), ("", {"display_name": "x"})):
        method = "POST" if path else "PATCH"
        assert (await shop.ask(method, f"/ains/agents/ada{path}", body)).status_code == 409
    assert (await shop.ask("DELETE", "/ains/agents/ada")).json()["reason"] == "moved"  # once is enough


async def test_taking_an_agent_out_may_give_back_all_that_it_holds(shop: Program):  # noqa: F811
    await shop.agent("ada", forget)
    task_id = await shop.submit()
    await shop.reaches(task_id, "RUNNING")
    await shop.agent("bob")
    gone = (await shop.ask("DELETE", "/ains/agents/ada?release=true")).json()
    assert (gone["tasks_released"], gone["tasks_left"]) == (1, 0)
    done = await shop.reaches(task_id, "COMPLETED")
    assert (done["assigned_agent_id"], done["attempt"], done["retry_count"]) == ("bob", 2, 0)


async def test_who_was_taken_out_registers_again_by_its_own_key(ada: Owner, client: Client, core: Core, user):  # noqa: F811
    assert (await ada.register()).status_code == 409  # while it is active
    await ada.ask("DELETE")
    thief = Owner(client, await user("ben"))
    assert (await thief.register()).json()["error"]["code"] == "AGENT_ALREADY_EXISTS"
    thief.key, thief.said = ada.key, ada.said  # not even by the key, where the owner is another
    assert (await thief.register()).status_code == 409
    first = (await ada.ask("GET")).json()
    ada.said["endpoint"] = "http://127.0.0.1:11/"
    back = await ada.register(ttl_seconds=30)
    assert (back.status_code, back.json()["status"], back.json()["created_at"]) == (201, "active", first["created_at"])
    assert (await ada.ask("GET")).json()["expires_at"] is not None
    assert (await kinds(core.store))[-1][0] == "agent.updated"


async def test_agents_are_filtered_and_sorted(client: Client, core: Core, user, admin):  # noqa: F811
    ann, ben = await user("ann"), await user("ben")
    for headers, name in ((ann, "ada"), (ben, "bob"), (ben, "bea")):
        await Owner(client, headers, name).register(max_concurrent_tasks=2)
    me = next(iter({a.owner for a in await core.store.many(Agent, ["ada"])}))
    await client.post("/ains/agents/bob/trust/adjust", json={"delta": 0.2, "reason": "x"}, headers=admin)
    await Owner(client, ben, "bea").ask("POST", "/heartbeat", {"status": "OFFLINE"})

    async def found(headers=ben, **wanted) -> list[str]:
        answer = await client.get("/ains/agents", headers=headers, params=wanted)
        assert answer.status_code == 200, answer.text
        return [agent["agent_id"] for agent in answer.json()["agents"]]

    assert await found() == ["bea", "bob", "ada"] == list(reversed(await found(order="asc")))
    assert await found(mine=True) == ["bea", "bob"] and await found(ann, owner=me) == ["ada"]
    assert await found(mine=True, status="active") == ["bob"] and await found(q="BO") == ["bob"] == await found(q="bo")
    assert (await found(sort="trust"))[0] == "bob" and (await found(sort="trust", order="asc"))[-1] == "bob"
    assert await found(sort="load", limit=2) == (await found(sort="load"))[:2]
    assert await found(sort="trust", trust_min=0.6, tag=TAG) == ["bob"]
    assert (await client.get("/ains/agents", headers=ben, params={"owner": me})).status_code == 403
    for wrong in ({"sort": "name"}, {"order": "up"}, {"mine": "maybe"}):
        assert (await client.get("/ains/agents", headers=ben, params=wrong)).status_code == 400


async def test_reports_on_a_task_are_signs_of_life(shop: Program, core: Core):  # noqa: F811
    agent = await shop.agent("ada", accept, ttl_seconds=600)
    await shop.submit()
    await eventually(lambda: bool(agent.tasks))
    old = core.clock() - timedelta(seconds=590)
    await core.store.change(
        Agent, "ada", lambda a: a.model_copy(update={"last_seen_at": old, "expires_at": old + timedelta(seconds=600)})
    )
    [sent] = agent.tasks
    headers = {"X-Task-Token": sent["task_token"]}
    beat = await shop.client.post(f"/ains/tasks/{sent['task_id']}/heartbeat", headers=headers)
    assert beat.status_code == 200, beat.text
    after = await core.store.get(Agent, "ada")
    assert after.expires_at is not None and after.expires_at > core.clock() + timedelta(seconds=500)
