"""Users over HTTP: what admins do with them, and they with themselves; sessions, second factors, signing keys."""

from datetime import UTC, datetime, timedelta

import jwt
import pyotp
import pytest
from http_harness import ADMIN, PASSWORD, Client

from cluster.identity.records import user_id
from serve_apps.core import Core

ANN = {"username": "ann@village.local", "password": "correct horse battery"}
NEW = "another horse"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def made(client: Client, admin, **fields) -> dict:
    answer = await client.post("/v1/users", headers=admin, json=ANN | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["data"]


async def sign_in(client: Client, **fields) -> dict:
    answer = await client.post("/auth/token", json=ANN | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def me(client: Client, token: str) -> int:
    return (await client.get("/v1/users/me", headers=bearer(token))).status_code


async def test_an_admin_makes_lists_changes_and_removes_users(client: Client, admin):
    ann = await made(client, admin)
    assert ann["status"] == "active" and ann["scopes"] == ["read", "write"] and not ann["mfa_enabled"]
    assert "password" not in "".join(name for name in ann if name != "password_changed_at")
    one = f"/v1/users/{ann['user_id']}"
    assert (await client.get(one, headers=admin)).json()["data"] == ann
    changed = await client.patch(one, headers=admin, json={"tier": "premium", "scopes": ["read"], "disabled": True})
    data = changed.json()["data"]
    assert (data["tier"], data["scopes"], data["status"]) == ("premium", ["read"], "disabled")
    await client.patch(one, headers=admin, json={"disabled": False})
    assert (await client.post(f"{one}/password", headers=admin, json={"new_password": NEW})).status_code == 200
    await sign_in(client, password=NEW)
    gone = await client.delete(one, headers=admin)
    assert gone.json()["data"] | {"deleted_at": ""} == {
        "user_id": ann["user_id"], "deleted_at": "", "active_api_keys": 0
    }  # fmt: skip
    assert (await client.get(one, headers=admin)).status_code == 404
    assert (await client.delete(one, headers=admin)).status_code == 404
    assert (await client.post("/v1/users", headers=admin, json=ANN)).status_code == 409, "the name stays taken"


async def test_users_are_listed_by_page_and_filter(client: Client, admin):
    for n in range(3):
        await made(client, admin, username=f"user{n}", tier="premium" if n else "standard")
    await client.patch(f"/v1/users/{user_id('user2')}", headers=admin, json={"disabled": True})

    async def listed(**query) -> tuple[list[str], int]:
        data = (await client.get("/v1/users", headers=admin, params=query)).json()["data"]
        return [user["username"] for user in data["users"]], data["total"]

    assert await listed() == (["user2", "user1", "user0", ADMIN], 4)
    assert await listed(limit=2, offset=1) == (["user1", "user0"], 4)
    assert await listed(tier="premium") == (["user2", "user1"], 2)
    assert await listed(status="disabled") == (["user2"], 1)
    assert await listed(status="active", tier="premium") == (["user1"], 1)
    assert await listed(username="USER1") == (["user1"], 1)
    assert await listed(username="user1", status="disabled") == ([], 0)
    assert (await client.get("/v1/users", headers=admin, params={"tier": "gold"})).status_code == 400


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": "short"}, "password"), ({"password": ANN["username"]}, "password"),
        ({"password": "password123"}, "password"), ({"username": "a b"}, "username"), ({"tier": "gold"}, "tier"),
        ({"scopes": ["fly"]}, "scopes"), ({"is_admin": True}, "is_admin"),
    ],
)  # fmt: skip
async def test_a_bad_field_is_named(client: Client, admin, body, field):
    answer = await client.post("/v1/users", headers=admin, json=ANN | body)
    assert answer.status_code == 400 and answer.json()["details"]["field"] == field, answer.text
    assert ANN["password"] not in answer.text


async def test_everybody_sees_and_changes_himself(client: Client, admin):
    await made(client, admin)
    pair, other = await sign_in(client), await sign_in(client)
    headers = bearer(pair["access_token"])
    assert (await client.get("/v1/users/me", headers=headers)).json()["data"]["username"] == ANN["username"]
    path = "/v1/users/me/password"
    wrong = await client.post(path, headers=headers, json={"old_password": "wrong", "new_password": NEW})
    assert wrong.status_code == 403
    right = await client.post(path, headers=headers, json={"old_password": ANN["password"], "new_password": NEW})
    assert right.status_code == 200
    assert await me(client, pair["access_token"]) == 200 and await me(client, other["access_token"]) == 401
    await sign_in(client, password=NEW)


