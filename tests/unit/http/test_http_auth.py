"""Signing in, refreshing, forging, and API keys."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import jwt
import pytest
from http_harness import ADMIN, PASSWORD, Client

from cluster.identity.model import SYSTEM
from cluster.identity.records import ApiKey
from cluster.identity.service import Identity
from serve_apps.core import Core
from serve_apps.gateway import build_gateway

SIGN_IN = {"username": ADMIN, "password": PASSWORD}


async def sign_in(client: Client) -> dict:
    answer = await client.post("/auth/token", json=SIGN_IN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_token_names_its_user_scopes_and_tier(client: Client):
    pair = await sign_in(client)
    assert pair["token_type"] == "bearer" and pair["expires_in"] == 3600 and "admin" in pair["scopes"]
    claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
    assert {"sub", "scopes", "tier", "exp", "iat", "jti"} <= claims.keys() and claims["tier"] == "enterprise"
    assert (await client.get("/ains/version", headers=bearer(pair["access_token"]))).status_code == 200


@pytest.mark.parametrize("body", [SIGN_IN | {"password": "wrong"}, SIGN_IN | {"username": "nobody"}])
async def test_a_wrong_password_and_an_unknown_user_look_alike(client: Client, body):
    answer = await client.post("/auth/token", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (401, "AUTHENTICATION_REQUIRED")
    assert answer.json()["message"] == "wrong username or password"


async def test_a_validation_error_does_not_repeat_the_password(client: Client):
    answer = await client.post("/auth/token", json={"password": "hunter2"})
    assert answer.status_code == 400 and "hunter2" not in answer.text


async def test_a_refresh_token_is_good_once(client: Client):
    first = await sign_in(client)
    second = (await client.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})).json()
    third = await client.post("/auth/refresh", json={"refresh_token": second["refresh_token"]})
    assert third.status_code == 200 and third.json()["refresh_token"] != second["refresh_token"]


async def test_a_reused_refresh_token_ends_its_whole_session_and_no_other(client: Client):
    first, other = await sign_in(client), await sign_in(client)
    second = (await client.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})).json()
    for token in (first["refresh_token"], second["refresh_token"]):
        assert (await client.post("/auth/refresh", json={"refresh_token": token})).status_code == 401
    assert (await client.post("/auth/refresh", json={"refresh_token": other["refresh_token"]})).status_code == 200


async def test_of_two_refreshes_at_once_one_wins(client: Client):
    token = {"refresh_token": (await sign_in(client))["refresh_token"]}
    answers = await asyncio.gather(*(client.post("/auth/refresh", json=token) for _ in range(4)))
    assert sorted(a.status_code for a in answers)[:2] == [200, 401]


async def test_tokens_that_we_did_not_sign_open_nothing(client: Client):
    pair = await sign_in(client)
    token = pair["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    forged = [
        token[:-3] + ("abc" if token[-3:] != "abc" else "xyz"),
        jwt.encode(claims, "x" * 32, "HS256"),
        jwt.encode(claims, None, "none"),  # type: ignore[arg-type]  # as an attacker would
        pair["refresh_token"],
        "",
    ]
    for one in forged:
        assert (await client.get("/ains/version", headers=bearer(one))).status_code == 401, one
    answer = await client.post("/auth/refresh", json={"refresh_token": token})
    assert answer.status_code == 401, "an access token is no refresh token"


async def test_an_expired_token_is_refused(client: Client, core: Core):
    token = (await sign_in(client))["access_token"]
    core.identity.clock = lambda: datetime.now(UTC) + timedelta(hours=2)
    assert (await client.get("/ains/version", headers=bearer(token))).status_code == 401


async def test_a_disabled_user_is_out(client: Client, core: Core, user):
    headers = await user("bob")
    assert (await client.get("/ains/version", headers=headers)).status_code == 200
    await core.identity.disable("bob")
    assert (await client.get("/ains/version", headers=headers)).status_code == 401
    assert (await client.post("/auth/token", json={"username": "bob", "password": PASSWORD})).status_code == 401


async def test_a_new_password_ends_the_tokens_of_the_old_one(client: Client, core: Core, user):
    headers = await user("bob")
    await core.identity.set_password("bob", "another horse")
    assert (await client.get("/ains/version", headers=headers)).status_code == 401
    assert (await client.post("/auth/token", json={"username": "bob", "password": "another horse"})).status_code == 200


async def make_key(client: Client, headers, **fields):
    return await client.post("/ains/api-keys", headers=headers, json={"client_id": "app", "name": "App"} | fields)


async def test_a_key_works_until_it_is_revoked(client: Client, admin, core: Core):
    made = (await make_key(client, admin, scopes=["keys:manage"], rate_limit_per_minute=100)).json()
    assert made["api_key"].startswith("ains_") and len(made["api_key"]) == 48
    key = {"X-API-Key": made["api_key"]}
    answer = await client.get("/ains/version", headers=key)
    assert (answer.status_code, answer.headers["x-ratelimit-limit-minute"]) == (200, "100")
    assert (await client.get("/ains/version", headers=bearer(made["api_key"]))).status_code == 200
    listed = (await client.get("/ains/api-keys", headers=key, params={"client_id": "app"})).json()
    await core.identity.settled()
    assert listed["total"] == 1 and "api_key" not in listed["keys"][0]
    revoked = await client.delete(f"/ains/api-keys/{made['key_id']}", headers=admin)
    assert revoked.json()["key_id"] == made["key_id"]
    refused = await client.get("/ains/version", headers=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "INVALID_API_KEY")
    active = await client.get("/ains/api-keys", headers=admin, params={"active_only": "true"})
    assert active.json() == {"keys": [], "total": 0}


async def test_the_key_itself_is_not_kept(client: Client, admin, core: Core):
    made = (await make_key(client, admin)).json()
    assert made["api_key"] not in (await core.store.get(ApiKey, made["key_id"])).model_dump_json()


async def test_a_key_notes_its_use_at_most_once_a_minute(client: Client, admin, core: Core):
    made = (await make_key(client, admin)).json()
    for _ in range(3):
        await client.get("/ains/version", headers={"X-API-Key": made["api_key"]})
        await core.identity.settled()
        used = (await core.store.get(ApiKey, made["key_id"])).last_used_at
        assert used is not None
    assert (await core.store.get(ApiKey, made["key_id"])).last_used_at == used
    core.identity.clock = lambda: datetime.now(UTC) + timedelta(seconds=61)
    await client.get("/ains/version", headers={"X-API-Key": made["api_key"]})
    await core.identity.settled()
    assert (await core.store.get(ApiKey, made["key_id"])).last_used_at > used


async def test_an_expired_key_is_refused(client: Client, admin, core: Core):
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = (await make_key(client, admin, expires_at=soon)).json()
    core.identity.clock = lambda: datetime.now(UTC) + timedelta(hours=2)
    assert (await client.get("/ains/version", headers={"X-API-Key": made["api_key"]})).status_code == 401


async def test_nobody_gives_more_than_he_has(client: Client, admin, user):
    keeper = await user("kim", frozenset({"keys:manage", "tasks:read"}))
    assert (await make_key(client, keeper, scopes=["admin"])).status_code == 403
    assert (await make_key(client, keeper, scopes=["tasks:read"], rate_limit_per_minute=61)).status_code == 403
    assert (await make_key(client, keeper, scopes=["tasks:read"])).status_code == 201
    other = await user("lee", frozenset({"keys:manage", "tasks:read"}))
    assert (await make_key(client, other, scopes=["tasks:read"])).status_code == 403, "the client is kim's"
    assert (await client.get("/ains/api-keys", headers=other)).json()["total"] == 0
    assert (await make_key(client, await user("max"))).status_code == 403, "write does not imply keys:manage"
    assert (await make_key(client, admin, scopes=["tasks:fly"])).status_code == 400


async def test_another_users_key_is_not_found(client: Client, admin, user):
    made = (await make_key(client, admin)).json()
    other = await user("lee", frozenset({"keys:manage"}))
    assert (await client.delete(f"/ains/api-keys/{made['key_id']}", headers=other)).status_code == 404


async def test_strangers_are_counted_by_address(client: Client, core: Core):
    from cluster.limits.policy import load

    core.limiter.policy = load()
    answers = [await client.post("/auth/refresh", json={"refresh_token": "x"}) for _ in range(62)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:60] == [401] * 60 and 429 in statuses[60:]


async def test_a_key_that_was_revoked_elsewhere_is_told_so_even_over_its_limit(client: Client, admin, core: Core):
    made = (await make_key(client, admin, rate_limit_per_minute=1)).json()
    key = {"X-API-Key": made["api_key"]}
    assert [(await client.get("/ains/version", headers=key)).status_code for _ in range(2)] == [200, 429]
    await Identity(core.store).revoke_key(SYSTEM, made["key_id"])
    assert (await client.get("/ains/version", headers=key)).status_code == 401


async def test_an_open_forge_is_open_to_this_machine_only(core: Core):
    core.settings = core.settings.model_copy(update={"forge_open": True})
    asked = {}
    for address in ("127.0.0.1", "::1", "192.0.2.1"):
        transport = httpx.ASGITransport(build_gateway(core), client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://village") as client:
            asked[address] = [(await client.get(path)).status_code for path in ("/jobs", "/ains/tasks")]
            assert (await client.get("/jobs", headers=bearer("forged"))).status_code == 401
    assert asked == {"127.0.0.1": [501, 401], "::1": [501, 401], "192.0.2.1": [401, 401]}
