import asyncio
import time
from pathlib import Path

import pytest
from eventually import eventually
from http_harness import ADMIN, PASSWORD, Client
from test_contract import unlike
from working_agent import registration

from cluster.audit import witness
from cluster.audit.archive import Archive
from cluster.audit.keeper import AuditKeeper
from cluster.audit.mover import Mover
from cluster.audit.service import Audit
from cluster.events import Event
from cluster.origin import Origin
from cluster.settings import Settings
from cluster.store import Store
from cluster.trust.service import Trust
from cluster.workers.service import Workers
from serve_apps.core import Core

LOGS = "/ains/audit-logs"


async def kept(core: Core) -> None:
    """Whatever was told so far is in the log."""
    await core.audit.settled()
    keeper = AuditKeeper(core.store)
    await keeper.open()
    while await keeper.step(wait_seconds=0):
        pass


async def logs(core: Core, client: Client, headers: dict[str, str], **query: object) -> list[dict]:
    await kept(core)
    answer = await client.get(LOGS, params={"limit": 100} | query, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["logs"]


async def new_key(client: Client, admin: dict[str, str], client_id: str = "app", scopes: tuple[str, ...] = ("read",)):
    body = {"client_id": client_id, "name": "a key", "scopes": list(scopes)}
    made = (await client.post("/ains/api-keys", json=body, headers=admin)).json()
    return made["key_id"], {"X-API-Key": made["api_key"], "User-Agent": "App/1.0"}


async def test_the_log_has_the_shape_of_its_example(core: Core, client: Client, admin):
    _, key = await new_key(client, admin)
    await client.get("/ains/agents", headers=key)
    await kept(core)
    answer = await client.get(LOGS, params={"client_id": "app", "event_type": "authentication"}, headers=admin)
    assert not unlike("ains GET /ains/audit-logs", answer)
    [entry] = answer.json()["logs"]
    assert (entry["action"], entry["success"], entry["client_id"]) == ("api_key_used", True, "app")
    assert (entry["ip_address"], entry["user_agent"]) == ("192.0.2.1", "App/1.0")
    assert entry["details"]["endpoint"] == "/ains/agents" and entry["details"]["method"] == "GET"


async def test_signing_in_and_failing_to_are_in_the_log(core: Core, client: Client, admin, user):
    await user("ann")
    for password in (PASSWORD, "wrong"):
        await client.post("/auth/token", json={"username": "ann", "password": password})
    seen = await logs(core, client, admin, event_type="authentication")
    ours = [entry for entry in seen if entry["details"].get("username", entry["username"]) == "ann"]
    assert [entry["action"] for entry in ours][:2] == ["login_failed", "login"]
    assert ours[0]["ip_address"] == "192.0.2.1" and ours[0]["success"] is False


async def test_a_denial_and_a_bad_credential_are_in_the_log_and_their_answers_do_not_wait_for_it(core, client, admin):
    key_id, key = await new_key(client, admin)
    assert (await client.post("/ains/tasks", json={}, headers=key)).status_code == 403
    forged = {"X-API-Key": "ains_" + "x" * 43}
    assert (await client.get("/ains/agents", headers=forged)).status_code == 401
    assert (await client.get("/ains/agents")).status_code == 401  # nothing was presented: nothing to log
    [denied] = await logs(core, client, admin, action="permission_denied")
    assert (denied["principal_id"], denied["event_type"], denied["success"]) == (key_id, "authorization", False)
    assert denied["details"]["scope"] == "tasks:write" and denied["details"]["endpoint"] == "/ains/tasks"
    [refused] = await logs(core, client, admin, action="credential_refused")
    assert refused["ip_address"] == "192.0.2.1" and "invalid" in refused["details"]["reason"]


async def test_a_flood_of_refusals_is_two_entries_that_count_it(core: Core, client: Client, admin):
    now = [1000.0]
    core.audit.ticks = lambda: now[0]
    forged = {"X-API-Key": "ains_" + "x" * 43}
    for _ in range(50):
        await client.get("/ains/agents", headers=forged)
    assert len(await logs(core, client, admin, action="credential_refused")) == 1
    now[0] += witness.WINDOW_SECONDS
    await client.get("/ains/agents", headers=forged)
    counts = [e["details"].get("count") for e in await logs(core, client, admin, action="credential_refused")]
    assert counts == [None, 49, None]


async def test_floods_from_everywhere_fill_neither_the_log_nor_the_memory(store: Store, tmp_path: Path):
    now = [1000.0]
    audit = Audit(store, Archive(tmp_path))
    audit.ticks = lambda: now[0]
    for number in range(3 * witness.MOST):
        audit.refused(Origin(address=f"10.0.{number // 250}.{number % 250}", method="GET"), "/x", "bad")
        audit.refused(Origin(address=f"2001:db8::{number:x}", method="GET"), "/y", "bad")  # one host's own network
    now[0] += witness.WINDOW_SECONDS
    audit.refused(Origin(address="192.0.2.9", method="GET"), "/x", "bad")
    await audit.settled()
    told = [event for event in await store.events(limit=10_000) if event.kind == "access.refused"]
    assert len(told) <= witness.MOST + 5
    assert sum(event.data.get("count", 1) for event in told) == 6 * witness.MOST + 1
    await audit.close()


async def test_a_store_that_is_away_delays_nobody_and_what_was_told_comes_later(tmp_path: Path, redis_url: str):
    audit = Audit(Store("unix:///nonexistent/redis.sock"), Archive(tmp_path))
    begun = time.perf_counter()
    for number in range(100):
        audit.denied(Origin(principal_id=f"user_{number}"), "user", "/x", "admin")
    assert time.perf_counter() - begun < 0.5
    store = Store(redis_url)
    await store._redis.flushall()
    audit.store = store
    await eventually(lambda: audit._publishing is not None and audit._publishing.done(), within=15)
    assert [e.subject for e in await store.events()] == [f"user_{n}" for n in range(100)] and audit.lost == 0
    await audit.close()
    await store.close()


async def test_noting_a_use_that_was_noted_costs_microseconds(store: Store, tmp_path: Path):
    audit, origin = Audit(store, Archive(tmp_path)), Origin(principal_id="key_1", client_id="app", address="192.0.2.1")
    audit.key_used(origin, "client_app", "/ains/tasks")
    begun = time.perf_counter()
    for _ in range(2000):
        audit.key_used(origin, "client_app", "/ains/tasks")
    # It takes 1; a machine that stalls may add to it, a round trip or a task would be beyond this.
    assert (time.perf_counter() - begun) / 2000 < 50e-6
    await audit.close()
    assert [event.kind for event in await store.events()] == ["key.used"]


async def test_others_entries_are_not_there_for_who_is_no_admin(core: Core, client: Client, admin, user):
    _, key = await new_key(client, admin, "app", ("read", "audit:read"))
    _, other = await new_key(client, admin, "other", ("read", "audit:read"))
    ann = await user("ann", frozenset({"read", "audit:read"}))
    for headers in (key, other, ann):
        await client.get("/ains/agents", headers=headers)
    everything = await logs(core, client, admin)
    assert {entry["client_id"] for entry in everything} == {"", "app", "other"}
    for headers, mine in ((key, "app"), (other, "other")):
        assert {entry["client_id"] for entry in await logs(core, client, headers)} == {mine}
        assert await logs(core, client, headers, client_id={"app": "other", "other": "app"}[mine]) == []
    anns = await logs(core, client, ann)
    assert {entry["username"] for entry in anns} == {"ann", ""}  # who made her was nobody who asked
    assert (await client.get(LOGS, headers=await user("bob"))).status_code == 403


async def test_a_persons_address_is_shown_to_themselves_and_to_admins(core: Core, client: Client, admin, user):
    _, key = await new_key(client, admin, "app", ("read", "audit:read"))
    [made] = await logs(core, client, key, action="key_created")
    assert made["client_id"] == "app" and made["ip_address"] == made["user_agent"] == ""
    [made] = await logs(core, client, admin, action="key_created")
    assert made["ip_address"] == "192.0.2.1"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"event_type": "nonsense"}, "event_type"),
        ({"action": "nonsense"}, "action"),
        ({"start_date": "yesterday"}, "start_date"),
        ({"start_date": "2026-01-02T00:00:00Z", "end_date": "2026-01-01T00:00:00Z"}, "start_date"),
        ({"limit": "101"}, "limit"),
        ({"offset": "-1"}, "offset"),
        ({"success": "perhaps"}, "success"),
        ({"client_id": "x" * 129}, "client_id"),
        ({"ip_address": "a\0b"}, "ip_address"),
    ],
)
async def test_a_filter_that_means_nothing_is_named(client: Client, admin, query: dict[str, str], field: str):
    answer = await client.get(LOGS, params=query, headers=admin)
    assert answer.status_code == 400 and answer.json()["error"]["details"]["field"] == field
    if query == {field: "nonsense"}:
        assert "login" in answer.text or "authentication" in answer.text  # the allowed values