async def test_a_change_acts_at_the_next_request(client: Client, admin):
    ann = await made(client, admin, scopes=["read", "keys:manage"])
    headers = bearer((await sign_in(client))["access_token"])
    assert (await client.get("/ains/api-keys", headers=headers)).status_code == 200
    await client.patch(f"/v1/users/{ann['user_id']}", headers=admin, json={"scopes": ["read"]})
    assert (await client.get("/ains/api-keys", headers=headers)).status_code == 403
    await client.patch(f"/v1/users/{ann['user_id']}", headers=admin, json={"disabled": True})
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 401


async def test_keys_outlive_their_maker_unless_they_are_revoked(client: Client, admin, core: Core):
    ann = await made(client, admin, scopes=["keys:manage", "tasks:read"])
    headers = bearer((await sign_in(client))["access_token"])

    async def key(headers) -> str:
        body = {"client_id": "app", "name": "App", "scopes": ["keys:manage", "tasks:read"]}
        answer = await client.post("/ains/api-keys", headers=headers, json=body)
        assert answer.status_code == 201 and answer.headers["cache-control"] == "no-store", answer.text
        return answer.json()["api_key"]

    first = await key(headers)
    second = await key({"X-API-Key": first})  # made by a key: filed under the client, not under ann
    gone = await client.delete(f"/v1/users/{ann['user_id']}", headers=admin)
    assert gone.json()["data"]["active_api_keys"] == 2
    for one in (first, second):
        assert (await client.get("/ains/version", headers={"X-API-Key": one})).status_code == 200
    ended = await client.post(f"/v1/users/{ann['user_id']}/revoke-keys", headers=admin)
    assert len(ended.json()["data"]["key_ids"]) == 2
    for one in (first, second):
        assert (await client.get("/ains/version", headers={"X-API-Key": one})).status_code == 401
    await core.identity.settled()


async def test_one_key_by_its_id(client: Client, admin, user):
    body = {"client_id": "app", "name": "App", "rate_limit_per_minute": 2, "rate_limit_per_hour": 3}
    key = (await client.post("/ains/api-keys", headers=admin, json=body)).json()
    answer = await client.get(f"/ains/api-keys/{key['key_id']}", headers=admin)
    assert answer.status_code == 200 and answer.json()["active"] and "api_key" not in answer.json()
    other = await user("lee", frozenset({"keys:manage"}))
    assert (await client.get(f"/ains/api-keys/{key['key_id']}", headers=other)).status_code == 404
    calls = [await client.get("/ains/version", headers={"X-API-Key": key["api_key"]}) for _ in range(3)]
    assert [call.status_code for call in calls] == [200, 200, 429], "a key's own limit, not its maker's"


async def test_sessions_are_listed_and_ended(client: Client, admin):
    await made(client, admin)
    mine = await sign_in(client)
    elsewhere = (await client.post("/auth/token", json=ANN, headers={"User-Agent": "phone"})).json()
    headers = bearer(mine["access_token"])
    listed = (await client.get("/auth/sessions", headers=headers)).json()
    assert listed["total"] == 2 and [one["current"] for one in listed["sessions"]] == [False, True]
    phone = listed["sessions"][0]
    assert (phone["user_agent"], phone["address"]) == ("phone", "192.0.2.1")
    assert (await client.delete(f"/auth/sessions/{phone['session_id']}", headers=headers)).status_code == 200
    assert await me(client, elsewhere["access_token"]) == 401 and await me(client, mine["access_token"]) == 200
    assert (await client.delete(f"/auth/sessions/{phone['session_id']}", headers=headers)).status_code == 404
    refresh = await client.post("/auth/refresh", json={"refresh_token": elsewhere["refresh_token"]})
    assert refresh.status_code == 401


async def test_signing_out_everywhere(client: Client, admin):
    await made(client, admin)
    pairs = [await sign_in(client) for _ in range(3)]
    await client.post("/auth/logout-all", headers=bearer(pairs[0]["access_token"]))
    assert [await me(client, pair["access_token"]) for pair in pairs] == [401] * 3


