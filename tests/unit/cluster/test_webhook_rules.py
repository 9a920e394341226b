from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import utc_now
from cluster.errors import Conflict, Invalid
from cluster.tasks.events import ENDED
from cluster.webhooks import catalogue, machine
from cluster.webhooks.model import Attempt, Delivery, DeliveryState, Secret, Webhook, delivery_id
from train.reporting import VERBS

NOON = utc_now()
AINS_EVENTS = {
    "task.created", "task.assigned", "task.started", "task.completed", "task.failed", "task.cancelled", "task.timeout",
    "task.retry", "agent.registered", "agent.updated", "agent.deactivated", "chain.started", "chain.completed",
    "chain.failed",
}  # fmt: skip


def hook(**fields) -> Webhook:
    made = {
        "webhook_id": "wh_1", "owner": "user_1", "created_by": "user_1", "url": "http://127.0.0.1/", "events": ("*",),
        "secrets": (Secret(value="first secret"),), "created_at": NOON, "updated_at": NOON,
    }  # fmt: skip
    return Webhook(**made | fields)


def delivery(**fields) -> Delivery:
    made = {
        "delivery_id": "dlv_1", "webhook_id": "wh_1", "event": "task.created", "event_id": "evt_1-0",
        "created_at": NOON, "next_at": NOON,
    }  # fmt: skip
    return Delivery(**made | fields)


def attempt(status: int | None = 200) -> Attempt:
    return Attempt(number=1, at=NOON, duration_ms=1.0, status=status)


def test_the_documented_events_are_all_there():
    orchestra, forge = {"chat.completed", "session.ended"}, {"mission.created", "job.completed", "deployment.created"}
    assert catalogue.EVENTS.keys() >= AINS_EVENTS | orchestra | forge
    assert len(catalogue.NAMES) == len(catalogue.EVENTS), "two names for one kind: an event would be sent by one only"


def test_what_the_stream_has_is_mapped():
    assert set(ENDED.values()) <= catalogue.NAMES.keys()
    assert {f"training.{verb}" for verb in VERBS.values()} <= catalogue.NAMES.keys()


@pytest.mark.parametrize(
    ("filters", "name", "wanted"),
    [
        (["*"], "task.created", True), (["task.*"], "task.retry", True), (["task.*"], "agent.updated", False),
        (["task.created"], "task.created", True), (["task.created"], "task.completed", False),
        (["agent.*", "task.failed"], "task.failed", True), ([], "task.created", False),
    ],
)  # fmt: skip
def test_a_filter_names_an_event_its_noun_or_all(filters, name, wanted):
    assert catalogue.matches(filters, name) is wanted


@pytest.mark.parametrize("filters", [["task.nonsense"], ["nonsense.*"], ["task*"], ["**"], [""], [], ["*.created"]])
def test_a_filter_that_can_match_nothing_is_refused_with_those_that_can(filters):
    with pytest.raises(Invalid) as refusal:
        catalogue.checked(filters)
    assert refusal.value.details["field"] == "events" and "task.*" in refusal.value.details["allowed_values"]


def test_a_repeated_filter_counts_once():
    assert catalogue.checked(["task.*", "task.*", "*"]) == ("task.*", "*")


@pytest.mark.parametrize(
    ("fields", "owner", "about", "agent_owner", "told"),
    [
        ({}, "user_1", {}, "", True),
        ({}, "user_2", {}, "", False),
        ({}, "", {}, "", False),
        ({"all_owners": True}, "user_2", {}, "", True),
        ({"agent_id": "ada"}, "user_1", {"agent_id": "ada"}, "", True),
        ({"agent_id": "ada"}, "user_1", {"agent_id": "bob"}, "", False),
        ({"agent_id": "ada"}, "user_1", {}, "user_1", False),
        # the owner of an agent hears of the tasks of others that it was given, and nobody else does
        ({"agent_id": "ada"}, "user_2", {"agent_id": "ada"}, "user_1", True),
        ({"agent_id": "ada"}, "user_2", {"agent_id": "ada"}, "user_3", False),
        ({"agent_id": "ada"}, "user_2", {"agent_id": "ada"}, "", False),
        ({"agent_id": "ada", "all_owners": True}, "user_2", {"agent_id": "bob"}, "", False),
    ],
)  # fmt: skip
def test_an_owner_is_told_of_what_it_may_see(fields, owner, about, agent_owner, told):
    assert catalogue.concerns(hook(**fields), owner, about, agent_owner) is told


def test_attempts_follow_after_1_5_and_15_minutes_and_then_no_more():
    current, at, waits = delivery(), NOON, []
    while current.next_at is not None:
        waits.append((current.next_at - at).total_seconds() / 60)
        at = current.next_at
        current = machine.settled(machine.claimed(current, "c", at), "c", attempt(500), at)
    assert waits == [0, 1, 5, 15]
    assert current.state is DeliveryState.FAILED and current.attempt_count == 4 and current.finished_at == at


@pytest.mark.parametrize(
    ("status", "state", "again"),
    [
        (200, "delivered", False), (202, "delivered", False), (299, "delivered", False), (301, "pending", True),
        (400, "pending", True), (404, "pending", True), (429, "pending", True), (500, "pending", True),
        (None, "pending", True), (410, "failed", False), (199, "pending", True),
    ],
)  # fmt: skip
def test_what_an_answer_means(status, state, again):
    after = machine.settled(machine.claimed(delivery(), "c", NOON), "c", attempt(status), NOON)
    assert (after.state, after.next_at is not None) == (state, again)


