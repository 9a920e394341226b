"""The checker bites: one good history, made by the rules themselves, and every way to spoil it."""

import copy
from dataclasses import replace
from datetime import timedelta

import pytest

from cluster.clock import utc_now
from cluster.events import Event
from cluster.events.model import START
from cluster.tasks import machine
from cluster.tasks.events import began, changed
from cluster.tasks.model import Task, TaskState
from cluster.torture.checker import PROMISES, check, summary
from cluster.torture.gate import client
from cluster.torture.history import History, load, save
from cluster.torture.replay import STEPS, Finding
from cluster.trust.ledger import Standing
from cluster.trust.service import READ, credited
from cluster.workflows.chains import machine as chaining
from cluster.workflows.chains.model import Step, task_id
from cluster.workflows.model import Author
from cluster.workflows.schedules import machine as scheduling
from cluster.workflows.schedules.model import Firing, Outcome, Schedule, firing_id
from cluster.workflows.schedules.model import task_id as run_of

NOON = utc_now().replace(hour=12, minute=0, second=0, microsecond=0)
ANN = client("ann")


def at(seconds: float):
    return NOON + timedelta(seconds=seconds)


class Village:
    """Makes a history by hand, one legal step after the other."""

    def __init__(self) -> None:
        self.history = History(plan={"seed": 1}, rooms={"ada": 1, "pool": 2}, held={"ada": [], "pool": []})
        self.history.hook_since = START
        self.tasks: dict[str, Task] = {}
        self.now = 0.0

    def tell(self, *events: Event) -> None:
        for event in events:
            number = len(self.history.events)
            event_id = f"evt_{int(at(self.now).timestamp() * 1000)}-{number}"
            self.history.events.append(event.model_copy(update={"event_id": event_id}))
            self.history.notes.append({"what": "received", "time": at(self.now).timestamp(), "event_id": event_id})

    def note(self, what: str, **fields) -> None:
        self.history.notes.append({"what": what, "time": at(self.now).timestamp(), **fields})

    def new(self, name: str, **fields) -> str:
        self.now += 1
        task = Task(
            task_id=name, owner=ANN.owner, client_id="ann", share="ann", task_type="t", max_retries=1,
            created_at=at(self.now), updated_at=at(self.now),
            **{"capability_required": "x:v1", "input_data": {"n": 1}} | fields,
        )  # fmt: skip
        self.tasks[name] = task
        self.tell(changed(None, task))
        return name

    def step(self, name: str, step) -> Task:
        self.now += 1
        before = self.tasks[name]
        after = self.tasks[name] = step(before, at(self.now))
        self.tell(changed(before, after))
        return after

    def give(self, name: str, agent: str) -> None:
        self.now += 1
        before = self.tasks[name]
        given = machine.assign(before, agent, "token", at(self.now))
        running = self.tasks[name] = machine.start(given, given.attempt, at(self.now))
        self.tell(*began(before, given, running))
        self.note("given", agent=agent, task_id=name, attempt=given.attempt)

    def finish(self, name: str) -> Task:
        task = self.tasks[name]
        result = {"n": 1, "attempt": task.attempt, "agent": task.agent_id, "chance": f"{name}/{task.attempt}"}
        self.note("result", task_id=name, **result)
        after = self.step(name, lambda t, when: machine.finish(t, t.attempt, result, when))
        self.note("taken", task_id=name, **result)
        return after

    def done(self, name: str, agent: str = "ada", **fields) -> Task:
        self.new(name, **fields)
        self.give(name, agent)
        return self.finish(name)


def good() -> History:
    """Two tasks of which one needs the other, a retry, a cancellation, a worker's end, a chain, a schedule."""
    v = Village()
    v.done("task_one")
    v.new("task_two", depends_on=("task_one",))
    v.give("task_two", "ada")
    v.step("task_two", lambda t, when: machine.fail(t, 1, "no", when, 0.5))
    v.now += 60
    v.step("task_two", machine.wake)
    v.give("task_two", "pool")
    v.finish("task_two")
    v.new("task_gone")
    v.step("task_gone", lambda t, when: machine.cancel(t, "no longer", when))
    v.note("cancelled", task_id="task_gone")
    v.new("task_died")
    v.give("task_died", "pool")
    v.tasks["task_died"] = v.tasks["task_died"].model_copy(update={"inbox": "pool/worker-0"})
    v.note("ended", part="worker-0")
    v.step("task_died", lambda t, when: machine.orphaned(t, "pool/worker-0", 1, when, 0.5))
    v.now += 60
    v.step("task_died", machine.wake)
    v.give("task_died", "ada")
    v.finish("task_died")
    chain(v)
    schedule(v)
    v.note("acknowledged", ids=["task_one", "task_two", "task_gone", "task_died", "chain_c", "sched_s"])
    v.history.tasks = list(v.tasks.values())
    for agent in v.history.rooms:
        outcomes = [e for e in v.history.events if e.kind in READ and e.data.get("agent_id") == agent]
        v.history.lines += credited(Standing(standing_id=agent, as_of=NOON), outcomes)[1]
        v.history.verified[agent] = ""
    return v.history


