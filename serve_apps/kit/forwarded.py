"""Who is at the other end: the caller's address and scheme, behind our front door and the proxies that are trusted.

The front door deletes these headers unless the peer is a trusted proxy, and adds the peer's address itself; so of the
chain, what stands right of an untrusted address was written by somebody we believe, and what stands left of it was not.
"""

import ipaddress
from functools import lru_cache

from starlette.types import Scope

from cluster.settings import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SCHEMES = {b"http": "http", b"https": "https"}


def resolve(scope: Scope, trusted: tuple[Network, ...]) -> None:
    """Fill in `client` and `scheme` of a request that came through the front door's socket, which has no address."""
    if scope.get("client") is not None:
        return
    chain = []
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            chain.append(value.decode("latin-1"))
        elif name == b"x-forwarded-proto" and value in SCHEMES:
            scheme = SCHEMES[value]
            scope["scheme"] = scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme
    if address := client_of(",".join(chain), trusted):
        scope["client"] = (address, 0)


@lru_cache(4096)
def client_of(chain: str, trusted: tuple[Network, ...]) -> str:
    """The right-most address of an `X-Forwarded-For` that is no trusted proxy's; the left-most where all are.

    What is no address ends the chain: a proxy that we trust does not write such a thing.
    """
    found = ""
    for entry in reversed(chain.split(",")):
        address = address_in(entry.strip())
        if address is None:
            break
        found = str(address)
        if not any(address in network for network in trusted):
            break
    return found


def address_in(entry: str) -> Address | None:
    """The address of `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`; None for anything else."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        address = ipaddress.ip_address(entry)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
