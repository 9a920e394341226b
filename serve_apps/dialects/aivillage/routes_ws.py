"""AIVillage, `/ws`: the socket around `socket.Conversation`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, WebSocket

from cluster.errors import Unavailable
from cluster.events.model import Event
from cluster.ids import new_id
from cluster.workers.model import Agent
from serve_apps.core import Core
from serve_apps.dialects.aivillage.routes_system import services
from serve_apps.dialects.aivillage.socket import Conversation, refusal
from serve_apps.kit.auth import authenticate
from serve_apps.kit.call import Call, call_of
from serve_apps.kit.hub import TooSlow
from serve_apps.kit.streaming import POLICY_VIOLATION, TRY_AGAIN_LATER, close, first_to_end, send_json

router = APIRouter()

LOOK_AGAIN_SECONDS = 30.0  # how long a socket may outlive its token, key or user


@router.websocket("/ws")
async def live(socket: WebSocket) -> None:
    """Live updates. A token is optional; without one there is ping and get_status. A bad one is refused."""
    call = call_of(socket.scope)
    if call.refusal is not None:
        raise call.refusal
    await socket.accept()
    talk = Conversation(call.principal, new_id("conn"))
    subscribed: asyncio.Queue[str] = asyncio.Queue()
    has = {name: service["available"] for name, service in (await services(call.core)).items()}
    await send_json(socket, talk.greeting(has, call.core.clock()))
    await first_to_end(
        _listen(socket, call.core, talk, subscribed), _tell(socket, call.core, talk, subscribed), _watch(socket, call)
    )


async def _listen(socket: WebSocket, core: Core, talk: Conversation, subscribed: asyncio.Queue[str]) -> None:
    while True:
        text = await socket.receive_text()
        try:
            status = await status_of(core) if "get_status" in text else {}
            # Read before the answer: what happens once the client knows that it is subscribed must reach it.
            now = await core.store.last_event_id() if "subscribe" in text else ""
        except Unavailable as error:
            await send_json(socket, refusal("SERVICE_UNAVAILABLE", error.message, error.details, core.clock()))
            continue
        first = not talk.topics
        answer = talk.receive(text, status, core.clock())
        await send_json(socket, answer)
        if answer["type"] == "subscribed" and (first or talk.resume_from):
            subscribed.put_nowait(talk.resume_from or now)


async def _tell(socket: WebSocket, core: Core, talk: Conversation, subscribed: asyncio.Queue[str]) -> None:
    """Send events from the first subscription on; one that resumes starts again from its id."""
    after = await subscribed.get()
    while True:
        try:
            after = await _until_resumed(socket, talk, core.hub.listen(talk.wants, after), subscribed)
        except TooSlow:
            await close(socket, TRY_AGAIN_LATER, "too far behind: come back with last_event_id")
            return
        except Unavailable:
            await close(socket, TRY_AGAIN_LATER, "the event stream is away")
            return


async def _until_resumed(
    socket: WebSocket, talk: Conversation, events: AsyncIterator[Event], subscribed: asyncio.Queue[str]
) -> str:
    again = asyncio.create_task(subscribed.get())
    sending = asyncio.create_task(_send_all(socket, talk, events))
    try:
        await asyncio.wait((again, sending), return_when=asyncio.FIRST_COMPLETED)
        if again.done():
            return again.result()
        sending.result()
        raise TooSlow  # the hub ends no stream by itself
    finally:
        again.cancel()
        sending.cancel()
        await asyncio.gather(again, sending, return_exceptions=True)


async def _send_all(socket: WebSocket, talk: Conversation, events: Any) -> None:
    async with aclosing(events):
        async for event in events:
            await send_json(socket, talk.render(event))


async def _watch(socket: WebSocket, call: Call) -> None:
    """Close when the credential is no longer good. While the store is away nobody can tell, so nobody is put out."""
    while True:
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
        if call.principal is None:
            continue
        try:
            await authenticate(call, socket.scope, call.core.identity)
        except Unavailable:
            continue
        if call.refusal is not None:
            await close(socket, POLICY_VIOLATION, "the credential is no longer good")
            return


async def status_of(core: Core) -> dict[str, Any]:
    """What `get_status` tells, by component."""
    total, active = await core.store.counts(Agent, "list", [("all",), ("status", "active")])
    known, routed = await services(core), (await core.readiness.checks()).get("router", True)
    connections, _ = core.metrics.sockets_now()
    return {
        "agents": {
            "status": "running" if routed else "away",
            "available": routed,
            "registered": total,
            "active": active,
        },
        "training": known["agent_forge"],
        "chat": known["chat"],
        "knowledge": known["knowledge"],
        "p2p": known["p2p_fog"],
        "fog": known["p2p_fog"],
        "websocket": {"status": "running", "available": True, "active_connections": connections},
    }