def chain(v: Village) -> None:
    steps = [Step(name=f"s{n}", task_type="t", capability_required="x:v1", use_previous_output=n > 0) for n in range(2)]
    made = chaining.created("chain_c", Author.of(ANN), "ann", "c", "", steps, at(v.now))
    first = v.done(task_id("chain_c", 0, 0), parent_id="chain_c")
    made = chaining.settle(made, steps, first, at(v.now))
    given = chaining.input_of(steps[1], first.result_data)
    second = v.done(task_id("chain_c", 1, 0), parent_id="chain_c", input_data=given)
    v.history.chains.append(chaining.settle(made, steps, second, at(v.now)))


def schedule(v: Village) -> None:
    due = at(v.now + 1)
    made = Schedule(
        schedule_id="sched_s", author=Author.of(ANN), client_id="ann", name="s", cron_expression="0 0 1 1 *",
        timezone="UTC", task_type="t", capability_required="x:v1", next_run_at=due, created_at=due, updated_at=due,
    )  # fmt: skip
    firing = Firing(
        firing_id=firing_id("sched_s", due), schedule_id="sched_s", outcome=Outcome.FIRED, scheduled_for=due,
        task_id=run_of("sched_s", due), created_at=due,
    )  # fmt: skip
    what = scheduling.due(due, due, lambda after: after + timedelta(days=365))
    v.history.schedules.append(scheduling.moved(made, what, firing, due))
    v.history.firings.append(firing)
    v.done(firing.task_id, parent_id="sched_s")
    v.note("scheduled", schedule_id="sched_s", due=due.timestamp())


@pytest.fixture
def history() -> History:
    return copy.deepcopy(good())


def of(history: History, name: str) -> Task:
    return next(task for task in history.tasks if task.task_id == name)


def put(history: History, name: str, **update) -> None:
    history.tasks = [t.model_copy(update=update) if t.task_id == name else t for t in history.tasks]


def events_of(history: History, name: str, kind: str) -> list[int]:
    return [n for n, event in enumerate(history.events) if (event.subject, event.kind) == (name, kind)]


def again(history: History, name: str, kind: str, **data) -> None:
    """The same event once more, later."""
    event = history.events[events_of(history, name, kind)[0]]
    history.events.append(event.model_copy(update={"data": event.data | data}))


def broken(history: History) -> set[str]:
    return {finding.promise for finding in check(history)}


def test_a_good_history_keeps_every_promise(history):
    assert check(history) == []
    counts = summary(history)
    assert counts["tasks"] == 7 and counts["completed"] == 6 and counts["retry"] == 2 and counts["cancelled"] == 1


def test_a_history_is_the_same_after_it_was_kept(history, tmp_path):
    save(history, tmp_path / "history.jsonl")
    back = load((tmp_path / "history.jsonl").read_text().splitlines())
    assert back == history and check(back) == []
    history.tasks, history.unsettled = [], "x"
    save(history, tmp_path / "history.jsonl")
    assert broken(load((tmp_path / "history.jsonl").read_text().splitlines())) >= {"nothing waits for ever"}


def test_an_empty_history_keeps_every_promise():
    assert check(History()) == []


# ---- each promise, broken


def test_an_acknowledged_task_that_is_not_there(history):
    history.notes.append({"what": "acknowledged", "time": 0, "ids": ["task_lost"]})
    assert broken(history) == {"no acknowledged task lost"}


def test_a_record_that_is_gone(history):
    history.tasks = [task for task in history.tasks if task.task_id != "task_one"]
    assert broken(history) >= {"no acknowledged task lost", "records agree with events"}


def test_a_task_that_has_not_ended(history):
    put(history, "task_gone", state=TaskState.PENDING)
    assert broken(history) >= {"nothing waits for ever", "records agree with events", "no acknowledged task lost"}


def test_a_wait_that_was_in_vain(history):
    history.unsettled = "3 tasks have not ended"
    assert broken(history) == {"nothing waits for ever"}


