"""The protocol of the event stream without a socket: tables."""

import json
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from contract.shapes import mismatches
from hypothesis import given
from hypothesis import strategies as st
from socket_harness import NOON, progress

from cluster.errors import Forbidden, Invalid, LimitExceeded, Unauthenticated
from cluster.events.model import Event, order
from cluster.identity.model import FINE_SCOPES, Principal
from serve_apps.dialects.aivillage.socket import (
    Authenticate,
    GetStatus,
    Ping,
    Subscribe,
    Unsubscribe,
    event_id,
    read,
    refusal,
    resume,
)
from serve_apps.dialects.aivillage.topics import FILTERS, TOPICS, message, subscription
from serve_apps.kit.messages import PATIENCE, MessageLimit, TooManyMessages
from serve_apps.scopes import TOPICS as SCOPES

ANN = Principal(principal_id="user_1", owner="user_1", username="ann", scopes=frozenset({"read"}))
ADMIN = Principal(principal_id="user_0", owner="user_0", username="root", scopes=frozenset({"admin"}))
SEED: dict[str, dict[str, Any]] = {  # the document's own messages of the server
    "training": {
        "type": "training_progress", "task_id": "task_abc123def456", "progress": 0.75, "phase": "forge_training",
        "metrics": {"loss": 0.023, "accuracy": 0.91}, "user_id": "user_123", "timestamp": "2025-01-15T10:30:00Z",
    },
    "agent_message": {
        "type": "agent_message", "from_agent": "governance_king", "to_agent": "user_session",
        "message": {"content": "System status update: All services operational", "priority": "normal"},
        "timestamp": "2025-01-15T10:30:00Z",
    },
    "p2p": {
        "type": "p2p_event", "event": "peer_connected", "peer_id": "peer_123abc", "transport": "bitchat",
        "metadata": {"device_type": "mobile", "capabilities": ["agent_communication"]},
        "timestamp": "2025-01-15T10:30:00Z",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({"type": "ping", "timestamp": "2025-01-15T10:30:00Z"}, Ping()),
        (
            {"type": "subscribe", "topics": ["training_progress", "agent_messages", "p2p_events"],
             "filters": {"user_id": "user_123", "priority": "high"}},
            Subscribe(
                ("training_progress", "agent_messages", "p2p_events"), {"user_id": "user_123", "priority": "high"}
            ),
        ),
        ({"type": "subscribe", "topics": [], "last_event_id": "evt_5-1"}, Subscribe((), {}, "evt_5-1")),
        ({"type": "unsubscribe"}, Unsubscribe(None)),
        ({"type": "unsubscribe", "topics": ["p2p_events"]}, Unsubscribe(frozenset({"p2p_events"}))),
        ({"type": "get_status", "components": ["agents", "p2p", "fog"]}, GetStatus(("agents", "p2p", "fog"))),
        ({"type": "authenticate", "token": " ey.ey.x "}, Authenticate("ey.ey.x")),
    ],
)  # fmt: skip
def test_what_a_client_may_say(said: dict[str, Any], asked):
    assert read(json.dumps(said)) == asked


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", None), ("[]", None), ("1", None), ("nonsense", None), ('{"a": 1e999}', None), ("[" * 5000, None),
        ('{"a":' * 5000, None), ('"\\ud800"', None), ("{}", "type"), ('{"type": "dance"}', "type"),
        ('{"type": ["ping"]}', "type"), ('{"type": "subscribe"}', "topics"),
        ('{"type": "subscribe", "topics": "task_events"}', "topics"),
        ('{"type": "subscribe", "topics": [], "filters": []}', "filters"),
        ('{"type": "subscribe", "topics": [], "filters": 5}', "filters"),
        ('{"type": "subscribe", "topics": [], "last_event_id": "yesterday"}', "last_event_id"),
        ('{"type": "subscribe", "topics": [], "last_event_id": 5}', "last_event_id"),
        ('{"type": "subscribe", "topics": [], "last_event_id": {}}', "last_event_id"),
        ('{"type": "unsubscribe", "topics": [{}]}', "topics"),
        ('{"type": "get_status", "components": [1]}', "components"),
        ('{"type": "get_status", "components": "agents"}', "components"), ('{"type": "authenticate"}', "token"),
        ('{"type": "authenticate", "token": 5}', "token"),
    ],
)  # fmt: skip
def test_what_is_not_understood_names_its_field(text: str, field: str | None):
    with pytest.raises(Invalid) as refused:
        read(text)
    assert refused.value.details.get("field") == field
    assert refusal(refused.value, NOON)["error_code"] == "VALIDATION_ERROR"


@given(st.text() | st.dictionaries(st.text(), st.integers() | st.text() | st.none()).map(json.dumps))
def test_no_text_breaks_it(text: str):
    with suppress(Invalid):
        read(text)


@pytest.mark.parametrize(
    "text",
    ["evt_5", "evt_-5-0", "evt_5--1", "evt_1_0-0", "evt_ 5-0", "evt_٥-0", "evt_5-0\n", "evt_18446744073709551616-0",
     "evt_5-18446744073709551616", "5-", "$", "+", "", "evt_evt_5-0"],
)  # fmt: skip
def test_only_an_events_id_is_one(text: str):
    with pytest.raises(ValueError):
        order(text)
    with pytest.raises(Invalid):
        event_id(text)