def test_what_is_claimed_is_out_of_reach_for_the_lease_and_then_due_again():
    held = machine.claimed(delivery(), "a", NOON)
    for at in (NOON, NOON + machine.LEASE - timedelta(milliseconds=1)):
        with pytest.raises(Conflict):
            machine.claimed(held, "b", at)
    assert machine.claimed(held, "b", NOON + machine.LEASE).claim == "b"


def test_a_late_failure_is_ignored_once_another_has_the_delivery_and_a_late_success_is_not():
    taken = machine.claimed(machine.claimed(delivery(), "a", NOON), "b", NOON + machine.LEASE)
    assert machine.settled(taken, "a", attempt(500), NOON) == taken
    assert machine.settled(taken, "a", attempt(200), NOON).state is DeliveryState.DELIVERED


@given(st.lists(st.sampled_from([200, 500, 410, None]), max_size=8))
def test_what_is_finished_stays_so_and_no_attempt_is_made_beyond_four(statuses):
    current, at = delivery(), NOON
    for status in statuses:
        if current.next_at is None:
            assert machine.settled(current, current.claim, attempt(200), at) == current
            break
        at = current.next_at
        current = machine.settled(machine.claimed(current, "c", at), "c", attempt(status), at)
        assert current.attempt_count <= 4


def test_a_replay_begins_anew_and_keeps_the_history():
    done = machine.settled(machine.claimed(delivery(), "c", NOON), "c", attempt(410), NOON)
    again = machine.replayed(done, NOON)
    assert again.state is DeliveryState.PENDING and again.next_at == NOON and again.tries == 0
    assert again.attempts == done.attempts and again.attempt_count == 1
    for _ in range(30):
        again = machine.replayed(machine.settled(machine.claimed(again, "c", NOON), "c", attempt(), NOON), NOON)
    assert again.attempt_count == 31 and len(again.attempts) == machine.KEPT_ATTEMPTS


def test_what_is_on_its_way_is_not_replayed():
    flying = machine.claimed(delivery(), "c", NOON)
    assert machine.replayed(flying, NOON) == flying
    assert machine.replayed(flying, NOON + machine.LEASE).claim == ""


def judge(failed_at: list[timedelta], **fields) -> Webhook:
    current = hook(**fields)
    for offset in failed_at:
        current = machine.judged(current, delivery(state="failed", next_at=None), attempt(500), NOON + offset)
    return current


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("failed_at", "active"),
    [
        ([HOUR * n for n in range(10)], True),  # ten in a row, in nine hours only
        ([HOUR * 24 * n for n in range(9)], True),  # for eight days, nine only
        ([*(HOUR * n for n in range(9)), HOUR * 24], False),
        ([HOUR * 0] * 1000, True),
        ([*([HOUR * 0] * 1000), HOUR * 24 - timedelta(seconds=1)], True),
        ([*([HOUR * 0] * 1000), HOUR * 24], False),
    ],
)  # fmt: skip
def test_ten_failures_in_a_row_over_a_day_switch_it_off(failed_at, active):
    after = judge(failed_at)
    assert (after.active, after.disabled_at is None, after.disabled_reason == "") == (active, active, active)


def test_one_success_forgets_the_failures():
    failing = judge([HOUR * n for n in range(9)])
    well = machine.judged(failing, delivery(state="delivered"), attempt(200), NOON + HOUR * 9)
    assert (failing.failures, well.failures, well.failing_since) == (9, 0, None)


def test_a_failed_attempt_that_is_followed_by_another_does_not_count():
    assert machine.judged(hook(), delivery(), attempt(500), NOON) == hook()


def test_gone_switches_it_off_at_once():
    after = machine.judged(hook(), delivery(state="failed"), attempt(410), NOON)
    assert not after.active and "410" in after.disabled_reason


def test_switching_on_forgets_why_it_was_off():
    off = machine.disabled(judge([HOUR] * 9), "because", NOON)
    on = machine.enabled(off, "evt_9-0")
    assert (on.active, on.failures, on.failing_since, on.disabled_at, on.disabled_reason, on.since) == (
        True, 0, None, None, "", "evt_9-0"
    )  # fmt: skip
    assert machine.enabled(on, "evt_10-0") == on


@pytest.mark.parametrize(
    ("waiting", "streak", "off"),
    [(10_000, 50, False), (10_001, 9, False), (10_001, 10, True), (100_000, 0, False), (100_001, 0, True)],
)
def test_a_receiver_that_cannot_keep_up_is_switched_off_before_the_memory_is_full(waiting, streak, off):
    assert bool(machine.overrun(waiting, streak)) is off


def test_rotated_secrets_sign_until_their_grace_is_over():
    at, day = NOON, timedelta(days=1)
    once = machine.rotated(hook(), "second secret", day, at)
    twice = machine.rotated(once, "third secret", day, at + day / 2)

    def values(h, when):
        return [secret.value for secret in machine.signing(h, when)]

    assert values(once, at) == ["second secret", "first secret"] and values(once, at + day) == ["second secret"]
    assert values(twice, at + day / 2) == ["third secret", "second secret", "first secret"]
    assert values(twice, at + day) == ["third secret", "second secret"], "a second rotation must not prolong the first"
    assert values(twice, at + day * 2) == ["third secret"]
    assert values(machine.rotated(hook(), "second secret", timedelta(0), at), at) == ["second secret"]
    many = hook()
    for n in range(9):
        many = machine.rotated(many, f"secret number {n}", day, at)
    assert values(many, at) == ["secret number 8", "secret number 7", "secret number 6"]


def test_a_deliverys_id_follows_from_the_webhook_and_the_event():
    assert delivery_id("wh_ab", "evt_12-0") == "dlv_ab_12-0"


def test_a_secret_is_not_in_what_is_printed():
    assert "first secret" not in repr(hook())
