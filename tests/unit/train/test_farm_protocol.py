"""What the worker answers to what: the wire without a socket."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.farm.messages import Refused, Task, parse
from train.farm.protocol import MOST_RESULTS, AskLater, Ended, Forget, Note, Send, Session, Start, Steer

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
TASK = {
    "id": "task_1", "type": "training",
    "config": {
        "name": "m", "version": "1.0", "url": "http://x/", "batch_size": 32, "learning_rate": 0.001, "epochs": 10,
        "distributed": True, "rank": 0, "world_size": 3, "attempt": 1, "round": 0, "rounds": 3,
    },
    "requirements": {"min_gpu_memory": 4096, "min_cpu_cores": 4, "min_ram": 8192},
}  # fmt: skip


def session(connected=True):
    made = Session("worker_1", lambda: "2024-11-04T12:00:00Z")
    if connected:
        made.opened({}, {})
    return made


def frame(kind, **fields):
    return json.dumps({"type": kind, **fields})


def task(**changes):
    return frame("task", data=TASK | {"config": TASK["config"] | changes})


def sent(actions):
    return [action.message["type"] for action in actions if isinstance(action, Send)]


def kinds(actions):
    return [type(action) for action in actions]


def test_a_connection_begins_with_what_the_machine_is_and_a_request():
    assert sent(Session("w", str).opened({}, {})) == ["heartbeat", "task_request"]


def test_every_message_has_the_documented_envelope():
    made = session()
    made.received(task())
    for action in (
        *made.heartbeat({"cpu_usage": 1.0}, {"cpu": {}}),
        *made.progressed(made.task.key, 45.5, {"loss": 0.1}),
        *made.finished(made.task.key, "completed", {"final_loss": 0.1}, samples=3, checkpoint_path="x"),
    ):
        assert action.message["client_id"] == "worker_1" and action.message["timestamp"].endswith("Z")
    assert action.message["status"] == "completed" and action.message["samples"] == 3
    assert (action.message["round"], action.message["attempt"]) == (0, 1)


def test_the_documents_own_task_is_taken():
    [start] = session().received(task())
    assert isinstance(start, Start) and start.task.config.world_size == 3


def test_the_same_task_after_a_reconnect_goes_on_and_does_not_begin_again():
    made = session()
    made.received(task())
    made.closed()
    assert made.progressed(made.task.key, 10, {}) == []
    assert sent(made.opened({}, {})) == ["heartbeat", "task_request"]
    again = made.received(frame("task", data=TASK | {"resumed": True}))
    assert Steer("resume") in again and Start not in kinds(again)


def test_another_attempt_at_the_same_work_goes_on_too_and_is_told_apart():
    made = session()
    made.received(task())
    assert Start not in kinds(made.received(task(attempt=2)))
    assert made.finished(made.task.key, "completed", {})[0].message["attempt"] == 2


@pytest.mark.parametrize("change", [{"round": 1}, {"rank": 1}, {"seed": 5}, {"dataset": "other"}])
def test_other_work_replaces_what_is_in_hand_without_a_result(change):
    made = session()
    made.received(task())
    before = made.task.key
    actions = made.received(task(**change))
    assert Steer("leave") in actions and any(isinstance(action, Start) for action in actions)
    assert made.finished(before, "completed", {}) == [] and not made.results


def test_a_result_is_repeated_after_every_reconnect_until_it_is_acknowledged():
    made = session()
    made.received(task())
    made.closed()
    assert made.finished(made.task.key, "completed", {}) == []
    for _ in range(3):
        assert sent(made.opened({}, {})) == ["heartbeat", "task_result", "task_request"]
        made.closed()
    made.opened({}, {})
    actions = made.received(frame("task_result_ack", task_id="task_1", received=True))
    assert Ended("task_1", "completed", True, "") in actions and sent(actions) == ["task_request"]
    made.closed()
    assert sent(made.opened({}, {})) == ["heartbeat", "task_request"]


def test_a_result_without_an_answer_is_repeated_with_a_heartbeat():
    made = session()
    made.received(task())
    made.finished(made.task.key, "completed", {})
    assert [len(made.heartbeat({}, {})) for _ in range(6)] == [1, 1, 2, 1, 1, 2]


def test_a_task_whose_result_is_under_way_is_not_trained_again():
    made = session()
    made.received(task())
    made.finished(made.task.key, "completed", {})
    assert sent(made.received(task())) == ["task_result"]
    assert Start in kinds(made.received(task(attempt=2)))  # the farm wants another try


def test_what_is_kept_is_forgotten_once_the_result_is_taken_but_not_after_a_stop():
    for status, forgets in (("completed", True), ("failed", True), ("stopped", False)):
        made = session()
        made.received(task())
        made.finished(made.task.key, status, {})
        actions = made.received(
            frame("task_result_ack", task_id="task_1", received=True, accepted=False, reason="late")
        )
        assert (Forget in kinds(actions)) is forgets
        assert any(isinstance(action, Ended) and action.reason == "late" for action in actions)


def test_who_fails_again_and_again_asks_more_and_more_slowly():
    made, pauses = session(), []
    for n in range(1, 9):
        made.received(task(attempt=n))
        made.finished(made.task.key, "failed", {}, error="no")
        actions = made.received(frame("task_result_ack", task_id="task_1", received=True))
        assert sent(actions) == []
        pauses += [action.seconds for action in actions if isinstance(action, AskLater)]
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]


def test_control_is_for_the_task_in_hand_only():
    made = session()
    made.received(task())
    for action in ("pause", "resume", "stop"):
        assert Steer(action) in made.received(frame("control", action=action, task_id="task_1"))
        assert made.received(frame("control", action=action, task_id="task_2")) == []
    assert kinds(made.received(frame("control", action="rm -rf", task_id="task_1"))) == [Note]


def test_a_type_that_it_does_not_do_is_failed_with_what_it_does():
    [result] = session().received(frame("task", data=TASK | {"type": "inference"}))
    assert result.message["status"] == "failed" and "training" in result.message["error"]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 10**30}, {"batch_size": 0}, {"learning_rate": -1}, {"learning_rate": "__import__('os')"},
        {"rank": 3}, {"rank": -1}, {"world_size": 10**9}, {"epochs": 10**12}, {"steps": 2**70}, {"seed": -5},
        {"model": "../../etc/passwd"}, {"model": "/etc/passwd"}, {"model": "a/b"}, {"model": {"code": "x"}},
        {"dataset": "x" * 1000}, {"lease_seconds": "inf"}, {"name": ["x"]},
    ],
)  # fmt: skip
def test_a_task_that_breaks_the_bounds_is_failed_with_the_field(change):
    actions = session().received(task(**change))
    [result] = [action for action in actions if isinstance(action, Send)]
    assert result.message["status"] == "failed" and next(iter(change)) in result.message["error"]


def test_null_is_the_default():
    parsed = parse(task(**{name: None for name in ("batch_size", "learning_rate", "steps", "model", "seed", "epochs")}))
    assert isinstance(parsed, Task) and parsed.config.batch_size == 8


@pytest.mark.parametrize(
    "text",
    [
        b"", b"x", b"[]", b"3", b"null", b'{"type": 3}', b'{"type": "exec", "code": "1"}', b'{"type": "task"}', b"\xff",
        b"[" * 100_000, b'{"type": "task_result_ack"}', b'{"type": "control", "action": "pause"}', "\ud800",
        b'{"type": "task", "data": {"id": 5}}', b'{"type": "error", "code": [1]}', b'{"a": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_message_does_nothing(text):
    made = session()
    assert {Note} >= set(kinds(made.received(text)))
    assert made.task is None and not made.results


@given(st.dictionaries(st.sampled_from(["type", "data", "action", "task_id", "received", "error", "code"]), ANYTHING))
def test_nothing_that_is_sent_breaks_the_session(content):
    made = session()
    for kind in ("task", "control", "task_result_ack", "error", None):
        made.received(orjson.dumps(content | ({"type": kind} if kind else {}), default=str))
    assert made.task is None or isinstance(made.task, Task)


@given(st.dictionaries(st.sampled_from([*TASK["config"], "model", "steps", "seed", "checkpoint", "upload"]), ANYTHING))
def test_any_config_is_a_task_within_the_bounds_or_refused(changes):
    parsed = parse(orjson.dumps({"type": "task", "data": TASK | {"config": TASK["config"] | changes}}))
    assert isinstance(parsed, Task | Refused)
    if isinstance(parsed, Task):
        config = parsed.config
        assert (
            config.rank < config.world_size <= 10_000 and config.batch_size <= 4096 and 0 < config.learning_rate <= 10
        )


def test_a_farm_that_acknowledges_nothing_does_not_fill_the_memory():
    made = session()
    for n in range(1000):
        made.received(frame("task", data={"id": f"task_{n}", "type": "other"}))
    assert len(made.results) == MOST_RESULTS


def test_work_is_the_same_whatever_its_labels_and_addresses_are():
    one, other = parse(task()), parse(task(name="x", url="y", upload="/z", lease_seconds=5, attempt=9))
    assert isinstance(one, Task) and isinstance(other, Task) and one.key == other.key
    assert len(one.key) == 32 and one.seed == other.seed