async def test_what_is_revoked_opens_nothing_and_unknown_tokens_are_no_error(client: Client, admin):
    await made(client, admin)
    first, second = await sign_in(client), await sign_in(client)

    async def revoke(token: str, **hint) -> int:
        return (await client.post("/auth/revoke", json={"token": token} | hint)).status_code

    assert await revoke(first["access_token"], token_type_hint="access_token") == 200
    assert await me(client, first["access_token"]) == 401
    renewed = (await client.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})).json()
    assert await me(client, renewed["access_token"]) == 200, "only the token that was named"
    assert await revoke(renewed["refresh_token"]) == 200
    assert await me(client, renewed["access_token"]) == 401, "the session with all of its tokens"
    assert await me(client, second["access_token"]) == 200, "and no other"
    key = (await client.post("/ains/api-keys", headers=admin, json={"client_id": "app", "name": "App"})).json()
    assert await revoke(key["api_key"]) == 200
    assert (await client.get("/ains/version", headers={"X-API-Key": key["api_key"]})).status_code == 401
    for unknown in ("x", "ains_" + "x" * 43, first["access_token"], renewed["refresh_token"], "a.b.c"):
        assert await revoke(unknown) == 200


async def test_a_second_factor_over_http(client: Client, admin, core: Core):
    await made(client, admin)
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    core.identity.clock = lambda: now
    headers = bearer((await sign_in(client))["access_token"])
    enrolled = await client.post("/auth/mfa/enroll", headers=headers)
    assert enrolled.headers["cache-control"] == "no-store"
    codes = pyotp.TOTP(enrolled.json()["secret"])
    assert (await client.post("/auth/mfa/verify", headers=headers, json={"code": "000000"})).status_code == 403
    verified = await client.post("/auth/mfa/verify", headers=headers, json={"code": codes.at(now)})
    backup = verified.json()["backup_codes"]
    assert len(backup) == 10 and verified.headers["cache-control"] == "no-store"
    assert (await client.get("/v1/users/me", headers=headers)).json()["data"]["mfa_enabled"]
    bare = await client.post("/auth/token", json=ANN)
    assert bare.status_code == 401 and bare.json()["details"] == {"mfa_required": True}
    assert (await client.post("/auth/token", json=ANN | {"password": "wrong"})).json()["details"] == {}
    await sign_in(client, mfa_code=backup[0])
    off = {"password": ANN["password"], "code": backup[1]}
    assert (await client.post("/auth/mfa/disable", headers=headers, json=off)).json() == {"mfa_enabled": False}
    await sign_in(client)


async def test_who_has_to_wait_is_told_how_long(client: Client, admin):
    await made(client, admin)
    for _ in range(5):
        assert (await client.post("/auth/token", json=ANN | {"password": "wrong"})).status_code == 401
    answer = await client.post("/auth/token", json=ANN)
    assert answer.status_code == 429 and answer.json()["error_code"] == "RATE_LIMIT_EXCEEDED"
    assert answer.headers["retry-after"] == "1" and answer.json()["details"]["retry_after_seconds"] == 1


async def test_signing_keys_rotate_and_the_old_one_is_good_until_what_it_signed_expires(client, admin, core: Core):
    await made(client, admin)
    old = await sign_in(client)
    rotated = (await client.post("/auth/keys/rotate", headers=admin, json={})).json()["keys"]
    assert [bool(key["good_until"]) for key in rotated] == [False, True] and "secret" not in str(rotated)
    new = await sign_in(client)
    kids = [jwt.get_unverified_header(pair["access_token"])["kid"] for pair in (new, old)]
    assert kids == [key["kid"] for key in rotated]
    assert await me(client, old["access_token"]) == 200 and await me(client, new["access_token"]) == 200
    renewed = (await client.post("/auth/refresh", json={"refresh_token": old["refresh_token"]})).json()
    assert jwt.get_unverified_header(renewed["access_token"])["kid"] == kids[0]
    at_once = await client.post("/auth/keys/rotate", headers=admin, json={"now": True})
    assert len(at_once.json()["keys"]) == 1
    assert [await me(client, pair["access_token"]) for pair in (old, new, renewed)] == [401] * 3
    await sign_in(client)


async def test_a_retired_signing_key_dies_with_its_longest_token(client: Client, admin, core: Core):
    await made(client, admin)
    await sign_in(client)
    await client.post("/auth/keys/rotate", headers=admin, json={})
    core.identity.clock = lambda: datetime.now(UTC) + timedelta(days=31)
    fresh = await sign_in(client, username=ADMIN, password=PASSWORD)
    rotated = await client.post("/auth/keys/rotate", headers=bearer(fresh["access_token"]), json={})
    assert len(rotated.json()["keys"]) == 2, "the first one is gone"
