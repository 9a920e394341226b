"""The call: what is known of one request from the first byte on, carried in the ASGI scope."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection
from starlette.types import Scope

from cluster.errors import Unauthenticated
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.limits.limiter import LimitState
from cluster.origin import Origin

if TYPE_CHECKING:
    from serve_apps.core import Core

KEY = "village.call"
SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class Call:
    """One request: its id, who makes it, what their limits are, and what the envelope says."""

    core: Core
    request_id: str
    at: datetime
    principal: Principal | None = None
    refusal: Unauthenticated | None = None  # why the credential that came is not good
    origin: Origin | None = None
    limits: tuple[LimitState, ...] = ()
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # for every answer, errors too
    lasting: bool = False  # it stays open: its time says nothing about how fast requests are answered
    message: str = ""  # for envelopes that have one; the route's `response_description` otherwise


def call_of(scope: Scope) -> Call:
    """The call of this request."""
    return scope[KEY]


def request_id_from(given: str) -> str:
    """The caller's own id when it is fit for a log line, a new one otherwise."""
    return given if SANE.fullmatch(given) else new_id("req")


async def _call(connection: HTTPConnection) -> Call:
    return call_of(connection.scope)


FromCall = Annotated[Call, Depends(_call)]
