"""What proves a ledger: the bytes that are hashed, the replay, the export, and the sum that the score is."""

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
import rfc8785
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.trust import export, ledger
from cluster.trust.explain import Sum
from cluster.trust.ledger import Chain, Standing, TrustRecord
from cluster.trust.replay import Replay
from cluster.trust.score import TrustEvent, weights

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))
records = st.builds(
    TrustRecord, trust_record_id=text, agent_id=text, number=st.integers(0, 2**53 - 1),
    event_type=st.sampled_from(TrustEvent), task_id=text, good=number, bad=number, before=number, after=number,
    reason=text, by=text, seconds=st.none() | number, created_at=moments, previous=text,
)  # fmt: skip
KINDS = st.sampled_from([TrustEvent.COMPLETED, TrustEvent.FAILED, TrustEvent.TIMEOUT, TrustEvent.DISAGREED])
outcomes = st.lists(st.tuples(KINDS, st.floats(0.01, 20), st.floats(0, 1e6)), min_size=1, max_size=8)


def chain(of) -> tuple[Standing, list[TrustRecord]]:
    end, lines, at = Chain(Standing(standing_id="ada", as_of=NOON)), [], NOON
    for kind, seconds, pause in of:
        at += timedelta(seconds=pause)
        good, bad, reason = weights(kind, seconds, 10, 2)
        lines.append(end.add(kind, good, bad, reason, at, task_id="task_1", seconds=seconds))
    return end.standing(), lines


@given(records)
def test_what_is_hashed_is_the_canonical_json_of_the_standard(record):
    without = {"hash"} if record.seconds is not None else {"hash", "seconds"}
    expected = rfc8785.dumps(record.model_dump(mode="json", exclude=without))
    assert ledger.canonical(record).encode() == expected
    assert ledger.digest(record) == hashlib.sha256(expected).hexdigest()


@given(records.map(lambda r: r.model_copy(update={"seconds": None})))
def test_a_line_from_before_seconds_were_written_has_the_hash_that_it_always_had(record):
    stored = json.loads(record.model_dump_json())
    del stored["seconds"], stored["hash"]
    assert ledger.digest(record) == hashlib.sha256(rfc8785.dumps(stored)).hexdigest()


def test_a_text_that_is_no_unicode_has_no_hash():
    record = chain([(TrustEvent.FAILED, 1.0, 0.0)])[1][0]
    with pytest.raises(ValueError):
        ledger.digest(record.model_copy(update={"reason": "\ud800"}))


@given(outcomes)
def test_lines_that_are_added_together_are_those_that_are_added_one_by_one(of):
    together, lines = chain(of)
    alone, single, at = Standing(standing_id="ada", as_of=NOON), [], NOON
    for kind, seconds, pause in of:
        at += timedelta(seconds=pause)
        good, bad, reason = weights(kind, seconds, 10, 2)
        alone, line = ledger.append(alone, kind, good, bad, reason, at, task_id="task_1", seconds=seconds)
        single.append(line)
    assert (alone, single) == (together, lines)


@given(outcomes)
def test_a_standing_is_what_its_lines_add_up_to(of):
    standing, lines = chain(of)
    replay = Replay("ada")
    assert all(replay.add(TrustRecord.model_validate_json(line.model_dump_json())) for line in lines)
    verdict = replay.against(Standing.model_validate_json(standing.model_dump_json()))
    assert verdict.fault is None and verdict.checked == len(of) and verdict.head == standing.head


@given(
    outcomes,
    st.sampled_from(["good", "bad", "good_ever", "bad_ever", "completed", "failed", "busy_seconds", "length"]),
)
def test_a_standing_that_was_edited_is_found(of, name):
    standing, lines = chain(of)
    replay = Replay("ada")
    all(replay.add(line) for line in lines)
    edited = standing.model_copy(update={name: getattr(standing, name) + 1})
    assert (replay.against(edited).fault or "").startswith(("the standing is not", "the chain does not end"))
    assert replay.against(None).fault == "there are lines and no standing"
    assert Replay("bob").against(edited).fault == "the chain does not end where the standing says"


def test_a_standing_without_a_line_has_no_evidence():
    assert Replay("ada").against(Standing(standing_id="ada", as_of=NOON)).fault is None
    assert Replay("ada").against(None).fault is None
    rich = Standing(standing_id="ada", as_of=NOON, good=5.0)
    assert Replay("ada").against(rich).fault == "the standing has evidence without a line"


def test_a_line_of_another_agent_does_not_count():
    _, lines = chain([(TrustEvent.COMPLETED, 1.0, 0.0)])
    replay = Replay("bob")
    assert not replay.add(lines[0]) and replay.fault == "record 1 is another agent's"


def exported(*chains: tuple[Standing, list[TrustRecord]]) -> list[bytes]:
    seal = export.Seal()
    lines = [seal.line(one) for standing, records in chains for one in (*records, standing)]
    return [f"{line}\n".encode() for line in (*lines, seal.end())]


@given(outcomes)
def test_an_export_proves_itself(of):
    other, lines = chain([(TrustEvent.FAILED, 3.0, 5.0)])
    verdicts = list(export.verify(exported(chain(of), (other, lines))))
    assert [(v.fault, v.checked) for v in verdicts] == [(None, len(of)), (None, 1)]


@given(outcomes, st.data())
def test_any_edited_byte_of_an_export_is_found(of, data):
    whole = b"".join(exported(chain(of)))
    place, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    edited = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    assume(edited.rstrip(b"\n") != whole.rstrip(b"\n"))
    assert any(verdict.fault for verdict in export.verify(edited.splitlines(keepends=True)))


@given(outcomes, st.data())
def test_a_line_that_is_missing_from_an_export_is_found(of, data):
    lines = exported(chain(of))
    del lines[data.draw(st.integers(0, len(lines) - 1))]
    assert any(verdict.fault for verdict in export.verify(lines))


@given(outcomes, st.floats(-1e6, 1e8))
def test_the_sum_over_the_lines_is_the_score_at_any_time(of, later):
    standing, lines = chain(of)
    at = standing.as_of + timedelta(seconds=later)
    summed, replay = Sum(at), Replay("ada")
    for line in lines:
        replay.add(line)
        summed.add(line)
    found = summed.explanation(replay.against(standing), standing)
    assert found.agrees and found.verdict.fault is None
    assert sum(found.counts.values()) == len(found.lines) == sum(line.created_at <= at for line in lines)
    if later >= 0:
        assert found.score == pytest.approx(standing.score(at), abs=1e-9) and found.good == pytest.approx(
            sum(line.good for line in found.lines)
        )


def test_what_moved_a_score_most_is_named_first():
    standing, lines = chain(
        [(TrustEvent.COMPLETED, 9.0, 0.0), (TrustEvent.FAILED, 1.0, 1.0), (TrustEvent.TIMEOUT, 9, 1)]
    )
    summed = Sum(standing.as_of)
    for line in lines:
        summed.add(line)
    found = summed.explanation(Replay("ada").against(None), standing)
    assert [line.record.event_type for line in found.strongest(2)] == [TrustEvent.FAILED, TrustEvent.TIMEOUT]
    assert found.strongest(1)[0].moves < 0 < found.lines[-1].moves
    assert lines[1].reason == "Task failed" and weights(TrustEvent.DISAGREED, None, 1, 1)[2].endswith("with 1 other")
