"""Admission: who calls, whether the credential still holds, and whether it calls too often, in one round trip.

A credential that this process has checked before costs nothing to recognise. Whether it was revoked since, on any
replica, comes back with the limit counters: the generation that counts revocations.
"""

import ipaddress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.types import Scope

from cluster import tracing
from cluster.clock import iso
from cluster.errors import LimitExceeded, Unauthenticated
from cluster.identity.generation import GENERATION_KEY
from cluster.identity.model import Principal
from cluster.limits.limiter import LimitState
from cluster.limits.policy import SECONDS, Windows
from cluster.origin import Origin
from serve_apps.kit.auth import credential
from serve_apps.kit.body import header
from serve_apps.kit.call import Call

if TYPE_CHECKING:
    from serve_apps.kit.dialect import Dialect

GENERATION = (GENERATION_KEY, "version")
NEIGHBOUR = Principal(  # whoever calls from this machine where `VILLAGE_FORGE_OPEN` lets them
    principal_id="user_neighbour",
    owner="user_neighbour",
    username="neighbour",
    scopes=frozenset({"models:read", "models:write"}),
)


async def admit(call: Call, scope: Scope, dialect: "Dialect") -> None:
    """Fill in the call's principal, origin and limits. Raises `LimitExceeded`, `Unavailable`."""
    core, presented, address = call.core, credential(scope), address_of(scope)
    call.origin = Origin(address=address)
    await recognise(call, presented)
    if call.principal is None and not presented and dialect.tag == "Forge" and core.settings.forge_open:
        call.principal = NEIGHBOUR if is_loopback(address) else None
    bucket, tag = dialect.bucket(scope), dialect.tag.lower()
    who = call.principal.principal_id if call.principal else dialect.stranger(scope) or f"address_{address or 'local'}"
    windows = core.limiter.policy.windows(tag, bucket, call.principal)
    counted = await core.limiter.hit((tag, bucket, who), windows, GENERATION)
    call.limits = counted.states
    counted_for = call.principal
    if core.identity.heard(counted.beside) and presented:
        await recognise(call, presented)
    call.headers += [(n.lower().encode(), v.encode()) for n, v in dialect.limit_headers(call)]
    call.headers += draft_headers(windows, call.limits)
    call.origin = origin(call, scope, address)
    if call.principal or not counted_for:  # whoever was revoked meanwhile is told that, not that it came too often
        refuse_too_many(call, dialect)


async def recognise(call: Call, presented: str) -> None:
    """Fill in the principal, or why there is none: an open route may be called with a stale token."""
    call.principal = call.refusal = None
    if presented:
        try:
            call.principal = await call.core.identity.authenticate(presented)
        except Unauthenticated as refusal:
            call.refusal = refusal


def refuse_too_many(call: Call, dialect: "Dialect") -> None:
    """Raises `LimitExceeded` for the narrowest window that is full."""
    over = next((state for state in call.limits if state.exceeded), None)
    if over is not None:
        call.core.metrics.limited.labels(dialect.tag).inc()
        raise LimitExceeded(
            f"more than {over.limit} requests per {over.window}",
            limit=over.limit,
            window=over.window,
            reset_at=iso(datetime.fromtimestamp(over.reset_at, UTC)),
            retry_after_seconds=over.reset_after,
            current_usage=over.used,
        )


def origin(call: Call, scope: Scope, address: str) -> Origin:
    """What is noted of the caller on every event that this request makes."""
    who = call.principal
    return Origin(
        principal_id=who.principal_id if who else "",
        client_id=who.client_id if who else "",
        username=who.username if who else "",
        address=address,
        user_agent=header(scope, b"user-agent")[:200],
        method=scope.get("method", "WS"),
        endpoint=scope["path"][:500],
        request_id=call.request_id,
        traceparent=tracing.traceparent(),
    )


def address_of(scope: Scope) -> str:
    """The caller's address, "" through a socket that has none."""
    return scope["client"][0] if scope.get("client") else ""


def is_loopback(address: str) -> bool:
    """Whether the address is this machine's own."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def draft_headers(windows: Windows, states: tuple[LimitState, ...]) -> list[tuple[bytes, bytes]]:
    """`RateLimit-Policy` of every window, `RateLimit` of the tightest (draft-ietf-httpapi-ratelimit-headers-10)."""
    if not states:
        return []
    tight = min(states, key=lambda state: state.remaining)
    now = f'"{tight.window}";r={tight.remaining};t={tight.reset_after}'
    return [(b"ratelimit-policy", policy_header(windows)), (b"ratelimit", now.encode())]


@lru_cache(1024)
def policy_header(windows: Windows) -> bytes:
    """Quota and seconds of each window."""
    return ", ".join(f'"{w.span}";q={w.limit};w={SECONDS[w.span]}' for w in windows).encode()
