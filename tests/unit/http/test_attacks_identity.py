"""Attacks on identity, over HTTP: each is something that a stranger, a user or a thief could try."""

import base64
import dataclasses
import json
from datetime import UTC, datetime, timedelta

import httpx
import jwt
import pyotp
import pytest
from http_harness import ADMIN, PASSWORD, QUICK, Client

from cluster.identity.passwords import Passwords
from cluster.identity.records import Session, User, user_id
from cluster.identity.service import Identity
from serve_apps.core import Core
from serve_apps.gateway import build_gateway

ME, SIGN_IN = "/v1/users/me", {"username": "ann", "password": PASSWORD}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def encoded(part: dict) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.fixture
async def pair(client: Client, user) -> dict:
    """ann's tokens."""
    await user("ann")
    answer = await client.post("/auth/token", json=SIGN_IN)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
async def ours(core: Core) -> tuple[str, str]:
    """The signing secret and its name: what an attacker does not have."""
    current = (await core.identity._read_signing()).current
    return current.secret, current.kid


def claims_of(token: str) -> dict:
    return jwt.decode(token, options={"verify_signature": False})


FORGERIES = {
    "unsigned": lambda c, k, s: jwt.encode(c, None, "none", {"kid": k}),  # type: ignore[arg-type]
    "None, another case": lambda c, k, s: f"{encoded({'alg': 'nOnE', 'typ': 'JWT', 'kid': k})}.{encoded(c)}.",
    "no algorithm": lambda c, k, s: f"{encoded({'typ': 'JWT', 'kid': k})}.{encoded(c)}.",
    "another secret": lambda c, k, s: jwt.encode(c, "x" * 64, "HS256", {"kid": k}),
    "no secret": lambda c, k, s: f"{encoded({'alg': 'HS256', 'kid': k})}.{encoded(c)}.",
    "unknown key": lambda c, k, s: jwt.encode(c, s, "HS256", {"kid": "mine"}),
    "no key": lambda c, k, s: jwt.encode(c, s, "HS256"),
    "key is a list": lambda c, k, s: f"{encoded({'alg': 'HS256', 'kid': [k]})}.{encoded(c)}.AAAA",
    "key is a path": lambda c, k, s: jwt.encode(c, "x" * 64, "HS256", {"kid": "../../../dev/null"}),
    "another algorithm": lambda c, k, s: jwt.encode(c, s * 2, "HS512", {"kid": k}),
    "our secret, another algorithm": lambda c, k, s: jwt.encode(c, s, "HS384", {"kid": k}),
    "another audience": lambda c, k, s: jwt.encode(c | {"aud": "elsewhere"}, s, "HS256", {"kid": k}),
    "no audience": lambda c, k, s: jwt.encode({n: v for n, v in c.items() if n != "aud"}, s, "HS256", {"kid": k}),
    "another issuer": lambda c, k, s: jwt.encode(c | {"iss": "elsewhere"}, s, "HS256", {"kid": k}),
    "no expiry": lambda c, k, s: jwt.encode({n: v for n, v in c.items() if n != "exp"}, s, "HS256", {"kid": k}),
    "no id": lambda c, k, s: jwt.encode({n: v for n, v in c.items() if n != "jti"}, s, "HS256", {"kid": k}),
    "another's session": lambda c, k, s: jwt.encode(c | {"sub": user_id(ADMIN)}, s, "HS256", {"kid": k}),
    "no such session": lambda c, k, s: jwt.encode(c | {"sid": "session_x"}, s, "HS256", {"kid": k}),
    "expired": lambda c, k, s: jwt.encode(c | {"exp": c["iat"] - 1}, s, "HS256", {"kid": k}),
    "another kind": lambda c, k, s: jwt.encode(c | {"typ": "refresh"}, s, "HS256", {"kid": k}),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_token_that_is_not_ours_or_not_for_us_is_refused(client: Client, pair, ours, forgery):
    secret, kid = ours
    claims = claims_of(pair["access_token"])
    token = FORGERIES[forgery](claims, kid, secret)
    answer = await client.get(ME, headers=bearer(token))
    assert (answer.status_code, answer.json()["error_code"]) == (401, "AUTHENTICATION_REQUIRED")
    assert answer.json()["message"] in ("the token is invalid or expired", "the token is no longer good")
    good = jwt.encode(claims, secret, "HS256", {"kid": kid})
    assert (await client.get(ME, headers=bearer(good))).status_code == 200, "the forgery differs in one thing only"


async def test_changed_claims_break_the_signature(client: Client, pair):
    header, _, signature = pair["access_token"].split(".")
    claims = claims_of(pair["access_token"]) | {"scopes": ["admin"], "tier": "enterprise"}
    assert (await client.get("/v1/users", headers=bearer(f"{header}.{encoded(claims)}.{signature}"))).status_code == 401


async def test_scopes_of_a_token_are_for_reading_only(client: Client, pair, ours):
    """Even a token that we signed by mistake gives no more than the user has."""
    secret, kid = ours
    claims = claims_of(pair["access_token"]) | {"scopes": ["admin"], "tier": "enterprise"}
    token = jwt.encode(claims, secret, "HS256", {"kid": kid})
    assert (await client.get("/v1/users", headers=bearer(token))).status_code == 403


async def test_an_expired_token_is_refused_though_it_was_remembered(client: Client, core: Core, pair):
    headers = bearer(pair["access_token"])
    assert (await client.get(ME, headers=headers)).status_code == 200
    core.identity.clock = lambda: datetime.now(UTC) + timedelta(seconds=3601)
    assert (await client.get(ME, headers=headers)).status_code == 401


async def test_a_refresh_token_opens_nothing_and_an_access_token_refreshes_nothing(client: Client, pair):
    assert (await client.get(ME, headers=bearer(pair["refresh_token"]))).status_code == 401
    swapped = await client.post("/auth/refresh", json={"refresh_token": pair["access_token"]})
    assert swapped.status_code == 401


async def test_a_stolen_refresh_token_ends_with_the_theft(client: Client, pair):
    """The thief refreshes first; when the owner does, both must sign in again, and the thief's access tokens end."""
    stolen = {"refresh_token": pair["refresh_token"]}
    thief = (await client.post("/auth/refresh", json=stolen)).json()
    assert (await client.get(ME, headers=bearer(thief["access_token"]))).status_code == 200
    assert (await client.post("/auth/refresh", json=stolen)).status_code == 401
    assert (await client.get(ME, headers=bearer(thief["access_token"]))).status_code == 401
    own = await client.get(ME, headers=bearer(pair["access_token"]))
    assert own.status_code == 200, "no refresh token buys the access token of the sign-in itself"
    assert (await client.post("/auth/refresh", json={"refresh_token": thief["refresh_token"]})).status_code == 401


async def test_a_refresh_does_not_outlive_its_user(client: Client, core: Core, pair):
    await core.identity.disable("ann")
    assert (await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).status_code == 401


async def test_a_session_cannot_be_refreshed_for_ever(client: Client, core: Core, pair):
    core.identity.clock = lambda: datetime.now(UTC) + timedelta(days=29, hours=23, minutes=59)
    last = (await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).json()
    assert last["expires_in"] <= 60, "an access token ends with its session"
    core.identity.clock = lambda: datetime.now(UTC) + timedelta(days=30, seconds=1)
    assert (await client.post("/auth/refresh", json={"refresh_token": last["refresh_token"]})).status_code == 401
    assert (await client.get(ME, headers=bearer(last["access_token"]))).status_code == 401


async def test_the_password_alone_does_not_get_past_a_second_factor_by_refreshing(client: Client, core: Core, pair):
    """A thief who signed in before the second factor was set up is out with it, and cannot switch it off."""
    owner = (await client.post("/auth/token", json=SIGN_IN)).json()
    headers = bearer(owner["access_token"])
    codes = pyotp.TOTP((await client.post("/auth/mfa/enroll", headers=headers)).json()["secret"])
    code = codes.at(core.identity.clock())
    assert (await client.post("/auth/mfa/verify", headers=headers, json={"code": code})).status_code == 200
    assert (await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).status_code == 401
    assert (await client.get(ME, headers=bearer(pair["access_token"]))).status_code == 401
    for extra in ({}, {"mfa_code": ""}, {"mfa_code": None}, {"mfa_code": code}, {"mfa_code": " "}):
        answer = await client.post("/auth/token", json=SIGN_IN | extra)
        assert answer.status_code == 401 and answer.json()["details"] == {"mfa_required": True}, extra


@pytest.mark.parametrize("code", ["١٢٣٤٥٦", "12345６", "-12345", "1e5000", "000000\x00", "' or 1=1 --", "123456" * 5])
async def test_a_code_in_another_guise_is_a_wrong_code(client: Client, core: Core, pair, code):
    headers = bearer(pair["access_token"])
    await client.post("/auth/mfa/enroll", headers=headers)
    answer = await client.post("/auth/mfa/verify", headers=headers, json={"code": code})
    assert answer.status_code in (400, 403), answer.text


async def test_enrolling_again_does_not_replace_a_second_factor(client: Client, core: Core, pair):
    headers = bearer(pair["access_token"])
    secret = (await client.post("/auth/mfa/enroll", headers=headers)).json()["secret"]
    code = pyotp.TOTP(secret).at(core.identity.clock())
    await client.post("/auth/mfa/verify", headers=headers, json={"code": code})
    for path, body in (("enroll", None), ("verify", {"code": code})):
        assert (await client.post(f"/auth/mfa/{path}", headers=headers, json=body)).status_code == 409
    wrong = {"password": "wrong", "code": code}
    assert (await client.post("/auth/mfa/disable", headers=headers, json=wrong)).status_code == 403


async def test_a_user_does_not_promote_himself(client: Client, core: Core, pair):
    headers, of = bearer(pair["access_token"]), user_id("ann")
    before = await core.store.get(User, of)
    own = {"old_password": PASSWORD, "new_password": "long enough"}
    tries = [
        ("PATCH", f"/v1/users/{of}", {"scopes": ["admin"]}),
        ("PATCH", "/v1/users/me", {"scopes": ["admin"]}),
        ("POST", "/v1/users", {"username": "eve", "password": "long enough", "scopes": ["admin"]}),
        ("POST", "/v1/users/me/password", own | {"tier": "enterprise"}),
        ("POST", "/v1/users/me/password", own | {"user_id": user_id(ADMIN)}),
        ("POST", f"/v1/users/{user_id(ADMIN)}/password", {"new_password": "long enough"}),
        ("POST", f"/v1/users/{of}/revoke-keys", {}),
        ("DELETE", f"/v1/users/{of}/mfa", None),
        ("DELETE", f"/v1/users/{user_id(ADMIN)}", None),
        ("GET", f"/v1/users/{user_id(ADMIN)}", None),
        ("POST", "/auth/keys/rotate", {"now": True}),
    ]  # fmt: skip
    for method, path, body in tries:
        answer = await client.request(method, path, headers=headers, json=body)
        assert answer.status_code in (400, 403, 405), (method, path, answer.text)
    assert await core.store.get(User, of) == before


async def test_signing_in_takes_no_rights_from_the_request(client: Client, pair):
    answer = await client.post("/auth/token", json=SIGN_IN | {"scopes": ["admin"], "tier": "enterprise"})
    assert answer.json()["scopes"] == ["read", "write"]


async def test_another_users_session_is_not_there(client: Client, core: Core, pair, user):
    [theirs] = (await client.get("/auth/sessions", headers=await user("bob"))).json()["sessions"]
    answer = await client.delete(f"/auth/sessions/{theirs['session_id']}", headers=bearer(pair["access_token"]))
    assert answer.status_code == 404
    assert await core.store.find(Session, theirs["session_id"])


async def test_another_clients_key_reaches_nothing_of_ours(client: Client, core: Core, admin, user):
    scopes = frozenset({"keys:manage", "tasks:read", "tasks:write"})
    kim, lee = await user("kim", scopes), await user("lee", scopes)

    async def key(headers, client_id: str) -> dict:
        body = {"client_id": client_id, "name": client_id, "scopes": ["keys:manage"]}
        return await client.post("/ains/api-keys", headers=headers, json=body)

    ours, theirs = (await key(kim, "ours")).json(), (await key(lee, "theirs")).json()
    stranger = {"X-API-Key": theirs["api_key"]}
    for method in ("GET", "DELETE"):
        answer = await client.request(method, f"/ains/api-keys/{ours['key_id']}", headers=stranger)
        assert answer.status_code == 404
    assert (await key(stranger, "ours")).status_code == 403, "a key makes keys of its own client only"
    listed = (await client.get("/ains/api-keys", headers=stranger, params={"client_id": "ours"})).json()
    assert listed == {"keys": [], "total": 0}
    more = {"client_id": "theirs", "name": "more", "scopes": ["tasks:write"]}
    assert (await client.post("/ains/api-keys", headers=stranger, json=more)).status_code == 403, "more than it has"


@pytest.mark.parametrize("change", [lambda k: k[:-1] + ("A" if k[-1] != "A" else "B"), str.upper, lambda k: k + "A"])
async def test_a_key_that_is_nearly_right_is_wrong(client: Client, admin, change):
    key = (await client.post("/ains/api-keys", headers=admin, json={"client_id": "app", "name": "App"})).json()
    assert (await client.get("/ains/version", headers={"X-API-Key": change(key["api_key"])})).status_code == 401


@pytest.mark.parametrize(
    "name", ["аnn", "ann\u200b", "an\u0301n", "a\u00adnn", "ann\x00", "ａnn", "ann'--", "*", "ann/../bob"]
)
async def test_a_name_that_only_looks_like_another_is_nobody(client: Client, admin, pair, name):
    assert (await client.post("/auth/token", json=SIGN_IN | {"username": name})).status_code in (400, 401)
    body = {"username": name, "password": "long enough"}
    answer = await client.post("/v1/users", headers=admin, json=body)
    assert answer.status_code == 400, answer.text


async def test_case_and_blanks_do_not_make_another_user(client: Client, admin, pair):
    for name in ("ANN", " ann ", "Ann"):
        assert (await client.post("/auth/token", json=SIGN_IN | {"username": name})).status_code == 200
        answer = await client.post("/v1/users", headers=admin, json={"username": name, "password": "long enough"})
        assert answer.status_code in (400, 409), name


@pytest.mark.parametrize(
    ("password", "status"),
    [("x" * 1025, 400), ("x" * 1_000_000, 400), (PASSWORD + "\x00", 401), ("\x00", 401), ("", 400)],
)
async def test_a_long_or_odd_password_costs_no_more_than_an_answer(client: Client, pair, password, status):
    answer = await client.post("/auth/token", json=SIGN_IN | {"password": password})
    assert answer.status_code == status and len(answer.text) < 2000


@pytest.mark.parametrize(
    "presented",
    ["x" * 100_000, "ains_" + "x" * 100_000, "a.b", "....", "null", "\xff\xfe", "eyJ" + "A" * 4000 + ".e30."],
)
async def test_nonsense_for_a_credential_is_a_401(client: Client, pair, presented):
    headers = [(b"authorization", b"Bearer " + presented.encode("latin-1"))]
    assert (await client.get(ME, headers=headers)).status_code == 401


async def test_whoever_sends_two_credentials_gets_one_of_them_and_never_both(client: Client, admin, pair):
    """The key counts; a bad one is not made good by the token beside it."""
    both = bearer(pair["access_token"]) | {"X-API-Key": "ains_" + "x" * 43}
    assert (await client.get(ME, headers=both)).status_code == 401


async def test_a_refusal_does_not_tell_whether_the_user_exists(client: Client, core: Core, pair, user):
    await user("out")
    await core.identity.disable("out")
    answers = [
        (await client.post("/auth/token", json={"username": name, "password": "wrong"})).json()
        for name in ("ann", "nobody", "out")
    ]
    for answer in answers:
        del answer["timestamp"], answer["request_id"]
    assert answers[0] == answers[1] == answers[2]
    for _ in range(4):
        for name in ("ann", "nobody"):
            await client.post("/auth/token", json={"username": name, "password": "wrong"})
    statuses = [
        (await client.post("/auth/token", json={"username": name, "password": "wrong"})).status_code
        for name in ("ann", "nobody")
    ]
    assert statuses == [429, 429], "an account that does not exist is throttled like one that does"


async def test_what_was_taken_back_is_refused_at_the_next_request_on_another_replica(client: Client, core: Core, pair):
    """The other replica had admitted the token from memory until then."""
    elsewhere = dataclasses.replace(core, identity=Identity(core.store, passwords=Passwords(QUICK)))
    transport = httpx.ASGITransport(build_gateway(elsewhere), client=("192.0.2.2", 1))
    headers = bearer(pair["access_token"])
    async with httpx.AsyncClient(transport=transport, base_url="http://elsewhere") as other:
        for _ in range(2):
            assert (await other.get(ME, headers=headers)).status_code == 200
        assert (await client.post("/auth/revoke", json={"token": pair["access_token"]})).status_code == 200
        assert (await other.get(ME, headers=headers)).status_code == 401
