"""The topics of the event stream: which events are of which, what a filter may name, and what is told of an event.

Pure, and one for all connections: a message depends on the event alone, so it is made once for whoever gets it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.clock import iso
from cluster.errors import Forbidden, Invalid, Unauthenticated
from cluster.events.model import Event
from cluster.identity.model import Principal
from serve_apps.scopes import TOPICS as SCOPES

Message = dict[str, Any]
Look = Callable[[Event], Any]

ENDS = ("completed", "failed", "cancelled")
MOST_VALUES, LONGEST_VALUE = 100, 256


@dataclass(frozen=True)
class Topic:
    """`nouns` begin the kinds of its events, `filters` look at them; of their data nothing but `shows` is told."""

    nouns: tuple[str, ...]
    shows: tuple[str, ...]
    render: Callable[[Event, Message], Message]
    filters: Mapping[str, Look]


def _data(*names: str) -> dict[str, Look]:
    return {name: lambda event, name=name: event.data.get(name) for name in names}


def _subject(event: Event) -> str:
    return event.subject


def _verb(event: Event) -> str:
    return event.kind.partition(".")[2]


def _training(event: Event, shown: Message) -> Message:
    verb = _verb(event)
    if verb not in ("progress", *ENDS):
        return {"type": "training_event", "event": event.kind, "task_id": event.subject} | shown
    # Full progress means that the model is there to be used, which the last step alone does not.
    part = 1.0 if verb == "completed" else min(event.data.get("progress", 0.0), 0.999)
    fixed = {"type": "training_progress", "task_id": event.subject, "progress": part}
    return {"status": verb, "metrics": {}} | shown | fixed


def _agent(_: Event, shown: Message) -> Message:
    return {"type": "agent_message"} | shown


def _priority(event: Event) -> Any:
    message = event.data.get("message")
    return message.get("priority") if isinstance(message, dict) else None


def _p2p(event: Event, shown: Message) -> Message:
    return {"type": "p2p_event", "event": _verb(event)} | shown


def _task(event: Event, shown: Message) -> Message:
    noun = event.kind.partition(".")[0]
    return {"type": "task_event", "event": event.kind, f"{noun}_id": event.subject} | shown


TOPICS: dict[str, Topic] = {
    "training_progress": Topic(
        nouns=("training",),
        shows=(
            "status", "phase", "progress", "step", "total_steps", "metrics", "remaining_seconds", "model_id", "error",
        ),
        render=_training,
        filters={"task_id": _subject} | _data("phase", "status", "model_id"),
    ),
    "agent_messages": Topic(
        nouns=("agent_message",),
        shows=("from_agent", "to_agent", "message"),
        render=_agent,
        filters={"priority": _priority} | _data("from_agent", "to_agent"),
    ),
    "p2p_events": Topic(
        nouns=("p2p",),
        shows=("peer_id", "transport", "metadata"),
        render=_p2p,
        filters={"event": _verb} | _data("peer_id", "transport"),
    ),
    "task_events": Topic(
        nouns=("task", "chain"),
        shows=(
            "client_id", "task_type", "status", "capability", "agent_id", "attempt", "waiting", "outcome",
            "execution_time_seconds", "timeout_seconds", "error",
        ),
        render=_task,
        filters={"task_id": _subject, "event": lambda event: event.kind}
        | _data("status", "client_id", "task_type", "capability", "agent_id", "outcome"),
    ),
}  # fmt: skip
TOPIC_OF = {noun: topic for topic in TOPICS.values() for noun in topic.nouns}
FILTERS = tuple(sorted({"user_id"}.union(*(topic.filters for topic in TOPICS.values()))))


def message(event: Event) -> Message:
    """The event as its owner may read it. Only for events of a topic."""
    topic = TOPIC_OF[event.kind.partition(".")[0]]
    shown = {name: event.data[name] for name in topic.shows if name in event.data}
    return topic.render(event, shown) | {
        "user_id": event.owner, "timestamp": iso(event.at), "event_id": event.event_id,
    }  # fmt: skip


@dataclass(frozen=True)
class Subscription:
    """What a caller wants and may have. `owners`: whose events; None is everybody's, for an admin."""

    topics: frozenset[str] = frozenset()
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    owners: frozenset[str] | None = frozenset()

    @property
    def nouns(self) -> frozenset[str]:
        """First words of the kinds of its events."""
        return frozenset(noun for topic in self.topics for noun in TOPICS[topic].nouns)

    def passes(self, event: Event) -> bool:
        """Whether an event of these topics and owners passes the filters.

        A filter holds back the events of a topic that has such a field; the other topics are none of its business.
        """
        looks = TOPIC_OF[event.kind.partition(".")[0]].filters
        return all(looks[name](event) in values for name, values in self.filters.items() if name in looks)

    def without(self, topics: frozenset[str] | None) -> "Subscription":
        """The same without these topics; None: without any."""
        return replace(self, topics=frozenset() if topics is None else self.topics - topics)

    def renewed(self, who: Principal) -> "Subscription":
        """The same for another credential. Raises `Forbidden`."""
        filters = {name: list(values) for name, values in self.filters.items()}
        return subscription(who, self.topics, filters) if self.topics else self

    @property
    def is_picky(self) -> bool:
        """Whether `passes` can say no."""
        return any(name != "user_id" for name in self.filters)


def subscription(who: Principal | None, topics: Iterable[Any], filters: Mapping[str, Any]) -> Subscription:
    """The subscription that `who` asks for. Raises `Unauthenticated`, `Invalid`, `Forbidden`."""
    if who is None:
        raise Unauthenticated("only a signed-in caller may subscribe")
    wanted = list(topics)
    for topic in wanted:
        if not isinstance(topic, str) or topic not in TOPICS:
            raise Invalid(f"unknown topic: {topic!r:.100}", field="topics", allowed_values=sorted(TOPICS))
    for topic in wanted:
        if not who.may(SCOPES[topic]):
            raise Forbidden(
                f"the scope {SCOPES[topic]} is needed for {topic}", required_scope=SCOPES[topic], topic=topic
            )
    told = {name: _values(name, value) for name, value in filters.items()}
    owners = None if who.is_admin else frozenset({who.owner})
    if "user_id" in told:
        named = frozenset(told["user_id"])
        owners = named if owners is None else owners & named
    return Subscription(frozenset(wanted), told, owners)


def _values(name: str, value: Any) -> tuple[str, ...]:
    if name not in FILTERS:
        # A misspelt filter that is let through would show more than was asked for.
        raise Invalid(f"no such filter: {name[:100]}", field=f"filters.{name[:100]}", allowed_values=list(FILTERS))
    values = value if isinstance(value, list) else [value]
    good = all(isinstance(one, str) and len(one) <= LONGEST_VALUE for one in values)
    if not good or not 0 < len(values) <= MOST_VALUES:
        raise Invalid(
            f"a filter is a text of at most {LONGEST_VALUE} characters, or a list of 1 to {MOST_VALUES} of them",
            field=f"filters.{name}",
        )
    return tuple(values)