async def test_pages_and_dates_go_on_into_the_archive(core: Core, client: Client, admin):
    for number in range(25):
        event = Event(kind="model.deleted", subject=f"model_{number}", owner="user_1", at=core.clock())
        await core.store.publish(event)
    await kept(core)
    await Mover.of(core.store, core.settings).move(15)
    query = {"action": "model_deleted", "limit": 10}
    pages = [(await client.get(LOGS, params=query | {"offset": n}, headers=admin)).json() for n in (0, 10, 20)]
    assert [page["has_more"] for page in pages] == [True, True, False] and {page["total"] for page in pages} == {25}
    numbers = [entry["details"]["subject"] for page in pages for entry in page["logs"]]
    assert numbers == [f"model_{n}" for n in range(24, -1, -1)]
    first = pages[2]["logs"][-1]["created_at"]
    some = (await client.get(LOGS, params=query | {"end_date": first, "limit": 25}, headers=admin)).json()
    assert 1 <= some["total"] < 25 and some["logs"][-1]["details"]["subject"] == "model_0"
    for odd in ("it's", "\\", '"', "%", "\u2028", "\U0001f600", "/* */ --", "'; DROP TABLE entries", "NULL", "\x7f"):
        answer = await client.get(LOGS, params={"client_id": odd, "ip_address": odd}, headers=admin)
        assert answer.status_code == 200 and answer.json()["total"] == 0
    none = (await client.get(LOGS, params=query | {"start_date": "2100-01-01"}, headers=admin)).json()
    assert none["total"] == 0 and none["logs"] == []


