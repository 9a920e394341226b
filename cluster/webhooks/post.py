"""One attempt: a signed POST to the receiver, and what came of it."""

import asyncio
import time

import aiohttp
from opentelemetry.trace import SpanKind

from cluster import tracing
from cluster.clock import Clock
from cluster.egress import Egress, told
from cluster.webhooks import machine, signing
from cluster.webhooks.model import Attempt, Delivery, Webhook

EXCERPT_BYTES, EXCERPT_CHARACTERS = 4096, 1000
EXCERPT_SECONDS = 2.0  # for the body, once the status is there: it decides alone


async def post(egress: Egress, hook: Webhook, delivery: Delivery, clock: Clock) -> Attempt:
    """Send the delivery once. Never raises for what the receiver or the network does."""
    about = {"webhook_id": hook.webhook_id, "event": delivery.event, "attempt": delivery.attempt_count + 1}
    with tracing.span("webhook.deliver", delivery.traceparent, kind=SpanKind.CLIENT, **about):
        attempt = await _attempt(egress, hook, delivery, clock)
        tracing.describe(status=attempt.status or 0, error=attempt.error)
    return attempt


async def _attempt(egress: Egress, hook: Webhook, delivery: Delivery, clock: Clock) -> Attempt:
    at, begun = clock(), time.perf_counter()
    status, excerpt, error = None, "", ""
    try:
        secrets = [secret.value for secret in machine.signing(hook, at)]
        content = signing.body(delivery, secrets[0])
        headers = signing.headers(delivery, content, secrets, at, tracing.traceparent())
        async with (
            asyncio.timeout(machine.TIMEOUT_SECONDS),
            # Not decompressed: a few bytes of it must not become gigabytes.
            egress.post(hook.url, data=content, headers=headers, auto_decompress=False) as answer,
        ):
            status = answer.status
            excerpt = await _head(answer)
    except (aiohttp.ClientError, OSError) as failure:
        error = told(failure) if status is None else ""
    except (ValueError, RecursionError) as failure:  # data that cannot be canonical JSON
        error = f"cannot be sent: {failure}"[:200]
    took = (time.perf_counter() - begun) * 1000
    if status is not None and not 200 <= status < 300:
        error = f"the receiver answered {status}"
    return Attempt(
        number=delivery.attempt_count + 1, at=at, duration_ms=round(took, 3), status=status, excerpt=excerpt,
        error=error,
    )  # fmt: skip


async def _head(answer: aiohttp.ClientResponse) -> str:
    read = b""
    try:
        async with asyncio.timeout(EXCERPT_SECONDS):
            while len(read) < EXCERPT_BYTES and (more := await answer.content.read(EXCERPT_BYTES - len(read))):
                read += more
    except (aiohttp.ClientError, OSError):
        pass
    return read.decode(errors="replace")[:EXCERPT_CHARACTERS]
