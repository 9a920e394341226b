from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import utc_now
from cluster.events import Event
from cluster.trust import ledger, replay
from cluster.trust.ledger import GENESIS, Standing, TrustRecord
from cluster.trust.score import TrustEvent, weights
from cluster.trust.service import credited

NOON = utc_now()
KINDS = st.sampled_from([TrustEvent.COMPLETED, TrustEvent.FAILED, TrustEvent.TIMEOUT])
outcomes = st.lists(st.tuples(KINDS, st.floats(0.01, 20), st.floats(0, 1e6)), min_size=1, max_size=8)


def chain(of: list[tuple[TrustEvent, float, float]]) -> tuple[Standing, list[TrustRecord]]:
    standing, lines, at = Standing(standing_id="ada", as_of=NOON), [], NOON
    for kind, seconds, pause in of:
        at += timedelta(seconds=pause)
        good, bad, reason = weights(kind, seconds, 10)
        standing, line = ledger.append(standing, kind, good, bad, reason, at, task_id="task_1", seconds=seconds)
        lines.append(line)
    return standing, lines


def stored(lines: list[TrustRecord]) -> list[TrustRecord]:
    return [TrustRecord.model_validate_json(line.model_dump_json()) for line in lines]


@given(outcomes)
def test_a_chain_as_it_was_written_holds(of):
    standing, lines = chain(of)
    assert replay.verify(stored(lines)) is None and lines[-1].hash == standing.head
    assert lines[0].previous == GENESIS and standing.length == len(lines)
    assert standing.completed + standing.failed == len(lines)


def test_an_empty_chain_holds():
    assert replay.verify([]) is None


@given(outcomes, st.data())
def test_an_edited_byte_is_found(of, data):
    _, lines = chain(of)
    at = data.draw(st.integers(0, len(lines) - 1))
    body = bytearray(lines[at].model_dump_json().encode())
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.sampled_from([1, 2, 4]))
    try:
        edited = TrustRecord.model_validate_json(bytes(body))
    except ValueError:
        return  # no longer a record at all
    if edited == lines[at]:
        return  # a byte of a number that says the same, or of a key that has a default anyway
    assert replay.verify([*lines[:at], edited, *lines[at + 1 :]]) is not None


@given(outcomes, st.data())
def test_a_record_rewritten_with_a_new_hash_is_found_by_the_next_or_by_the_head(of, data):
    standing, lines = chain(of)
    at = data.draw(st.integers(0, len(lines) - 1))
    forged = lines[at].model_copy(update={"reason": "better than it was"})
    forged = forged.model_copy(update={"hash": ledger.digest(forged)})
    changed = [*lines[:at], forged, *lines[at + 1 :]]
    assert replay.verify(changed) is not None or changed[-1].hash != standing.head


@given(outcomes, st.data())
def test_a_dropped_record_is_found(of, data):
    standing, lines = chain(of)
    at = data.draw(st.integers(0, len(lines) - 1))
    left = lines[:at] + lines[at + 1 :]
    assert replay.verify(left) is not None or (left[-1].hash if left else GENESIS) != standing.head


@given(st.lists(st.tuples(KINDS, st.floats(0.01, 20), st.floats(0, 100)), min_size=2, max_size=6), st.data())
def test_records_in_another_order_are_found(of, data):
    _, lines = chain(of)
    order = data.draw(st.permutations(lines))
    assert replay.verify(order) is not None or order == lines


def test_a_sum_that_is_wrong_is_found_even_with_its_hash_right():
    _, lines = chain([(TrustEvent.COMPLETED, 1.0, 0.0)])
    forged = lines[0].model_copy(update={"after": 0.99})
    forged = forged.model_copy(update={"hash": ledger.digest(forged)})
    assert replay.verify([forged]) == "record 1 does not add up"


def outcome(number: int, kind: str = "COMPLETED", seconds: float | None = 2.0) -> Event:
    return Event(
        kind="task.completed", subject=f"task_{number}", owner="user_1", at=NOON + timedelta(seconds=number),
        event_id=f"evt_{1000 + number // 3}-{number % 3}",
        data={"agent_id": "ada", "outcome": kind, "execution_time_seconds": seconds, "timeout_seconds": 10},
    )  # fmt: skip


EVENTS = [outcome(n, ("COMPLETED", "FAILED", "TIMEOUT")[n % 3], None if n == 4 else float(n)) for n in range(12)]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6))
def test_an_event_counts_once_however_often_a_batch_is_read_again(ranges):
    once, lines = credited(Standing(standing_id="ada", as_of=NOON), EVENTS)
    assert len(lines) == 12 and once.completed == 4 and once.failed == 8
    standing, written = Standing(standing_id="ada", as_of=NOON), []
    done = 0
    for start, end in ranges:  # a reader that was killed reads again from some earlier place, never from a later one
        standing, more = credited(standing, EVENTS[min(start, done) : max(end, done)])
        done = max(end, done)
        written += more
    standing, more = credited(standing, EVENTS[done:])
    assert standing == once and written + more == lines


def test_event_ids_are_compared_as_numbers():
    early, late = outcome(1), outcome(2)
    early, late = (
        early.model_copy(update={"event_id": "evt_999-9"}),
        late.model_copy(update={"event_id": "evt_1000-10"}),
    )
    standing, _ = credited(Standing(standing_id="ada", as_of=NOON), [early, late])
    assert standing.through == "evt_1000-10" and credited(standing, [early, late])[1] == []


@pytest.mark.parametrize(("seconds", "mean"), [(4.0, 4.0), (None, 0.0)])
def test_a_mean_time_is_of_completed_tasks(seconds, mean):
    standing, _ = credited(
        Standing(standing_id="ada", as_of=NOON), [outcome(0, seconds=seconds), outcome(1, "FAILED", 99.0)]
    )
    assert standing.mean_seconds == mean and standing.success_rate == 0.5
    assert Standing(standing_id="x", as_of=NOON).mean_seconds is None
