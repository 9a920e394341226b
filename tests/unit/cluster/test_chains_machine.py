"""The life of a chain as a table, and what holds in every history of one."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from workflow_harness import ANN

from cluster.errors import Conflict, Invalid, NotCancellable, VillageError
from cluster.tasks.model import Task, TaskState
from cluster.workflows.chains import machine
from cluster.workflows.chains.machine import ENDED, NEXT, ChainEvent
from cluster.workflows.chains.model import Chain, ChainState, Step, task_id
from cluster.workflows.model import Author

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STEPS = tuple(Step(name=f"s{n}", task_type=f"t{n}", capability_required="c", input_data={"n": n}) for n in range(4))
ENDS = [TaskState.COMPLETED, TaskState.FAILED, TaskState.TIMEOUT, TaskState.CANCELLED]


def chain_of(count: int = 3, at: datetime = NOON) -> Chain:
    return machine.created("chain_a", Author.of(ANN), "ann", "name", "", STEPS[:count], at)


def ended(chain: Chain, state: TaskState = TaskState.COMPLETED, at: datetime = NOON, **fields) -> Task:
    known = {"owner": "o", "client_id": "c", "task_type": "t", "capability_required": "c", "created_at": at}
    known |= {"updated_at": at, "completed_at": at}
    return Task(task_id=chain.current.task_id, state=state, **known | fields)


@pytest.mark.parametrize("state", ChainState)
@pytest.mark.parametrize("event", ChainEvent)
def test_what_the_table_does_not_name_cannot_happen(state: ChainState, event: ChainEvent):
    chain = chain_of().model_copy(update={"state": state})
    expected = NEXT.get((state, event))
    if expected is None:
        with pytest.raises(NotCancellable if event is ChainEvent.CANCEL else Conflict):
            machine.advance(chain, event, NOON)
    else:
        after = machine.advance(chain, event, NOON)
        assert after.state is expected and (after.completed_at == NOON) == (expected in ENDED)


def test_each_step_follows_the_one_before_and_the_last_ends_the_chain():
    chain = chain_of()
    for index in range(3):
        assert (chain.state, chain.current_step, chain.current.name) == (ChainState.RUNNING, index, f"s{index}")
        chain = machine.settle(chain, STEPS, ended(chain), NOON)
    assert (chain.state, chain.completed_steps, chain.current_step) == (ChainState.COMPLETED, 3, 2)
    assert len({step.task_id for step in chain.begun}) == 3


@pytest.mark.parametrize(
    ("state", "fields", "after", "reason"),
    [
        (TaskState.FAILED, {"error": "no disk"}, ChainState.FAILED, "step 's0' failed: no disk"),
        (TaskState.TIMEOUT, {"error": "too late"}, ChainState.FAILED, "step 's0' failed: too late"),
        (TaskState.CANCELLED, {"reason": "by hand"}, ChainState.CANCELLED, "step 's0' was cancelled: by hand"),
        (TaskState.CANCELLED, {}, ChainState.CANCELLED, "step 's0' was cancelled"),
    ],
)  # fmt: skip
def test_a_step_that_does_not_complete_ends_the_chain_with_the_reason(state, fields, after, reason):
    chain = machine.settle(chain_of(), STEPS, ended(chain_of(), state, **fields), NOON)
    assert (chain.state, chain.reason, len(chain.begun)) == (after, reason, 1)


def test_a_task_that_is_not_the_current_one_or_has_not_ended_changes_nothing():
    chain = chain_of()
    second = machine.settle(chain, STEPS, ended(chain), NOON)
    assert machine.settle(second, STEPS, ended(chain), NOON) == second
    assert machine.settle(chain, STEPS, ended(chain, TaskState.RUNNING), NOON) == chain
    stopped = machine.cancel(chain, "", NOON)
    assert machine.settle(stopped, STEPS, ended(chain), NOON) == stopped


def test_a_retry_goes_on_from_the_step_that_failed_with_another_task():
    chain = chain_of()
    chain = machine.settle(chain, STEPS, ended(chain), NOON)
    failed = machine.settle(chain, STEPS, ended(chain, TaskState.FAILED, error="x"), NOON)
    again = machine.retry(failed, STEPS, ended(failed, TaskState.FAILED), NOON)
    assert (again.state, again.current_step, again.reason, again.completed_at) == (ChainState.RUNNING, 1, "", None)
    assert again.begun[0] == failed.begun[0] and again.current.task_id not in {s.task_id for s in failed.begun}
    assert machine.settle(again, STEPS, ended(failed), NOON) == again  # the former task's late news


def test_a_step_that_completed_beside_a_cancellation_is_not_done_again():
    chain = chain_of(1)
    assert machine.retry(machine.cancel(chain, "", NOON), STEPS[:1], ended(chain), NOON).state is ChainState.COMPLETED
    chain = chain_of(2)
    again = machine.retry(machine.cancel(chain, "", NOON), STEPS, ended(chain), NOON)
    assert (again.current_step, again.completed_steps) == (1, 1)


def test_what_a_chain_gave_up_over_is_not_the_step_before():
    chain = chain_of()
    broken = machine.give_up(chain, ended(chain), "no such strategy", NOON)
    assert broken.state is ChainState.FAILED and broken.completed_steps == 1
    assert machine.retry(broken, STEPS, ended(chain), NOON).current_step == 1


def test_input_and_what_may_not_be_asked():
    step = Step(name="s", task_type="t", capability_required="c", input_data={"a": 1, "previous_output": 0})
    assert machine.input_of(step, 7) == {"a": 1, "previous_output": 0}
    assert machine.input_of(step.model_copy(update={"use_previous_output": True}), 7) == {"a": 1, "previous_output": 7}
    with pytest.raises(Invalid):
        machine.check([step.model_copy(update={"use_previous_output": True})])


def test_an_estimate_is_the_mean_of_what_such_steps_took_or_nothing():
    def took(*seconds: float) -> Chain:
        chain = chain_of(len(seconds), NOON - timedelta(days=1))
        for length in seconds:
            done = ended(chain, at=chain.current.begun_at + timedelta(seconds=length))
            chain = machine.settle(chain, STEPS, done, done.updated_at)
        return chain

    chain, earlier = chain_of(2), [took(10, 30), took(20), took(3, 50, 8)]
    assert machine.expected(chain, STEPS[:2], earlier, NOON) == NOON + timedelta(seconds=11 + 40)
    assert machine.expected(chain, STEPS[:2], earlier, NOON + timedelta(seconds=5)) == NOON + timedelta(seconds=51)
    late = NOON + timedelta(seconds=60)
    assert machine.expected(chain, STEPS[:2], earlier, late) == late + timedelta(seconds=40)
    assert machine.expected(chain, STEPS[:2], [took(10)], NOON) is None
    assert machine.expected(machine.cancel(chain, "", NOON), STEPS[:2], earlier, NOON) is None


class Histories(RuleBasedStateMachine):
    """Anything that can happen to a chain and the tasks that it asks for, in any order."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.steps, self.chain = STEPS[:count], chain_of(count)
        self.tasks: dict[str, Task] = {}  # that have ended
        self.completed: list[int] = []

    @rule(state=st.sampled_from(ENDS), which=st.integers(0, 20))
    def a_task_ends(self, state: TaskState, which: int) -> None:
        asked = [task_id("chain_a", step, tries) for step in range(4) for tries in range(self.chain.retries + 1)]
        name = self.chain.current.task_id if which > 10 else asked[which % len(asked)]
        known = name in {step.task_id for step in self.chain.begun}
        task = self.tasks.get(name) or ended(self.chain, state).model_copy(update={"task_id": name})
        if known:
            self.tasks[name] = task
        before = self.chain
        self.chain = machine.settle(before, self.steps, task, NOON)
        assert known or self.chain == before

    @rule()
    def somebody_cancels(self) -> None:
        try:
            self.chain = machine.cancel(self.chain, "", NOON)
        except VillageError:
            assert self.chain.state in ENDED

    @rule()
    def somebody_retries(self) -> None:
        task = self.tasks.get(self.chain.current.task_id)
        done = [step.task_id for step in self.chain.begun if step.state is TaskState.COMPLETED]
        try:
            self.chain = machine.retry(self.chain, self.steps, task, NOON)
        except VillageError:
            assert self.chain.state in (ChainState.RUNNING, ChainState.COMPLETED)
        else:
            assert [step.task_id for step in self.chain.begun][: len(done)] == done

    @invariant()
    def steps_are_in_order_and_none_is_skipped_or_done_twice(self) -> None:
        chain = self.chain
        assert [step.name for step in chain.begun] == [step.name for step in self.steps[: len(chain.begun)]]
        assert all(step.state is TaskState.COMPLETED for step in chain.begun[:-1])
        assert len({step.task_id for step in chain.begun}) == len(chain.begun)
        assert (chain.state is ChainState.COMPLETED) == (chain.completed_steps == chain.total_steps)
        if chain.state is ChainState.RUNNING:
            assert chain.current.state is None and chain.completed_at is None and not chain.reason
        else:
            assert chain.completed_at is not None


TestHistories = Histories.TestCase
