"""The protocol of `/ws`, without the socket: messages in, messages out, and which events become which messages."""

import json
from datetime import datetime
from typing import Any

from cluster.clock import iso
from cluster.errors import Invalid
from cluster.events.model import Event, order
from cluster.identity.model import Principal

TOPICS = {  # topic -> the nouns of its events' kinds
    "training_progress": ("training",),
    "agent_messages": ("agent_message",),
    "p2p_events": ("p2p",),
    "task_events": ("task", "chain"),
}
TOPIC_OF = {noun: topic for topic, nouns in TOPICS.items() for noun in nouns}
ENDS = ("completed", "failed", "cancelled")
Message = dict[str, Any]


class Conversation:
    """What one connection has asked for. `status_wanted` and `resume_from` are for whoever holds the socket."""

    def __init__(self, who: Principal | None, connection_id: str) -> None:
        self.who, self.connection_id = who, connection_id
        self.topics: frozenset[str] = frozenset()
        self.filters: dict[str, Any] = {}
        self.resume_from: str | None = None
        self._metrics: dict[str, Any] = {}  # of the last message of each run: its end repeats them

    def greeting(self, services: dict[str, bool], at: datetime) -> Message:
        """The first message."""
        return {
            "type": "connection_established",
            "message": "Connected to AIVillage Unified API Gateway",
            "services": services,
            "authenticated": self.who is not None,
            "timestamp": iso(at),
            "connection_id": self.connection_id,
        }

    def receive(self, text: str, status: dict[str, Any], at: datetime) -> Message:
        """The answer to one message of the client; `status` is what `get_status` may tell, by component."""
        try:
            message = json.loads(text)
            if not isinstance(message, dict):
                raise Invalid("a message is a JSON object")
            kind = message.get("type")
            if kind == "ping":
                return {"type": "pong", "timestamp": iso(at)}
            if kind == "subscribe":
                return self._subscribe(message, at)
            if kind == "get_status":
                return self._status(message, status, at)
            raise Invalid("unknown type", field="type", allowed_values=["ping", "subscribe", "get_status"])
        except ValueError:
            return refusal("VALIDATION_ERROR", "the message is not JSON", {}, at)
        except Invalid as error:
            return refusal("VALIDATION_ERROR", error.message, error.details, at)
        except PermissionError as error:
            return refusal("AUTHENTICATION_REQUIRED", str(error), {}, at)

    def _subscribe(self, message: Message, at: datetime) -> Message:
        if self.who is None:
            raise PermissionError("only a signed-in caller may subscribe")
        topics, filters = message.get("topics"), message.get("filters") or {}
        if not isinstance(topics, list) or not isinstance(filters, dict):
            raise Invalid("topics is a list and filters is an object", field="topics", allowed_values=sorted(TOPICS))
        if unknown := [topic for topic in topics if not isinstance(topic, str) or topic not in TOPICS]:
            raise Invalid(f"unknown topic: {unknown[0]}", field="topics", allowed_values=sorted(TOPICS))
        after = message.get("last_event_id")
        if after is not None:
            try:
                order(str(after))
            except ValueError as error:
                raise Invalid("last_event_id is not an event's id", field="last_event_id") from error
        self.topics, self.filters = frozenset(topics), filters
        self.resume_from = None if after is None else str(after)
        return {"type": "subscribed", "topics": sorted(self.topics), "filters": filters, "timestamp": iso(at)}

    def _status(self, message: Message, status: dict[str, Any], at: datetime) -> Message:
        wanted = message.get("components") or sorted(status)
        if not isinstance(wanted, list) or not all(isinstance(name, str) and name in status for name in wanted):
            raise Invalid("unknown component", field="components", allowed_values=sorted(status))
        return {"type": "status", "components": {name: status[name] for name in wanted}, "timestamp": iso(at)}

    def wants(self, event: Event) -> bool:
        """Whether the event is of a subscribed topic, this principal's to see, and passes the filters."""
        if TOPIC_OF.get(event.kind.partition(".")[0]) not in self.topics or self.who is None:
            return False
        return self.who.sees(event.owner) and self._passes(event)

    def _passes(self, event: Event) -> bool:
        """A filter holds back what has that field with another value; what has no such field passes."""
        known = {"user_id": event.owner, "task_id": event.subject, **event.data}
        return all(known.get(name, value) == value for name, value in self.filters.items())

    def render(self, event: Event) -> Message:
        """The event as a message of its topic."""
        noun, _, verb = event.kind.partition(".")
        common = {"user_id": event.owner, "timestamp": iso(event.at), "event_id": event.event_id}
        if noun == "training":
            return self._training(event, verb) | common
        if noun == "agent_message":
            return {"type": "agent_message"} | event.data | common
        if noun == "p2p":
            return {"type": "p2p_event", "event": verb} | event.data | common
        return {"type": "task_event", "event": event.kind, "task_id": event.subject} | event.data | common

    def _training(self, event: Event, verb: str) -> Message:
        if verb not in ("progress", *ENDS):
            return {"type": "training_event", "event": event.kind, "task_id": event.subject} | event.data
        metrics = event.data.get("metrics") or self._metrics.get(event.subject, {})
        if verb in ENDS:
            self._metrics.pop(event.subject, None)
        else:
            self._metrics[event.subject] = metrics
        # Full progress means that the model is there to be used, which the last step alone does not.
        part = 1.0 if verb == "completed" else min(event.data.get("progress", 0.0), 0.999)
        rest = {"type": "training_progress", "task_id": event.subject, "progress": part, "metrics": metrics}
        return {"status": verb} | event.data | rest


def refusal(code: str, message: str, details: dict[str, Any], at: datetime) -> Message:
    """An error, as a message."""
    return {"type": "error", "error_code": code, "message": message, "details": details, "timestamp": iso(at)}
