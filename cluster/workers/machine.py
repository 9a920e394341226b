"""What happens to an agent, as functions of its record. Pure: no clock, no store.

active <-> inactive: silent for its time to live, or by its own word; a heartbeat or a poll brings it back.
active or inactive -> retired: its owner took it out; only another registration brings it back.
"""

from datetime import datetime, timedelta
from typing import Any

from cluster.errors import AgentExists, Conflict, Invalid
from cluster.events.model import Event
from cluster.workers import signature
from cluster.workers.model import Agent, Health

BEATS = 3  # heartbeats that are due within a time to live: two may be lost
SEEN_SECONDS = 30.0  # a sign of life sooner after the last one is not written, unless the time to live is short
HEARD_SECONDS = 3.0  # the same before a process asks the record at all
SILENT = "no heartbeat"
TOLD = ("display_name", "public_key", "endpoint", "tags", "metadata", "max_concurrent_tasks", "status", "health")


def next_heartbeat_in(agent: Agent) -> float:
    """Seconds after which the agent's next heartbeat is wanted."""
    return agent.ttl_seconds / BEATS


def kept(agent: Agent, at: datetime) -> Agent:
    """The agent, whose silence means something from now on."""
    return agent.model_copy(update={"expires_at": at + timedelta(seconds=agent.ttl_seconds)})


def _alive(agent: Agent, at: datetime) -> dict[str, Any]:
    if agent.retired:
        raise Conflict("the agent was deactivated: register it again", agent_id=agent.agent_id, status=agent.status)
    expires_at = at + timedelta(seconds=agent.ttl_seconds)
    return {"status": "active", "reason": "", "last_seen_at": at, "expires_at": expires_at}


def seen(agent: Agent, at: datetime, waits: float = 0.0) -> Agent:
    """A sign of life that says nothing else; a poll is one for as long as it `waits`, in seconds. Raises `Conflict`.

    An agent that pulls expires from its first poll on, one that is pushed to from its first heartbeat on. Most signs
    come so soon after another that they change nothing.
    """
    worth = timedelta(seconds=min(SEEN_SECONDS, agent.ttl_seconds / 10))
    soft = agent.pulls or agent.expires_at is not None
    until = at + timedelta(seconds=agent.ttl_seconds + waits)
    known = agent.expires_at is not None and until <= agent.expires_at + worth
    if agent.status == "active" and (known if soft else at < agent.last_seen_at + worth):
        return agent
    update = _alive(agent, at) | {"expires_at": until if soft else None}
    if agent.health == "OFFLINE":
        update["health"] = "ACTIVE"
    return agent.model_copy(update=update)


def heartbeat(
    agent: Agent, at: datetime, health: Health, metrics: dict[str, Any] | None, resources: dict[str, Any] | None
) -> Agent:
    """A heartbeat; what it does not give stays as the last one said. OFFLINE is a goodbye. Raises `Conflict`."""
    update = _alive(agent, at) | {"heartbeat_at": at, "health": health}
    update |= {} if metrics is None else {"metrics": metrics}
    update |= {} if resources is None else {"resources": resources}
    if health == "OFFLINE":
        update |= {"status": "inactive", "reason": "it says that it is offline"}
    return agent.model_copy(update=update)


def lapse(agent: Agent, at: datetime, since: datetime) -> Agent:
    """What silence does. Nobody is taken for gone before a beat and a half could have been heard again `since`."""
    if not agent.expires or agent.expires_at is None:
        return agent
    if at < max(agent.expires_at, since + timedelta(seconds=1.5 * next_heartbeat_in(agent))):
        return agent
    return agent.model_copy(update={"status": "inactive", "reason": SILENT})


def retire(agent: Agent, reason: str) -> Agent:
    """Its owner takes it out. Repeating it changes nothing."""
    if agent.retired:
        return agent
    return agent.model_copy(update={"status": "inactive", "retired": True, "reason": reason})


def again(former: Agent, new: Agent, admin: bool) -> Agent:
    """The agent after another registration under its id. Raises `AgentExists` unless it is inactive and its own.

    Its own: by the same key, and by its owner or an admin. What it is trusted with stays.
    """
    same = signature.same_key(former.public_key, new.public_key) and (admin or former.owner == new.owner)
    if former.status == "active" or not same:
        raise AgentExists(f"agent {former.agent_id} is registered", agent_id=former.agent_id)
    return new.model_copy(update={"owner": former.owner, "created_at": former.created_at})


def update(agent: Agent, change: dict[str, Any], signed: str, signed_by_new: str, admin: bool) -> Agent:
    """The agent with other particulars. Raises `BadSignature`, `Conflict`, `Invalid`.

    Where it is called, and by which key it is known, is its own to say: another endpoint or key needs `signed`, by the
    registered key over what a registration with the new particulars would sign. A new key has to sign the same
    (`signed_by_new`); there an admin may do without `signed`, for a key that was lost.
    """
    if agent.retired:
        raise Conflict("the agent was deactivated: register it again", agent_id=agent.agent_id, status=agent.status)
    after = agent.model_copy(update=change)
    message = signature.signed_bytes(
        after.agent_id, after.display_name, after.public_key, after.endpoint, change.get("tags", agent.tags)
    )
    rekeyed = not signature.same_key(after.public_key, agent.public_key)
    if after.endpoint != agent.endpoint or rekeyed:
        if not signed and not (admin and rekeyed):
            raise Invalid("another endpoint or key has to be signed by the registered key", field="signature")
        if signed:
            signature.verify(agent.public_key, signed, message)
    if rekeyed:
        if not signed_by_new:
            raise Invalid("a new key has to sign, too", field="new_key_signature")
        signature.verify(after.public_key, signed_by_new, message)
    return after.model_copy(update={"tags": tuple(dict.fromkeys(after.tags))})


def changed(before: Agent, after: Agent, at: datetime) -> Event | None:
    """The event of the change; None for a mere sign of life."""
    data: dict[str, Any] = {
        "agent_id": after.agent_id, "display_name": after.display_name, "tags": list(after.tags),
        "status": after.status,
    }  # fmt: skip
    if after.status == "inactive" and (before.status == "active" or after.retired > before.retired):
        return Event(
            kind="agent.deactivated", subject=after.agent_id, owner=after.owner, at=at,
            data=data | {"reason": after.reason},
        )  # fmt: skip
    names = [name for name in TOLD if getattr(before, name) != getattr(after, name)]
    if not names:
        return None
    data["changed"] = names
    return Event(kind="agent.updated", subject=after.agent_id, owner=after.owner, at=at, data=data)
