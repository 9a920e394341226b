"""From which address a request comes: the rule by a table, and through the real front door onto a real socket."""

import asyncio
import json
import socket
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from eventually import eventually
from pydantic import ValidationError

from cluster import front
from cluster.settings import Settings, networks
from serve_apps.kit.forwarded import client_of, resolve
from serve_apps.listener import Listener

PROXIES = "10.0.0.0/8, 192.0.2.7, 2001:db8:1::/48"
LONG = ", ".join(["203.0.113.9"] * 500)


@pytest.mark.parametrize(
    ("chain", "trusted", "client"),
    [
        ("198.51.100.1", "", "198.51.100.1"),
        ("198.51.100.1", PROXIES, "198.51.100.1"),
        # Through one and through several proxies of ours.
        ("198.51.100.1, 10.0.0.1", PROXIES, "198.51.100.1"),
        ("198.51.100.1,10.9.9.9 , 192.0.2.7,10.0.0.1", PROXIES, "198.51.100.1"),
        ("2001:db8:2::5, 2001:db8:1::1", PROXIES, "2001:db8:2::5"),
        # What the caller wrote stands left of where the caller is.
        ("127.0.0.1, 198.51.100.1, 10.0.0.1", PROXIES, "198.51.100.1"),
        ("10.0.0.1, 198.51.100.1", PROXIES, "198.51.100.1"),
        ("10.0.0.1, 10.0.0.2, 198.51.100.1, 192.0.2.7", PROXIES, "198.51.100.1"),
        (f"{LONG}, 198.51.100.1, 10.0.0.1", PROXIES, "198.51.100.1"),
        ("198.51.100.1, 203.0.113.5", "", "203.0.113.5"),
        ("198.51.100.1, 10.0.0.1", "", "10.0.0.1"),
        # What is no address ends the chain.
        ("198.51.100.1, unknown, 10.0.0.1", PROXIES, "10.0.0.1"),
        ("198.51.100.1, <script>, 10.0.0.1", PROXIES, "10.0.0.1"),
        (", 10.0.0.1", PROXIES, "10.0.0.1"),
        ("unknown", PROXIES, ""),
        ("", PROXIES, ""),
        # All of them are proxies: the first is who asks.
        ("10.0.0.5, 10.0.0.1", PROXIES, "10.0.0.5"),
        # Ports, brackets, and IPv4 in IPv6.
        ("198.51.100.1:4711, 10.0.0.1:80", PROXIES, "198.51.100.1"),
        ("[2001:db8:2::5]:4711, 10.0.0.1", PROXIES, "2001:db8:2::5"),
        ("::ffff:198.51.100.1, ::ffff:10.0.0.1", PROXIES, "198.51.100.1"),
        ("2001:0DB8:0002::0005, 10.0.0.1", PROXIES, "2001:db8:2::5"),
    ],
)
def test_the_client_is_the_right_most_that_no_trusted_proxy_is(chain: str, trusted: str, client: str):
    assert client_of(chain, networks(trusted)) == client


def test_a_header_says_nothing_about_a_request_that_did_not_come_through_the_front_door():
    scope: dict[str, Any] = {
        "type": "http", "client": ("203.0.113.5", 1), "scheme": "http",
        "headers": [(b"x-forwarded-for", b"198.51.100.1"), (b"x-forwarded-proto", b"https")],
    }  # fmt: skip
    resolve(scope, ())
    assert (scope["client"][0], scope["scheme"]) == ("203.0.113.5", "http")


@pytest.mark.parametrize("wrong", ["10.0.0.0/33", "everybody", "10.0.0.1/8", "10.0.0.0/8 }\n http-request deny"])
def test_a_proxy_that_is_no_network_is_refused_at_the_start(wrong: str):
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings(trusted_proxies=wrong)


class Echo:
    """Says where a request came from, as the gateway sees it."""

    def __init__(self, trusted: Any) -> None:
        self.trusted = trusted

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind.endswith("shutdown"):
                    return
        resolve(scope, self.trusted)
        said = json.dumps({"client": scope["client"], "scheme": scope["scheme"]}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": said})


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


Ask = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Callable[[str], Awaitable[Ask]]]:
    """`await door(trusted)` -> ask through a real HAProxy and a real Unix socket."""
    started: list[Any] = []

    async def opened(trusted: str) -> Ask:
        settings = Settings(home=tmp_path, port=free_port(), farm_port=free_port(), trusted_proxies=trusted)

        async def build() -> Echo:
            return Echo(settings.trusted_networks)

        listener = await asyncio.to_thread(Listener(settings, "gateway", build).start)
        haproxy = await asyncio.create_subprocess_exec(*front.command(settings), stdout=DEVNULL, stderr=DEVNULL)
        http = httpx.AsyncClient(base_url=settings.url)
        started.append((listener, haproxy, http))

        async def ask(**headers: str) -> dict[str, Any]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}

            async def answered() -> dict[str, Any]:
                try:
                    answer = await http.get("/", headers=named)
                except httpx.TransportError:  # it does not listen yet
                    return {}
                # At first it takes every slot for a replica that lives, and may try none but empty ones.
                return answer.json() if answer.status_code == 200 else {}

            return await eventually(answered, within=20)

        return ask

    yield opened
    for listener, haproxy, http in started:
        await http.aclose()
        haproxy.kill()
        await haproxy.wait()
        await asyncio.to_thread(listener.stop)


async def test_through_the_front_door_the_address_is_the_connections_whatever_the_headers_say(door):
    ask = await door("")
    spoofed = {"x_forwarded_for": "198.51.100.1", "x_forwarded_proto": "https", "forwarded": "for=198.51.100.1"}
    for headers in ({}, spoofed, {"X_Forwarded_For": "198.51.100.1, 127.0.0.1"}):
        assert await ask(**headers) == {"client": ["127.0.0.1", 0], "scheme": "http"}


async def test_behind_a_trusted_proxy_the_address_is_the_one_that_it_saw(door):
    ask = await door("127.0.0.0/8, 10.0.0.0/8")
    assert await ask() == {"client": ["127.0.0.1", 0], "scheme": "http"}
    seen = await ask(x_forwarded_for="203.0.113.99, 198.51.100.1, 10.1.2.3", x_forwarded_proto="https")
    assert seen == {"client": ["198.51.100.1", 0], "scheme": "https"}


async def test_a_proxy_that_is_not_trusted_is_itself_the_client(door):
    ask = await door("10.0.0.0/8")
    assert (await ask(x_forwarded_for="198.51.100.1"))["client"] == ["127.0.0.1", 0]
