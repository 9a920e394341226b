import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from cluster.egress import Egress, NotPublic, parsed, public, told
from cluster.errors import Invalid

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "100.100.100.200",
    "168.63.129.16", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1",
    "fe80::1%eth0", "fd00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1",
]  # fmt: skip


class Names(AbstractResolver):
    """A resolver whose answers are listed; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        self.asked.append(host)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            {
                "hostname": host, "host": address, "port": port, "proto": 0, "flags": socket.AI_NUMERICHOST,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
            }
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_known(address):
    assert not public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_public(address):
    assert public(address)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/x", "kind"), ("file:///etc/passwd", "kind"), ("gopher://host/", "kind"), ("host/x", "kind"),
        ("http:///x", "kind"), ("http://", "kind"), ("", "kind"), ("http://host:0/", "kind"), ("javascript:1", "kind"),
        ("http://host:99999/", "kind"), ("http://host:abc/", "kind"), ("http://[::1", "kind"), ("//host/x", "kind"),
        ("http://user:pw@host/", "credentials"), ("http://user@host/", "credentials"), ("http://@host/", "credentials"),
        ("http://8.8.8.8:80@127.0.0.1/", "credentials"), ("http://host/#part", "fragment"),
        ("http://host/#", "fragment"), ("http://host/\r\nX-Evil: 1", "ASCII"), ("http://host/\nx", "ASCII"),
        ("http://ho\tst/", "ASCII"), ("http://host/ x", "ASCII"), ("http://host\\@evil/", "ASCII"),
        ("http://host/\x00", "ASCII"), ("http://h\u00f6st/", "ASCII"), ("http://host/" + "x" * 2000, "2000"),
        ("http://\u2460\u2461\u2466.0.0.1/", "ASCII"),
    ],
)  # fmt: skip
def test_a_url_that_may_not_be_called_is_refused_by_field(url, says):
    with pytest.raises(Invalid, match=says) as refusal:
        parsed(url, "url")
    assert refusal.value.details["field"] == "url"


@pytest.mark.parametrize("url", ["https://agent.example.com/webhooks/ains-events", "http://host:8080/a?b=c%0d%0ad@e"])
def test_a_plain_url_may(url):
    assert parsed(url, "url").host in ("agent.example.com", "host")


NAMES_OF_LOOPBACK = [
    "127.0.0.1", "localhost", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "0x7f.1",
    "127.1", "017700000001", "0", "0.0.0.0", "[::]", "[::127.0.0.1]",
]  # fmt: skip


@pytest.mark.parametrize("host", NAMES_OF_LOOPBACK)
async def test_in_production_loopback_is_refused_however_it_is_written(host):
    egress = Egress(public_only=True)
    with pytest.raises(Invalid):
        await egress.check(f"http://{host}:8080/x")
    arrived = []

    async def note(request: web.Request) -> web.Response:
        arrived.append(request)
        return web.Response()

    async with serving(note) as port:
        with pytest.raises(aiohttp.ClientError):
            await egress.post(f"http://{host}:{port}/x")
    assert not arrived
    await egress.close()


async def test_in_development_loopback_may_be_called():
    egress = Egress(public_only=False)
    await egress.check("http://localhost:1/x")

    async def fine(_: web.Request) -> web.Response:
        return web.Response(text="fine", headers={"Set-Cookie": "a=b"})

    async with serving(fine) as port:
        async with egress.post(f"http://127.0.0.1:{port}/x") as answer:
            assert answer.status == 200
        async with egress.post(f"http://127.0.0.1:{port}/x") as answer:
            assert "Cookie" not in answer.request_info.headers
    await egress.close()


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["fd00::1"], []])
async def test_a_name_of_which_any_address_is_private_is_refused(addresses):
    with pytest.raises(Invalid, match="not public"):
        await Egress(public_only=True, resolver=Names(addresses)).check("http://inside.example/x")


async def test_a_name_that_nobody_has_is_refused():
    for name in ("name.invalid", "a..b"):
        with pytest.raises(Invalid, match="cannot be resolved"):
            await Egress(public_only=True).check(f"http://{name}/x")


async def test_a_name_that_moves_inside_after_it_was_checked_is_not_called():
    arrived = []

    async def note(request: web.Request) -> web.Response:
        arrived.append(request)
        return web.Response()

    async with serving(note) as port:
        names = Names(["8.8.8.8"], ["127.0.0.1"])
        egress = Egress(public_only=True, resolver=names)
        await egress.check(f"http://rebinding.example:{port}/x")
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await egress.post(f"http://rebinding.example:{port}/x")
        assert isinstance(refused.value.os_error, NotPublic) and told(refused.value) == "the address is not public"
        assert names.asked == ["rebinding.example"] * 2 and not arrived
        await egress.close()


async def test_a_redirect_is_an_answer_and_not_followed():
    arrived = []

    async def elsewhere(request: web.Request) -> web.Response:
        arrived.append(request.path)
        raise web.HTTPTemporaryRedirect("http://169.254.169.254/latest/meta-data")

    egress = Egress(public_only=False)
    async with serving(elsewhere) as port, egress.post(f"http://127.0.0.1:{port}/x") as answer:
        assert answer.status == 307 and arrived == ["/x"]
    await egress.close()


class serving:
    """A server on loopback for one handler; its port."""

    def __init__(self, handler: Any) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        self.runner = web.AppRunner(app)

    async def __aenter__(self) -> int:
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return self.runner.addresses[0][1]

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()
