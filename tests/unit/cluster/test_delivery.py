import socket

import pytest
from aiohttp import web
from eventually import eventually
from working_agent import WorkingAgent, working

from cluster.clock import utc_now
from cluster.tasks import delivery
from cluster.tasks.delivery import Accepted, Completed, Delivery, Failed, Unreachable, outcome
from cluster.tasks.model import Task

TASK = Task(
    task_id="task_1", owner="user_1", client_id="c", task_type="sum", capability_required="sums:v1",
    input_data={"a": [1, 2]}, metadata={"m": 1}, created_at=utc_now(), updated_at=utc_now(), attempt=3,
    task_token="secret",
)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (200, b'{"status": "COMPLETED", "result_data": {"x": 1}}', Completed, ""),
        (201, b'{"status": "COMPLETED"}', Completed, ""),
        (200, b'{"status": "FAILED", "error": "no data"}', Failed, "no data"),
        (200, b'{"status": "FAILED"}', Failed, "gave no reason"),
        (200, b'{"status": "FAILED", "error": {"code": 7}}', Failed, "code"),
        (202, b"anything", Accepted, ""),
        (429, b"", Unreachable, "429"), (502, b"", Unreachable, "502"), (503, b"", Unreachable, "503"),
        (504, b"", Unreachable, "504"),
        (400, b'{"status": "COMPLETED"}', Failed, "400"), (404, b"", Failed, "404"), (500, b"", Failed, "500"),
        (301, b"", Failed, "301"),
        (200, b"", Failed, "not an object"), (200, b"{}", Failed, "not an object"),
        (200, b"[1]", Failed, "not an object"),
        (200, b'"COMPLETED"', Failed, "not an object"), (200, b"null", Failed, "not an object"),
        (200, b"\xff\xfe", Failed, "not an object"), (200, b"[" * 100_000, Failed, "not an object"),
        (200, b'{"status": "COMPLETED", "result_data": NaN}', Failed, "not an object"),
        (200, b'{"status": "COMPLETED", "result_data": "\\ud800"}', Failed, "not an object"),
        (200, b'{"status": "RUNNING"}', Failed, "RUNNING"),
        (200, b'{"status": ["COMPLETED"]}', Failed, "unknown status"),
    ],
)  # fmt: skip
def test_what_an_answer_means(status, body, kind, says):
    found = outcome(status, body)
    assert isinstance(found, kind) and says in getattr(found, "error", "")


def test_a_result_is_kept_as_it_came():
    found = outcome(200, b'{"status": "COMPLETED", "result_data": [1, 2.5, "\xc3\xbc", null, 123456789012345678901]}')
    assert found == Completed([1, 2.5, "ü", None, 123456789012345678901])


async def test_what_an_agent_is_sent():
    sender = Delivery("http://village:8080", public_only=False)
    async with working() as agent:
        assert await sender.send(agent.url, TASK) == Completed({"echo": {"a": [1, 2]}})
    [sent] = agent.tasks
    assert sent == {
        "task_id": "task_1", "attempt_id": "task_1.3", "task_type": "sum", "capability_required": "sums:v1",
        "input_data": {"a": [1, 2]}, "priority": 5, "timeout_seconds": 300, "metadata": {"m": 1},
        "deadline": None,
        "task_token": "secret",
        "callback_url": "http://village:8080/ains/tasks/task_1/result",
    }  # fmt: skip
    await sender.close()


async def test_a_redirect_is_not_followed():
    async with working() as other:

        async def elsewhere(_):
            raise web.HTTPTemporaryRedirect(other.url)

        async with working(elsewhere) as agent:
            sender = Delivery("", public_only=False)
            assert isinstance(await sender.send(agent.url, TASK), Failed) and not other.tasks
            await sender.close()


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1/x", "http://[::1", "nonsense", "http://name.invalid/x", "ftp://x/y"]
)
async def test_what_cannot_be_reached_is_unreachable(endpoint):
    sender = Delivery("", public_only=False)
    assert isinstance(await sender.send(endpoint, TASK), Unreachable)
    await sender.close()


async def test_a_server_that_hangs_up_is_unreachable():
    door = socket.create_server(("127.0.0.1", 0))
    door.setblocking(False)
    import asyncio

    async def hang_up():
        connection, _ = await asyncio.get_running_loop().sock_accept(door)
        connection.close()

    accepting = asyncio.create_task(hang_up())
    sender = Delivery("", public_only=False)
    assert isinstance(await sender.send(f"http://127.0.0.1:{door.getsockname()[1]}/x", TASK), Unreachable)
    await accepting
    await sender.close()
    door.close()


async def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(delivery, "MAX_ANSWER_BYTES", 10_000)
    sender = Delivery("", public_only=False)

    async def long(_):
        return b'{"status": "COMPLETED", "result_data": "' + b"x" * 20_000 + b'"}'

    async with working(long) as agent:
        found = await sender.send(agent.url, TASK)
    assert isinstance(found, Failed) and "longer than 10000 bytes" in found.error
    await sender.close()


async def test_cancelling_closes_the_connection():
    import asyncio

    async def forget(_):
        await asyncio.Event().wait()

    sender = Delivery("", public_only=False)
    async with working(forget) as agent:
        sending = asyncio.create_task(sender.send(agent.url, TASK))
        await eventually(lambda: agent.inside)
        sending.cancel()
        await eventually(lambda: agent.dropped == 1)
    await sender.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "127.1"])
async def test_in_production_no_delivery_reaches_loopback(host):
    agent: WorkingAgent
    async with working() as agent:
        port = agent.url.split(":")[2].split("/")[0]
        sender = Delivery("", public_only=True)
        assert isinstance(await sender.send(f"http://{host}:{port}/execute", TASK), Unreachable)
        await sender.close()
    assert not agent.tasks