def test_a_cancellation_that_was_promised_and_did_not_happen(history):
    history.notes.append({"what": "cancelled", "time": 0, "task_id": "task_one"})
    assert broken(history) == {"no acknowledged task lost"}


@pytest.mark.parametrize("kind", ["task.completed", "task.failed", "task.timeout", "task.cancelled"])
def test_a_second_end(history, kind):
    event = history.events[events_of(history, "task_one", "task.completed")[0]]
    history.events.append(event.model_copy(update={"kind": kind}))
    assert "one effective completion" in broken(history)


@pytest.mark.parametrize(
    "kind", sorted(set(STEPS) - {"task.completed", "task.failed", "task.timeout", "task.cancelled"})
)
def test_a_life_after_the_end(history, kind):
    event = history.events[events_of(history, "task_one", "task.completed")[0]]
    history.events.append(event.model_copy(update={"kind": kind}))
    assert "legal steps" in broken(history)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("task_two", "task.assigned"),
        ("task_two", "task.created"),
        ("task_two", "task.retry"),
    ],
)
def test_a_step_that_is_missing(history, name, kind):
    del history.events[events_of(history, name, kind)[0]]
    assert broken(history) & {"legal steps", "records agree with events"}


def test_a_step_that_the_machine_does_not_know(history):
    first = events_of(history, "task_two", "task.assigned")[0]
    history.events.insert(first + 1, history.events[first])  # given out while it was given out
    assert "legal steps" in broken(history)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("task.assigned", {"attempt": 7}),
        ("task.completed", {"agent_id": "bob"}),
        ("task.completed", {"attempt": 0}),
        ("task.started", {"status": "PENDING"}),
    ],
)
def test_an_event_that_says_something_else(history, kind, data):
    index = events_of(history, "task_one", kind)[0]
    event = history.events[index]
    history.events[index] = event.model_copy(update={"data": event.data | data})
    assert "legal steps" in broken(history)


@pytest.mark.parametrize("update", [{"attempt": 5}, {"retry_count": 1}, {"state": TaskState.FAILED}])
def test_a_record_that_says_something_else(history, update):
    put(history, "task_one", **update)
    assert "records agree with events" in broken(history)


def test_an_event_of_a_task_that_never_was(history):
    again(history, "task_one", "task.assigned")
    history.events[-1] = history.events[-1].model_copy(update={"subject": "task_none"})
    assert "legal steps" in broken(history)


def test_a_slot_that_leaked_in_the_store(history):
    history.held["ada"] = ["task_one"]
    assert broken(history) == {"no slot leaked"}


def test_a_slot_that_leaked_in_the_events(history):
    del history.events[events_of(history, "task_died", "task.completed")[0]]
    assert "no slot leaked" in broken(history)


def test_an_agent_above_its_limit(history):
    assert broken(replace(history, rooms={"ada": 1, "pool": 0})) == {"no agent above its limit"}
    for kind in ("task.assigned", "task.created"):  # both while it held the first one
        moved = history.events.pop(events_of(history, "task_two", kind)[0])
        history.events.insert(events_of(history, "task_one", "task.assigned")[0] + 1, moved)
    assert "no agent above its limit" in broken(history)


def test_a_task_that_was_given_out_before_its_dependency_had_completed(history):
    last = events_of(history, "task_one", "task.completed")[0]
    history.events.append(history.events.pop(last))
    assert "dependencies and chains in order" in broken(history)


def test_a_step_of_a_chain_that_did_not_wait(history):
    put(history, "task_c_1_0", depends_on=())
    first = events_of(history, "task_c_0_0", "task.completed")[0]
    history.events.append(history.events.pop(first))
    assert "dependencies and chains in order" in broken(history)


def test_a_step_without_the_result_of_the_one_before(history):
    put(history, "task_c_1_0", input_data={"previous_output": {"attempt": 9}})
    assert broken(history) == {"dependencies and chains in order"}


def test_a_chain_that_says_something_else_than_its_steps(history):
    [made] = history.chains
    for state, promise in (("FAILED", "dependencies and chains in order"), ("RUNNING", "nothing waits for ever")):
        history.chains = [made.model_copy(update={"state": chaining.ChainState(state)})]
        assert promise in broken(history)


def test_a_task_of_a_chain_that_does_not_know_it(history):
    put(history, "task_one", parent_id="chain_c")
    assert broken(history) == {"dependencies and chains in order"}


def test_a_time_of_a_schedule_with_two_outcomes(history):
    [firing] = history.firings
    history.firings.append(firing.model_copy(update={"firing_id": "run_2", "outcome": Outcome.SKIPPED}))
    assert broken(history) == {"each schedule fires once"}


