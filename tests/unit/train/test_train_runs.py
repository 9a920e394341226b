"""The life of a run, by table."""

from datetime import UTC, datetime
from itertools import product

import pytest

from cluster.errors import Conflict
from train.runs import FINAL, NEXT, Run, RunEvent, RunState, Stage, advance, lost

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def run(step: int = 0, **fields) -> Run:
    given = {
        "run_id": "task_1", "owner": "user_1", "model_id": "model_1", "model_name": "m", "created_at": NOON,
        "updated_at": NOON, "stages": (Stage(phase="cognate", config={}, total_steps=10, step=step),),
    }  # fmt: skip
    return Run(**given | fields)


@pytest.mark.parametrize(("state", "event"), list(product(RunState, RunEvent)))
def test_a_run_moves_by_the_table_and_no_other_way(state, event):
    if (state, event) in NEXT:
        assert advance(run(state=state), event, NOON).state is NEXT[state, event]
    else:
        with pytest.raises(Conflict):
            advance(run(state=state), event, NOON)


def test_what_is_finished_stays_finished():
    assert {event for state, event in NEXT if state in FINAL} == {RunEvent.RESUME}
    assert not any(state is RunState.COMPLETED for state, _ in NEXT)


@pytest.mark.parametrize(("attempt", "state"), [(1, "pending"), (2, "pending"), (3, "failed")])
def test_a_lost_job_is_tried_again_up_to_max_attempts(attempt, state):
    after = lost(run(state="running", attempt=attempt, max_attempts=3), NOON, "its job is FAILED")
    assert after.state == state
    assert after.attempt == attempt + (state == "pending")
    assert after.error


def test_a_new_attempt_is_a_new_job():
    assert lost(run(state="running"), NOON, "").job_id != run().job_id


def test_only_a_completed_run_has_progress_one():
    assert run(step=10, state="running").progress < 1
    assert run(step=5, state="running").progress == 0.5
    assert run(state="completed").progress == 1