async def test_the_loop_keeps_the_log_and_says_so(core: Core, client: Client, admin):
    from cluster.audit.keeper import keep_audit
    from cluster.presence import Presence

    settings = Settings(home=core.settings.home, redis_url=core.store.url)
    running = asyncio.create_task(keep_audit(core.store, settings))
    await client.post("/auth/token", json={"username": "nobody", "password": "x"})

    async def found() -> object:
        answer = await client.get(LOGS, params={"action": "login_failed"}, headers=admin)
        return answer.json()["total"] and await core.store.find(Presence, "audit")

    assert await eventually(found)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_is_done_through_the_api_is_in_the_log_with_who_did_it_and_for_which_request(core, client, admin):
    core.trust = Trust(core.store)
    core.workers = Workers(core.store, core.trust)
    done: list[tuple[str, str]] = []  # action, request id

    async def do(action: str, method: str, path: str, body: object = None) -> dict:
        answer = await client.request(method, path, json=body, headers=admin | {"X-Request-ID": f"req-{action}"})
        assert answer.status_code < 300, answer.text
        done.append((action, f"req-{action}"))
        return answer.json()

    made = await do("user_created", "POST", "/v1/users", {"username": "ann", "password": "a long pass phrase"})
    user_id = made["data"]["user_id"]
    await do("user_disabled", "PATCH", f"/v1/users/{user_id}", {"disabled": True})
    await do("user_deleted", "DELETE", f"/v1/users/{user_id}")
    key = await do("key_created", "POST", "/ains/api-keys", {"client_id": "app", "name": "n"})
    await do("key_revoked", "DELETE", f"/ains/api-keys/{key['key_id']}")
    hook = await do("webhook_created", "POST", "/ains/webhooks", {"url": "http://127.0.0.1:9/x", "events": ["task.*"]})
    await do("webhook_deleted", "DELETE", f"/ains/webhooks/{hook['webhook_id']}")
    await do("agent_registered", "POST", "/ains/agents", registration("ada", "http://127.0.0.1:9", ["sums:v1"]))
    await do("trust_adjusted", "POST", "/ains/agents/ada/trust/adjust", {"delta": 0.1, "reason": "good work"})
    found = {entry["action"]: entry for entry in reversed(await logs(core, client, admin))}
    for action, request_id in done:
        entry = found[action]
        assert (entry["username"], entry["ip_address"], entry["success"]) == (ADMIN, "192.0.2.1", True)
        assert entry["request_id"] == request_id and entry["details"]["method"] in ("POST", "PATCH", "DELETE")
    assert found["trust_adjusted"]["details"]["trust_delta"] == pytest.approx(0.1)
    assert found["user_deleted"]["details"]["subject"] == user_id
    assert "pass phrase" not in str(found) and key["api_key"] not in str(found)
    assert (await core.audit.verify()).fault is None
