"""How long a sign-in has to wait after failed ones: a rule that slows guessing and never locks an owner out. Pure.

Failures are counted in four places, each forgotten an hour after its last one:

- the pair of account and network: after `FREE` failures the pair waits, twice as long each time. The first try from
  anywhere is never delayed by what others did to the account;
- the account: once it has `BESIEGED` failures, from wherever, a network that its owner never signed in from has `FEW`
  failures before it waits, not `FREE`. Many addresses buy few guesses each;
- the network: after failing at `MANY_ACCOUNTS` accounts it waits before every further one;
- the account's second factor: the password was right and the code was not. Six digits need a bound for all networks
  together, so this one does delay strangers everywhere.

A network that the owner has signed in from before answers for its own pair only.
"""

import hashlib
import ipaddress
from datetime import datetime, timedelta
from typing import ClassVar

from cluster.store import Index, Record

FREE, FEW = 5, 1
BESIEGED = 20
MANY_ACCOUNTS = 20
FREE_CODES = 5
LONGEST_WAIT, LONGEST_NETWORK_WAIT = 900.0, 60.0  # seconds; a network may be a whole office
MEMORY = timedelta(hours=1)
KNOWN_NETWORKS = 20


class Failures(Record):
    """Failed sign-ins in one place."""

    kind: ClassVar[str] = "failures"
    indexes: ClassVar[tuple[Index, ...]] = (Index("expiry", lambda f: f.expires_at.timestamp()),)

    failures_id: str
    count: int = 0
    last_at: datetime
    expires_at: datetime


def network(address: str) -> str:
    """What one subscriber has: an IPv4 address, or the /64 of an IPv6 one. Anything else stands for itself."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped) if ip.ipv4_mapped else str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def places(account: str, net: str) -> tuple[str, str, str, str]:
    """The ids of the four counts: pair, account, network, second factor. Hashed: the store need not hold addresses."""
    names = (f"pair {account} {net}", f"account {account}", f"network {net}", f"code {account}")
    return tuple(hashlib.sha256(name.encode()).hexdigest()[:32] for name in names)  # type: ignore[return-value]  # four


def failed(before: Failures | None, place: str, at: datetime) -> Failures:
    """One failure more; an hour after the last one the count starts again."""
    count = before.count if before is not None and at < before.expires_at else 0
    return Failures(failures_id=place, count=count + 1, last_at=at, expires_at=at + MEMORY)


def wait_seconds(
    pair: Failures | None, account: Failures | None, net: Failures | None, known: bool, at: datetime
) -> float:
    """Seconds until this account may be tried from this network; 0 for now."""
    besieged = not known and _count(account, at) >= BESIEGED
    waits = [_left(pair, FEW if besieged else FREE, at)]
    if not known and _count(pair, at) == 0:  # another account; the pair answers for one that was tried already
        waits.append(_left(net, MANY_ACCOUNTS, at, LONGEST_NETWORK_WAIT))
    return max(waits)


def code_wait_seconds(codes: Failures | None, known: bool, at: datetime) -> float:
    """Seconds until a code for this account is looked at again."""
    return 0.0 if known else _left(codes, FREE_CODES, at)


def with_network(known: tuple[str, ...], net: str) -> tuple[str, ...]:
    """The networks that an owner signed in from, after one more sign-in."""
    return known if net in known else (*known, net)[-KNOWN_NETWORKS:]


def _count(failures: Failures | None, at: datetime) -> int:
    return failures.count if failures is not None and at < failures.expires_at else 0


def _left(failures: Failures | None, free: int, at: datetime, longest: float = LONGEST_WAIT) -> float:
    """1 s after the last free failure, then twice as long each time."""
    over = _count(failures, at) - free
    if failures is None or over < 0:
        return 0.0
    wait = min(2.0 ** min(over, 30), longest)
    return max(0.0, wait - (at - failures.last_at).total_seconds())
