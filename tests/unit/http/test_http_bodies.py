"""Bodies that nobody should send: each is a clean refusal in its dialect, and nothing of it reaches a service."""

import pytest
from http_harness import Client

from cluster.tasks.service import Tasks
from cluster.trust.service import Trust
from cluster.workers.service import Workers
from serve_apps.core import Core
from serve_apps.kit import body

JSON = {"Content-Type": "application/json"}
TASK = b'{"client_id": "a", "task_type": "t", "capability_required": "c:v1", "input_data": %s}'
POSTS = {
    "aivillage": ("/v1/query", "error_code"), "ains": ("/ains/tasks", "error.code"),
    "aifarm": ("/api/tasks", "error.code"), "orchestra": ("/chat/v2/chat", "error.code"),
    "forge": ("/v1/fine-tune", "code"), "openai": ("/openai/v1/chat/completions", "error.code"),
}  # fmt: skip
BAD = {
    "half an object": (b'{"a": ', 400),
    "no JSON": (b"a=1&b=2", 400),
    "invalid UTF-8": (b'{"a": "\xff\xfe"}', 400),
    "a lone surrogate": (b'{"a": "\\ud800"}', 400),
    "not a number": (b'{"a": NaN}', 400),
    "infinity": (b'{"a": Infinity}', 400),
    "bottomless nesting": (b"[" * 200_000, 400),
    "nesting that ends": (b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, 400),
}


@pytest.fixture(autouse=True)
def tasks(core: Core):
    core.tasks, core.trust = Tasks(core.store), Trust(core.store)
    core.workers = Workers(core.store, core.trust)


@pytest.mark.parametrize("dialect", POSTS)
@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_body_is_refused_in_its_dialect(client: Client, admin, dialect: str, bad: str):
    (path, where), (content, status) = POSTS[dialect], BAD[bad]
    answer = await client.post(path, content=content, headers=admin | JSON)
    expected = 422 if dialect == "forge" and answer.status_code == 422 else status
    assert answer.status_code == expected, answer.text
    code = answer.json()
    for part in where.split("."):
        code = code[part]
    assert isinstance(code, str) and code


@pytest.mark.parametrize("dialect", POSTS)
async def test_a_body_over_the_limit_is_413_before_it_is_read(client: Client, admin, dialect: str, monkeypatch):
    monkeypatch.setattr(body, "MAX_BYTES", 1000)
    monkeypatch.setattr(body.read, "__defaults__", (1000,))
    told = await client.post(POSTS[dialect][0], content=b" " * 1001, headers=admin | JSON)

    async def untold():
        for _ in range(11):
            yield b" " * 100

    answer = await client.post(POSTS[dialect][0], content=untold(), headers=admin | JSON)
    assert (told.status_code, answer.status_code) == (413, 413)


@pytest.mark.parametrize("dialect", POSTS)
async def test_another_content_type_is_415_and_says_which_is_taken(client: Client, admin, dialect: str):
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await client.post(POSTS[dialect][0], content=b"{}", headers=admin | {"Content-Type": media})
        assert answer.status_code == 415 and "application/json" in answer.text, media


async def test_a_stranger_is_refused_before_his_body_is_looked_at(client: Client):
    answer = await client.post("/ains/tasks", content=b"[" * 100_000, headers=JSON)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "content", [b'{"n": %s}' % (b"9" * 5000), b'{"n": 1e999}', b'{"a\\u0000b": "c\\u0000d"}', b'{"n": -0.0}'],
    ids=["a huge number", "a number beyond a float", "null bytes", "minus nothing"],
)  # fmt: skip
async def test_odd_values_are_kept_or_refused_and_break_nothing(client: Client, admin, content: bytes):
    answer = await client.post("/ains/tasks", content=TASK % content, headers=admin | JSON)
    assert answer.status_code in (201, 400), answer.text
    if answer.status_code == 201:
        read = await client.get(f"/ains/tasks/{answer.json()['task_id']}", headers=admin)
        assert read.status_code == 200
    assert (await client.get("/ains/tasks", headers=admin)).status_code == 200


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "%00", "a%0d%0aX-Evil:%201", "%ff%fe", "x" * 3000, "{village}:key:*", "*", " "]
)
async def test_odd_ids_are_not_found(client: Client, admin, name: str):
    for path in ("/ains/tasks/{}", "/ains/agents/{}", "/ains/agents/{}/trust"):
        answer = await client.get(path.format(name), headers=admin)
        assert answer.status_code in (400, 404), (path, answer.text)
        assert "x-evil" not in answer.headers
