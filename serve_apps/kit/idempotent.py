"""`Idempotency-Key` around a route: the first answer is kept, and whoever asks again gets it."""

import re

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import Invalid, Unavailable
from cluster.idempotency import Attempt, Claim, Idempotency, fingerprint
from cluster.store.companion import accompanied
from serve_apps.kit.body import header
from serve_apps.kit.call import call_of

log = structlog.get_logger()

HEADER = b"idempotency-key"
SANE = re.compile(r"[\x21-\x7e]{1,255}")
MAX_ANSWER = 1 << 20  # a longer one is passed on and not kept
KEPT_HEADERS = frozenset({"content-type", "location", "content-language", "cache-control", "content-disposition"})


class Recorder:
    """Passes an answer on and keeps a copy."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status, self.headers = 0, ()
        self.body: bytes | None = b""
        self.complete = False

    async def __call__(self, message: Message) -> None:
        """ASGI `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = [(n.lower().decode("latin-1"), v.decode("latin-1")) for n, v in message.get("headers", ())]
            self.headers = tuple((n, v) for n, v in given if n in KEPT_HEADERS)
            if any(n == "cache-control" and "no-store" in v for n, v in given):
                self.body = None  # a secret that is shown once
        elif message["type"] == "http.response.body":
            longer = None if self.body is None else self.body + message.get("body", b"")
            self.body = longer if longer is not None and len(longer) <= MAX_ANSWER else None
            self.complete = not message.get("more_body")
        await self._send(message)

    @property
    def final(self) -> bool:
        """Whether asking again would be answered the same: not what failed here or came too often."""
        return self.complete and self.status < 500 and self.status != 429


async def once(
    keys: Idempotency, who: str, key: str, body: bytes, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run the app if the key is new, give the first answer if not. Raises as `cluster.idempotency.decide` does."""
    if not SANE.fullmatch(key):
        raise Invalid("an Idempotency-Key is 1 to 255 visible ASCII characters", field="Idempotency-Key")
    asked = fingerprint(scope["method"], scope["path"], scope["query_string"], body)
    begun = await keys.begin(who, key, asked)
    if isinstance(begun, Attempt):
        call_of(scope).core.metrics.replayed.inc()
        await replayed(begun, send)
        return
    await _first(begun, app, scope, receive, send)


async def _first(claim: Claim, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    answer = Recorder(send)
    try:
        with accompanied(claim.companion):
            await app(scope, receive, answer)
    finally:
        try:
            await (claim.answered(answer.status, answer.headers, answer.body) if answer.final else claim.forget())
        except Unavailable:  # the caller has the answer; the claim tells the next one what is known, once it is stale
            log.warning("an Idempotency-Key's answer could not be kept", request_id=call_of(scope).request_id)


async def replayed(first: Attempt, send: Send) -> None:
    """The first answer again, and a header that says so."""
    assert first.body is not None
    body = first.body.encode("latin-1")
    headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in first.headers]
    headers += [(b"content-length", str(len(body)).encode()), (b"idempotency-replayed", b"true")]
    await send({"type": "http.response.start", "status": first.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def key_of(scope: Scope) -> str:
    """The request's key, "" without one."""
    return header(scope, HEADER)