@pytest.mark.parametrize("name", ["task_one", "none"])
def test_a_schedule_that_made_a_task_too_many_or_too_few(history, name):
    if name == "none":
        put(history, history.firings[0].task_id, parent_id="")
    else:
        put(history, name, parent_id="sched_s")
    assert broken(history) == {"each schedule fires once"}


def test_a_schedule_whose_time_came_to_nothing(history):
    history.firings = []
    assert broken(history) == {"each schedule fires once"}


def test_a_webhook_event_that_never_came(history):
    missing = next(note for note in history.notes if note["what"] == "received")
    history.notes.remove(missing)
    assert broken(history) == {"each webhook event is delivered"}
    assert broken(replace(history, hook_since=missing["event_id"])) == set()  # from before the webhook


def test_a_webhook_event_that_came_twice_is_no_fault_and_one_that_never_was_is(history):
    twice = next(note for note in history.notes if note["what"] == "received")
    history.notes.append(twice)
    assert broken(history) == set()
    history.notes.append(twice | {"event_id": "evt_1-1"})
    assert broken(history) == {"each webhook event is delivered"}


def test_a_ledger_that_lacks_a_line_or_has_one_twice(history):
    line = history.lines[0]
    assert broken(replace(history, lines=history.lines[1:])) == {"trust equals its ledger"}
    assert broken(replace(history, lines=[*history.lines, line])) == {"trust equals its ledger"}


def test_a_ledger_in_another_order(history):
    ada = [line for line in history.lines if line.agent_id == "ada"]
    swapped = [ada[0].model_copy(update={"number": ada[1].number}), ada[1].model_copy(update={"number": 1}), *ada[2:]]
    others = [line for line in history.lines if line.agent_id != "ada"]
    assert broken(replace(history, lines=[*swapped, *others])) == {"trust equals its ledger"}


def test_a_ledger_that_does_not_verify(history):
    history.verified["ada"] = "record 2 does not match its hash"
    assert broken(history) == {"trust equals its ledger"}


@pytest.mark.parametrize(
    "result",
    [
        {"n": 1, "attempt": 0, "agent": "ada", "chance": "task_one/1"},  # of an attempt before
        {"n": 1, "attempt": 1, "agent": "pool", "chance": "task_one/1"},  # of another agent
        {"n": 1, "attempt": 1, "agent": "ada", "chance": "?"},  # that nobody gave
        {"n": 1}, None, "text",
    ],
)  # fmt: skip
def test_a_result_that_is_not_the_current_attempts(history, result):
    put(history, "task_one", result_data=result)
    assert broken(history) == {"the result is the current attempt's"}


def test_an_agent_that_was_told_that_its_result_counts_and_another_one_does(history):
    told = next(note for note in history.notes if note["what"] == "taken" and note["task_id"] == "task_one")
    history.notes.append(told | {"chance": "another"})
    assert broken(history) == {"the result is the current attempt's"}


def test_an_agent_that_saw_a_task_of_another(history):
    seen = next(note for note in history.notes if note["what"] == "given")
    history.notes.append(seen | {"agent": "pool"})
    assert broken(history) == {"only who is given a task sees it"}


def test_an_index_that_differs(history):
    history.differences = ["set: task_one stands at 1.0, not at None"]
    assert broken(history) == {"indexes agree with records"}


def test_a_part_that_ended_by_itself(history):
    history.notes.append({"what": "ended", "time": 0, "part": "router"})
    assert broken(history) == {"no part ends by itself"}


def test_an_error_in_a_log(history):
    history.errors = ["router: Traceback"]
    assert broken(history) == {"no part ends by itself"}


def test_a_task_that_failed_with_a_worker_that_lives(history):
    history.notes = [note for note in history.notes if note["what"] != "ended"]
    assert broken(history) == {"nobody pays for another's fault"}


def test_every_promise_is_broken_by_one_of_these_tests():
    # The names above are those that the checker can say.
    import inspect
    import re

    from cluster.torture import checker, replay

    said = re.findall(r'(?:Finding|find)\(\s*"([a-z\' ]+)"', inspect.getsource(checker) + inspect.getsource(replay))
    tested = inspect.getsource(inspect.getmodule(test_every_promise_is_broken_by_one_of_these_tests))
    assert said and [promise for promise in said if f'"{promise}"' not in tested] == [] and len(PROMISES) >= 10
    assert str(Finding("a", "b", "c")) == "a: b: c"
