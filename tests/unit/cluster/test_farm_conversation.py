"""The protocol of farm clients, without a socket."""

import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_farm_machine import rank, task

from cluster.errors import Invalid, UnsupportedMedia, VillageError
from cluster.farm import protocol
from cluster.farm.model import TaskState
from cluster.farm.protocol import Conversation, Heartbeat, Progress, Result, TaskRequest, read

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def said(**message) -> protocol.Said:
    return read(json.dumps({"client_id": "one", "timestamp": "2024-11-04T12:00:00Z"} | message), "one")


def test_the_documents_messages_are_read():
    asked = said(type="task_request")
    assert isinstance(asked, TaskRequest)
    told = said(type="task_progress", task_id="t", progress=45.5, metrics={"loss": 0.0023, "accuracy": 0.982})
    assert isinstance(told, Progress) and told.progress == 45.5 and told.metrics["loss"] == 0.0023
    ended = said(
        type="task_result", task_id="t", status="completed", metrics={"training_time": 3600}, checkpoint_path="/m.pt"
    )
    assert isinstance(ended, Result) and ended.checkpoint_path == "/m.pt" and ended.samples is None
    beat = said(type="heartbeat", system_info={"cpu_usage": 45.2, "ram_usage": 60.5, "gpu_usage": 80.0})
    assert isinstance(beat, Heartbeat) and beat.system_info.gpu_usage == 80 and beat.resources is None


MANY = {str(n): n for n in range(101)}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"type": "task_progress", "task_id": "t", "progress": -1}, "progress"),
        ({"type": "task_progress", "task_id": "t", "progress": float("nan")}, "progress"),
        ({"type": "task_progress", "task_id": "", "progress": 1}, "task_id"),
        ({"type": "task_progress", "task_id": "t", "progress": 1, "metrics": {"a": [1]}}, "metrics"),
        ({"type": "task_progress", "task_id": "t", "progress": 1, "metrics": MANY}, "metrics"),
        ({"type": "task_result", "task_id": "t", "status": "completed", "samples": -1}, "samples"),
        ({"type": "heartbeat", "resources": {"cpu": {"cores": -1}}}, "resources"),
        ({"type": "heartbeat", "client_id": "other"}, "client_id"),
        ({"type": None}, "type"),
        ({}, "type"),
    ],
)  # fmt: skip
def test_a_field_that_says_nothing_good_is_named(message, field):
    with pytest.raises(Invalid) as refused:
        said(**message)
    assert refused.value.details["field"].startswith(field)


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"type": "heartbeat"', "[" * 10_000])
def test_what_is_not_json_is_told_apart(text):
    with pytest.raises(UnsupportedMedia):
        read(text, "one")


FIELDS = ("type", "task_id", "progress", "metrics", "status", "resources", "cpu", "gpu", "samples")
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)


@given(JSON, st.sampled_from(sorted(protocol.KINDS)))
def test_whatever_a_client_sends_is_read_or_refused(message, kind):
    if isinstance(message, dict):
        message = message | {"type": kind}
    with suppress(VillageError):
        assert isinstance(read(json.dumps(message), "one"), protocol.Said)


def actions(told: list[dict]) -> list[str]:
    return [message["action"] if message["type"] == "control" else message["type"] for message in told]


def test_each_thing_is_told_once():
    known = Conversation("one", 30.0)
    assert actions(known.task(task(), rank(), False, NOON)) == ["task"]
    assert actions(known.control("resume", NOON)) == []
    assert actions(known.control("pause", NOON)) == ["pause"] and actions(known.control("pause", NOON)) == []
    assert actions(known.control("resume", NOON)) == ["resume"]
    assert actions(known.control("stop", NOON)) == ["stop"]
    assert actions(known.control("stop", NOON)) == [] and actions(known.control("pause", NOON)) == []
    assert actions(known.task(task(TaskState.PAUSED), rank(), True, NOON)) == ["task", "pause"]


def test_who_comes_back_learns_what_it_missed():
    def back(now, held=None):
        return actions(Conversation("one", 30.0).resumes(now, rank() if held is None else held, NOON))

    assert Conversation("one", 30.0).resumes(None, None, NOON) == []
    assert back(task()) == [], "nothing has happened"
    assert back(task(TaskState.PAUSED)) == ["pause"]
    assert back(task(paused_seconds=5.0)) == ["resume"]
    assert back(task(TaskState.CANCELLED)) == ["stop"] and back(None) == ["stop"] and back(task(round=1)) == ["stop"]


def test_the_paths_of_an_assignment_are_the_servers_own():
    now = task(order={"rounds": 3, "url": "http://elsewhere/x"}, round=2, averages=(1,))
    told = protocol.config(now, rank(1).model_copy(update={"round": 2, "attempt": 4}), 30.0)
    assert told["checkpoint"] == "/api/tasks/task_1/checkpoint?round=2"
    assert told["upload"] == "/api/tasks/task_1/checkpoints/1?round=2"
    assert (told["round"], told["rounds"], told["attempt"], told["distributed"]) == (2, 3, 4, True)
