"""Calls to addresses that callers name: what may be called, and a session that holds to it.

The guard stands where the socket is made, so it sees the very address that is about to be connected to, however the
URL wrote it and whatever its name resolves to by then. A proxy from the environment is not used and no cookie is kept.
"""

import asyncio
import ipaddress
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from cluster.errors import Invalid

CONNECT_SECONDS = 5.0
LOOKUPS = 64  # at once: each holds a thread for as long as the name's server likes
MAX_URL = 2000
METADATA = frozenset({"168.63.129.16"})  # Azure's, at a public address; every other cloud's is link-local
TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))  # NAT64, and IPv4-compatible
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class NotPublic(OSError):
    """The address is inside somebody's own network."""


def public(address: str) -> bool:
    """Whether an IP address is one of the public internet's, also the IPv4 address that an IPv6 one stands for."""
    ip = ipaddress.ip_address(address)
    return all(each.is_global and not each.is_multicast and str(each) not in METADATA for each in _meant(ip))


def _meant(ip: Address) -> tuple[Address, ...]:
    if isinstance(ip, ipaddress.IPv4Address):
        return (ip,)
    inside = ip.ipv4_mapped or ip.sixtofour
    if inside is None and any(ip in network for network in TRANSLATED):
        inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return (ip,) if inside is None else (ip, inside)


def parsed(url: str, field: str) -> URL:
    """A URL that may be called, by the parser that will call it.

    http(s), a host, no credentials, no fragment, printable ASCII. Raises `Invalid`.
    """
    if not url.isascii() or not url.isprintable() or any(c in url for c in ' \\"<>^`{|}') or len(url) > MAX_URL:
        raise Invalid(
            f"a URL is at most {MAX_URL} characters of printable ASCII; write others as %XX, a host's as punycode",
            field=field,
        )
    try:
        parts = URL(url)
    except ValueError:  # an unclosed bracket, a port beyond 65535
        parts = URL()
    if parts.scheme not in ("http", "https") or not parts.host or parts.port == 0:
        raise Invalid("not a URL of an allowed kind", field=field, allowed_values=["https", "http"])
    if "@" in re.split(r"[/?#]", url.partition("//")[2], maxsplit=1)[0]:
        raise Invalid("a URL must not carry credentials", field=field)
    if "#" in url:
        raise Invalid("a URL must not have a fragment", field=field)
    return parts


def _public_socket(info: Any) -> socket.socket:
    family, kind, protocol, _, address = info
    if not public(address[0]):
        raise NotPublic("the address is not public")
    return socket.socket(family, kind, protocol)


class Resolver(AbstractResolver):
    """The system's resolver, in threads of its own: a slow name server holds up nothing else that needs a thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS, "lookup")

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_UNSPEC) -> list[Any]:
        """See aiohttp. Raises OSError, ValueError."""
        look = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look)
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            {"hostname": host, "host": address[0], "port": address[1], "family": kind, "proto": proto, "flags": flags}
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """See aiohttp."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Egress:
    """One pool of connections. `public_only` refuses whatever is not public, looked up anew for each connection."""

    def __init__(self, public_only: bool, resolver: AbstractResolver | None = None) -> None:
        self.public_only = public_only
        self._resolver = resolver or Resolver()
        self._session: aiohttp.ClientSession | None = None

    async def check(self, url: str, field: str = "url") -> None:
        """Whether the URL may be called as things stand now. Raises `Invalid`."""
        parts = parsed(url, field)
        if not self.public_only:
            return
        assert parts.host is not None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                found = await self._resolver.resolve(parts.host, parts.port or 0, socket.AF_UNSPEC)
            addresses = [str(entry["host"]) for entry in found]
        except (OSError, ValueError) as error:  # no such name; no name at all
            raise Invalid("the URL's host cannot be resolved", field=field) from error
        if not addresses or not all(public(address) for address in addresses):
            raise Invalid("the URL's address is not public", field=field)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0,
                resolver=self._resolver,
                keepalive_timeout=30,
                use_dns_cache=not self.public_only,
                socket_factory=_public_socket if self.public_only else None,
            )
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def post(self, url: str, **options: Any) -> Any:
        """aiohttp's `post`, which never follows a redirect: that would be another's choice of address."""
        return self._connected().post(url, allow_redirects=False, **options)

    async def close(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()


def told(error: BaseException) -> str:
    """Why a call failed, in a line that tells nothing of our own network."""
    if isinstance(getattr(error, "os_error", error), NotPublic):
        return "the address is not public"
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"[:200]
