"""The promises, each held against a whole history. Pure: a history is enough, wherever it comes from."""

from collections import Counter
from collections.abc import Callable, Iterator

from cluster.events.model import order
from cluster.tasks.events import ENDED
from cluster.tasks.model import FINAL, Task, TaskState
from cluster.torture.history import History
from cluster.torture.replay import Finding, agree, replayed
from cluster.trust.service import HAPPENED, READ
from cluster.webhooks import catalogue
from cluster.workflows.chains.machine import PREVIOUS
from cluster.workflows.chains.model import ChainState
from cluster.workflows.schedules.model import Outcome

SLACK_SECONDS = 1.0  # between what happened and its note
Findings = Iterator[Finding]


def check(history: History) -> list[Finding]:
    """Everything that is wrong with it."""
    return [finding for promise in PROMISES for finding in promise(history)]


def settled(history: History) -> Findings:
    """Once the faults are over, everything comes to an end."""
    if history.unsettled:
        yield Finding("nothing waits for ever", "the village", history.unsettled)
    for task in history.tasks:
        if task.state not in FINAL:
            yield Finding("nothing waits for ever", task.task_id, f"is {task.state}")


def acknowledged(history: History) -> Findings:
    """Whatever a client was told to be taken is there, and has ended."""
    states = {task.task_id: task.state for task in history.tasks}
    states |= {chain.chain_id: TaskState(chain.state) for chain in history.chains if chain.state != ChainState.RUNNING}
    known = set(states) | {schedule.schedule_id for schedule in history.schedules}
    for note in history.said("acknowledged"):
        for name in note["ids"]:
            if name not in known:
                yield Finding("no acknowledged task lost", name, "is not there, or has not ended")
    for note in history.said("cancelled"):
        if states.get(note["task_id"]) is not TaskState.CANCELLED:
            text = f"its client was told that it is cancelled, and it is {states.get(note['task_id'])}"
            yield Finding("no acknowledged task lost", note["task_id"], text)


def lived(history: History) -> Findings:
    """The events are lives that the machine allows, in an order that agents' limits and dependencies allow; and the
    records, the held sets and the indexes say the same.
    """
    tasks = {task.task_id: task for task in history.tasks}
    after = {name: list(task.depends_on) for name, task in tasks.items()}
    for chain in history.chains:
        for before, step in zip(chain.begun, chain.begun[1:], strict=False):
            after.setdefault(step.task_id, []).append(before.task_id)
    verified = frozenset(name for name, task in tasks.items() if task.verification is not None)
    replay = replayed(history.events, history.rooms, after, verified)
    yield from replay.findings
    yield from agree(replay, tasks, history.held)
    for agent_id, held in replay.held.items():
        if held:
            yield Finding("no slot leaked", agent_id, f"still holds {sorted(held)}")
    for text in history.differences:
        yield Finding("indexes agree with records", "the store", text)


def results(history: History) -> Findings:
    """The result is one that the current attempt's agent gave; and who was told that its result counts, was told so
    truly.
    """
    tasks = {task.task_id: task for task in history.tasks}
    given = {(n["task_id"], n["attempt"], n["agent"], n["chance"]) for n in history.said("result")}
    by = {e.subject: e.data["agent_id"] for e in history.events if e.kind == "task.completed"}
    for task in tasks.values():
        if task.state is not TaskState.COMPLETED or task.verification is not None:
            continue
        wrong = _result(task, given, by.get(task.task_id, ""))
        if wrong:
            yield Finding("the result is the current attempt's", task.task_id, wrong)
    for note in history.said("taken"):
        task = tasks.get(note["task_id"])
        chance = task.result_data.get("chance") if task and isinstance(task.result_data, dict) else None
        if chance != note["chance"]:
            text = f"{note['agent']} was told that its result of attempt {note['attempt']} counts, and another's does"
            yield Finding("the result is the current attempt's", note["task_id"], text)


def _result(task: Task, given: set[tuple[str, int, str, str]], by: str) -> str:
    data = task.result_data
    if not isinstance(data, dict) or {"attempt", "agent", "chance"} - data.keys():
        return f"nobody gave {data!r}"
    if data["attempt"] != task.attempt:
        return f"it is of attempt {data['attempt']}, and the current one was {task.attempt}"
    if data["agent"] != by:
        return f"it is {data['agent']}'s, and {by or 'nobody'} had the task"
    if (task.task_id, data["attempt"], data["agent"], data["chance"]) not in given:
        return "no agent noted it"
    return ""


def handed_out(history: History) -> Findings:
    """Nobody sees a task that it was not given."""
    assigned = {(e.subject, e.data["attempt"], e.data["agent_id"]) for e in history.events if e.kind == "task.assigned"}
    for note in history.said("given"):
        if (note["task_id"], note["attempt"], note["agent"]) not in assigned:
            text = f"{note['agent']} saw attempt {note['attempt']}, which was not its own"
            yield Finding("only who is given a task sees it", note["task_id"], text)


def chains(history: History) -> Findings:
    """Each step has the result of the one before; a chain has ended as its steps did."""
    tasks = {task.task_id: task for task in history.tasks}
    for chain in history.chains:
        done = [step for step in chain.begun if (t := tasks.get(step.task_id)) and t.state is TaskState.COMPLETED]
        if chain.state is ChainState.RUNNING:
            yield Finding("nothing waits for ever", chain.chain_id, "is RUNNING")
        if (chain.state is ChainState.COMPLETED) != (len(done) == chain.total_steps):
            text = f"is {chain.state} with {len(done)} of {chain.total_steps} steps done"
            yield Finding("dependencies and chains in order", chain.chain_id, text)
        for before, step in zip(chain.begun, chain.begun[1:], strict=False):
            one, two = tasks.get(before.task_id), tasks.get(step.task_id)
            if one is None or two is None or two.input_data.get(PREVIOUS) != one.result_data:
                yield Finding("dependencies and chains in order", step.task_id, "has not the result of the step before")
    begun = {step.task_id for chain in history.chains for step in chain.begun}
    for task in tasks.values():
        if task.parent_id.startswith("chain_") and task.task_id not in begun:
            yield Finding("dependencies and chains in order", task.task_id, "is of a chain that does not know it")