@pytest.mark.parametrize(
    ("after", "begin", "gap"),
    [
        ("evt_20-0", "evt_20-0", False), ("evt_30-0", "evt_30-0", False), ("evt_10-0", "evt_10-0", False),
        ("evt_9-9", "evt_9-9", True), ("evt_0-0", "evt_0-0", False), ("evt_30-1", "evt_30-0", True),
    ],
)  # fmt: skip
def test_a_resume_without_a_gap_begins_inside_the_stream(after: str, begin: str, gap: bool):
    goes_on, lost = resume(after, "evt_10-0", "evt_30-0")
    assert (goes_on, lost is not None) == (begin, gap)


@pytest.mark.parametrize("noun", SEED)
def test_a_message_has_the_shape_of_the_documents_own(noun: str):
    example = SEED[noun]
    verb = {"training": "progress", "p2p": "peer_connected"}.get(noun, "sent")
    data = {k: v for k, v in example.items() if k not in ("type", "timestamp", "user_id", "task_id", "event")}
    told = message(
        Event(kind=f"{noun}.{verb}", subject="task_1", owner="user_1", at=NOON, data=data, event_id="evt_1-0")
    )
    assert not mismatches(example, told)
    assert {k: told[k] for k in data} == data and told.get("event") == example.get("event")


def test_the_end_of_a_run_has_full_progress_and_its_metrics():
    end = progress("user_1", part=0.9).model_copy(update={"kind": "training.completed"})
    told = message(end)
    assert (told["progress"], told["metrics"], told["status"]) == (1.0, {"loss": 1.5}, "completed")
    assert message(progress("user_1", part=1.0))["progress"] < 1.0, "the last step is not the model yet"


def test_nothing_is_told_that_no_topic_names():
    for noun in ("training", "agent_message", "p2p", "task", "chain"):
        event = Event(kind=f"{noun}.x", subject="s", owner="o", at=NOON, data={"token": "t", "type": "u", "owner": "v"})
        assert not {"t", "u", "v"} & set(message(event).values())


def test_a_filter_holds_back_what_its_topic_has_otherwise():
    wanted = subscription(ANN, ["training_progress", "task_events"], {"phase": ["cognate"], "priority": "high"})
    task = Event(kind="task.created", subject="task_1", owner="user_1", at=NOON)
    assert wanted.passes(progress("user_1")) and wanted.passes(task)
    assert not wanted.passes(progress("user_1", phase="bitnet"))
    said = Event(kind="agent_message.sent", subject="m", owner="user_1", at=NOON, data={"message": {"priority": "low"}})
    assert not wanted.passes(said)


@pytest.mark.parametrize("value", [5, None, [], {}, [5], "x" * 257, ["x"] * 101, True])
def test_a_filter_is_a_text_or_a_list_of_them(value: Any):
    with pytest.raises(Invalid) as refused:
        subscription(ANN, ["task_events"], {"status": value})
    assert refused.value.details["field"] == "filters.status"


def test_a_filter_that_does_not_exist_is_refused():
    with pytest.raises(Invalid) as refused:
        subscription(ANN, ["task_events"], {"statsu": "RUNNING"})
    assert refused.value.details == {"field": "filters.statsu", "allowed_values": list(FILTERS)}


@pytest.mark.parametrize("topic", TOPICS)
def test_each_topic_needs_its_scope(topic: str):
    assert SCOPES[topic] in FINE_SCOPES
    subscription(ANN.model_copy(update={"scopes": frozenset({SCOPES[topic]})}), [topic], {})
    for scopes in (frozenset(), FINE_SCOPES - {SCOPES[topic]}):
        with pytest.raises(Forbidden):
            subscription(ANN.model_copy(update={"scopes": scopes}), [topic], {})
    with pytest.raises(Unauthenticated):
        subscription(None, [topic], {})


def test_every_topic_has_a_scope():
    assert TOPICS.keys() == SCOPES.keys()


@given(st.lists(st.sampled_from(["user_0", "user_1", "user_2", ""]), min_size=1))
def test_naming_users_never_widens_what_is_seen(named: list[str]):
    assert subscription(ANN, ["task_events"], {"user_id": named}).owners == {"user_1"} & set(named)
    assert subscription(ADMIN, ["task_events"], {"user_id": named}).owners == set(named)


def test_whose_events():
    assert subscription(ANN, ["task_events"], {}).owners == {"user_1"}
    assert subscription(ADMIN, ["task_events"], {}).owners is None


def test_messages_are_counted_by_the_minute():
    limit = MessageLimit({"minute": 3})
    for _ in range(3):
        limit.hit(NOON)
    for _ in range(PATIENCE):
        with pytest.raises(LimitExceeded) as refused:
            limit.hit(NOON + timedelta(seconds=45))
        assert not isinstance(refused.value, TooManyMessages) and refused.value.details["retry_after_seconds"] == 15
    with pytest.raises(TooManyMessages):
        limit.hit(NOON)
    limit.hit(NOON + timedelta(seconds=60))