def schedules(history: History) -> Findings:
    """Each time of a schedule has one outcome, and each one that fired one task."""
    times = Counter((firing.schedule_id, firing.scheduled_for) for firing in history.firings)
    for (schedule_id, at), count in times.items():
        if count > 1:
            yield Finding("each schedule fires once", schedule_id, f"has {count} outcomes for {at}")
    for schedule in history.schedules:
        fired = Counter(
            f.task_id for f in history.firings if (f.schedule_id, f.outcome) == _fired(schedule.schedule_id)
        )
        made = Counter(task.task_id for task in history.tasks if task.parent_id == schedule.schedule_id)
        if fired != made or schedule.runs_fired != made.total():
            text = f"fired {sorted(fired)}, made {sorted(made)}, counts {schedule.runs_fired}"
            yield Finding("each schedule fires once", schedule.schedule_id, text)
    outcomes = {(f.schedule_id, f.scheduled_for.timestamp()) for f in history.firings if f.scheduled_for}
    for note in history.said("scheduled"):
        if (note["schedule_id"], note["due"]) not in outcomes:
            yield Finding(
                "each schedule fires once", note["schedule_id"], f"nothing became of its run at {note['due']}"
            )


def _fired(schedule_id: str) -> tuple[str, Outcome]:
    return schedule_id, Outcome.FIRED


def webhooks(history: History) -> Findings:
    """The receiver has every event that the webhook wants, at least once, and none that never was."""
    if not history.hook_since:
        return
    ids = [event.event_id for event in history.events]
    start = ids.index(history.hook_since) + 1 if history.hook_since in ids else 0
    wanted = {event.event_id: event.kind for event in history.events[start:] if event.kind in catalogue.NAMES}
    received = {note["event_id"] for note in history.said("received")}
    for event_id in wanted.keys() - received:
        yield Finding("each webhook event is delivered", event_id, f"{wanted[event_id]} never came")
    for event_id in received - set(ids):
        yield Finding("each webhook event is delivered", event_id, "was delivered, and never was")


def trust(history: History) -> Findings:
    """Each agent's ledger holds, and has one line for each outcome of its attempts, in their order."""
    for agent_id, wrong in history.verified.items():
        if wrong:
            yield Finding("trust equals its ledger", agent_id, wrong)
    for agent_id in history.rooms:
        told = [
            (event.subject, str(HAPPENED[event.data["outcome"]]))
            for event in history.events
            if event.kind in READ and event.data.get("agent_id") == agent_id
        ]
        lines = sorted((line for line in history.lines if line.agent_id == agent_id), key=lambda line: line.number)
        kept = [(line.task_id, str(line.event_type)) for line in lines if line.task_id]
        if told != kept:
            lost, extra = Counter(told) - Counter(kept), Counter(kept) - Counter(told)
            text = f"lacks {sorted(lost)}, has {sorted(extra)} too many" if lost or extra else "is in another order"
            yield Finding("trust equals its ledger", agent_id, text)


def alive(history: History) -> Findings:
    """No part of the village ends by itself, or has an error that it did not expect."""
    for note in history.said("ended"):
        if not note["part"].startswith("worker"):  # whose callables may end it
            yield Finding("no part ends by itself", note["part"], f"ended at {note['time']}")
    for text in history.errors:
        yield Finding("no part ends by itself", "a log", text)


def blamed(history: History) -> Findings:
    """No try is lost to a worker's end, or to time, where no worker ended and no time had passed."""
    ends = [n["time"] for n in history.notes if n["what"] == "ended" and n["part"].startswith("worker")]
    ends += [n["time"] for n in history.said("fault") if n["part"].startswith("worker")]
    ends += [n["time"] for n in history.said("healed")]
    begun: dict[str, float] = {}
    for event in history.events:
        at = order(event.event_id)[0] / 1000  # by the store's clock, which nobody steps
        if event.kind == "task.assigned":
            begun[event.subject] = at
        if event.kind not in ("task.retry", "task.failed") or "worker ended" not in event.data["error"]:
            continue
        if not any(begun[event.subject] - SLACK_SECONDS < end < at + SLACK_SECONDS for end in ends):
            yield Finding("nobody pays for another's fault", event.subject, "no worker ended while it ran")


PROMISES: tuple[Callable[[History], Findings], ...] = (
    settled, acknowledged, lived, results, handed_out, chains, schedules, webhooks, trust, alive, blamed
)  # fmt: skip


def summary(history: History) -> dict[str, int]:
    """What happened, in numbers: a torture in which nothing happened shows nothing."""
    kinds = Counter(event.kind for event in history.events)
    found = {
        kind.removeprefix("task."): kinds[kind] for kind in sorted(kinds) if kind in (*ENDED.values(), "task.retry")
    }
    return {"tasks": len(history.tasks)} | found | {
        "released": kinds["task.released"], "chains": len(history.chains), "runs": len(history.firings),
        "trust lines": len(history.lines), "webhook events": len(history.said("received")),
        "events": len(history.events),
    }  # fmt: skip
