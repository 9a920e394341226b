from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.clock import utc_now
from cluster.routing import strategies
from cluster.routing import table as tables
from cluster.routing.strategies import CATALOGUE
from cluster.routing.table import MAX_REST_SECONDS, Offer, Table, allowed, in_village
from cluster.tasks.model import Task
from cluster.trust.ledger import Standing
from cluster.workers.model import PULL, Agent

NOON = utc_now()
SOON = NOON + timedelta(seconds=6)


def agent(name: str, *tags: str, room: int = 2, status="active", endpoint="http://x") -> Agent:
    return Agent(
        agent_id=name, owner="user_1", display_name=name, public_key="", endpoint=endpoint, tags=tags or ("sums:v1",),
        max_concurrent_tasks=room, status=status, created_at=NOON, last_seen_at=NOON,
    )  # fmt: skip


def standing(name: str, **fields) -> Standing:
    return Standing(standing_id=name, as_of=NOON, **fields)


def task(name: str = "task_1", attempt: int = 1, **fields) -> Task:
    return Task(
        task_id=name, owner="user_1", client_id="c", task_type="t", attempt=attempt, created_at=NOON, updated_at=NOON,
        **{"capability_required": "sums:v1"} | fields,
    )  # fmt: skip


def chosen(table: Table, wanted: Task | None = None) -> str | None:
    choice = table.choose(wanted or task(), NOON)
    return choice and choice[0].agent.agent_id


@pytest.fixture
def table() -> Table:
    made = Table()
    for name in ("ada", "bob"):
        made.put(agent(name), standing(name), NOON)
    return made


@pytest.fixture
def pullers() -> Table:
    made = Table()
    made.put(agent("ada", room=8, endpoint=PULL), standing("ada"), NOON)
    return made


def test_room_counts_who_is_active_capable_and_not_full(table: Table):
    table.put(agent("off", status="inactive"), standing("off"), NOON)
    table.put(agent("other", "texts:v1", room=5), standing("other"), NOON)
    assert (table.room("sums:v1"), table.room("texts:v1"), table.room("none:v1")) == (4, 5, 0)
    table.hold("ada", task("task_1"), NOON)
    table.hold("ada", task("task_2"), NOON)
    assert table.room("sums:v1") == 2 and chosen(table) == "bob"
    assert list(table.drop("ada", "task_1.1", NOON)) == ["sums:v1"] and table.room("sums:v1") == 3
    table.put(agent("ada", status="inactive"), standing("ada"), NOON)
    assert table.room("sums:v1") == 2 and chosen(table) == "bob"
    assert table.choose(task(capability_required="none:v1"), NOON) is None


def test_holding_or_dropping_twice_counts_once(table: Table):
    table.hold("ada", task(), NOON)
    table.hold("ada", task(), NOON)
    table.hold("ada", task(attempt=2), NOON)  # the same task came back to the same agent: another attempt
    assert table.room("sums:v1") == 2
    assert list(table.drop("ada", "task_1.1", NOON)) == ["sums:v1"]
    assert list(table.drop("ada", "task_1.1", NOON)) == [] and list(table.drop("nobody", "task_1.1", NOON)) == []
    assert table.entries["ada"].held == {"task_1.2": ""} and table.room("sums:v1") == 3


def test_a_changed_agent_keeps_what_it_holds_and_loses_its_old_tags(table: Table):
    table.hold("ada", task(), NOON)
    table.put(agent("ada", "texts:v1", room=1), standing("ada"), NOON)
    assert table.entries["ada"].held == {"task_1.1": ""}
    assert (table.room("sums:v1"), table.room("texts:v1")) == (2, 0)
    assert chosen(table) == "bob" and chosen(table, task(capability_required="texts:v1")) is None
    list(table.drop("ada", "task_1.1", NOON))
    assert table.room("texts:v1") == 1 and chosen(table, task(capability_required="texts:v1")) == "ada"


def test_turns_are_counted(table: Table):
    table.hold("bob", task("task_1"), NOON)
    table.hold("ada", task("task_2"), NOON)
    assert table.entries["bob"].last_turn < table.entries["ada"].last_turn and chosen(table) == "bob"
    assert table.entries["ada"].candidate().load == 1 and table.entries["ada"].candidate().trust == 0.5


def test_a_task_says_who_may_not_have_it(table: Table):
    table.stands("bob", standing("bob", good=100), NOON)
    assert chosen(table, task(excluded=("ada",))) == "bob" and chosen(table, task(excluded=("bob",))) == "ada"
    assert chosen(table, task(trust_min=0.8)) == "bob" and chosen(table, task(trust_min=0.95)) is None
    assert chosen(table, task(trust_min=0.8, excluded=("bob",))) is None
    assert chosen(table) == "ada"  # who was passed over is still there
    ada = table.entries["ada"]
    assert allowed(task(trust_min=0.5), ada.agent, ada.standing, NOON)


# ---- rests


def test_an_agent_without_an_answer_rests_each_time_twice_as_long(table: Table):
    at, rests = NOON, []
    for _ in range(8):
        until = table.unanswered("ada", at)
        assert until is not None
        rests.append((until - at).total_seconds())
        assert table.room("sums:v1") == 2 and chosen(table) == "bob"
        assert list(table.rested(until - timedelta(seconds=0.1))) == [] and table.room("sums:v1") == 2
        assert list(table.rested(until)) == ["sums:v1"] and table.room("sums:v1") == 4
        assert list(table.rested(until)) == []
        at = until
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]
    table.answered("ada", at)
    assert table.unanswered("ada", at) == at + timedelta(seconds=1) and table.unanswered("nobody", at) is None


def test_deliveries_that_fail_together_are_one_silence(table: Table):
    # The bug: an agent that was killed with five tasks in hand rested for 16 s, and with seven for a minute.
    first = table.unanswered("ada", NOON)
    for seconds in (0, 0.1, 0.9):
        assert table.unanswered("ada", NOON + timedelta(seconds=seconds)) == first == NOON + timedelta(seconds=1)


def test_an_answer_ends_a_rest(table: Table):
    table.unanswered("ada", NOON)
    table.answered("ada", NOON)
    table.answered("nobody", NOON)
    assert table.room("sums:v1") == 4 and list(table.rested(SOON)) == []


def test_an_agent_that_was_away_for_days_only_rests(table: Table):
    # The bug: after 1024 deliveries without an answer the doubling left the range of a float, and no task came back.
    table.entries["ada"].silent = 5000
    assert table.unanswered("ada", NOON) == NOON + timedelta(seconds=MAX_REST_SECONDS)


# ---- offers


def test_an_agent_that_pulls_has_the_room_that_it_offers(pullers: Table):
    assert pullers.room("sums:v1") == 0 and chosen(pullers) is None
    assert list(pullers.offer("ada", "ada/1", Offer(2, SOON), NOON)) == ["sums:v1"] and pullers.room("sums:v1") == 2
    assert list(pullers.offer("ada", "ada/2", Offer(9, SOON), NOON)) == ["sums:v1"]
    assert pullers.room("sums:v1") == 8  # never more than it may hold in all
    assert list(pullers.offer("nobody", "x", Offer(9, SOON), NOON)) == []
    entry, inbox = pullers.choose(task(), NOON) or (None, "")
    assert entry is pullers.entries["ada"] and inbox == "ada/2"


def test_credit_counts_what_the_inbox_holds_already(pullers: Table):
    pullers.offer("ada", "ada/1", Offer(2, SOON), NOON)
    pullers.hold("ada", task("task_1", inbox="ada/1"), NOON)
    assert pullers.room("sums:v1") == 1
    pullers.hold("ada", task("task_2", inbox="ada/1"), NOON)
    assert pullers.room("sums:v1") == 0 and chosen(pullers) is None
    assert list(pullers.offer("ada", "ada/1", Offer(2, SOON + timedelta(seconds=6)), NOON)) == []
    assert list(pullers.offer("ada", "ada/1", Offer(3, SOON), NOON)) == ["sums:v1"] and pullers.room("sums:v1") == 1
    assert list(pullers.drop("ada", "task_1.1", NOON)) == ["sums:v1"] and pullers.room("sums:v1") == 2


def test_an_offer_that_is_not_renewed_is_withdrawn_once(pullers: Table):
    pullers.offer("ada", "ada/1", Offer(2, SOON), NOON)
    pullers.offer("ada", "ada/2", Offer(2, SOON + timedelta(seconds=1)), NOON)
    assert pullers.withdrawn(NOON) == []
    [(entry, inbox)] = pullers.withdrawn(SOON)
    assert (entry.agent.agent_id, inbox) == ("ada", "ada/1") and pullers.room("sums:v1") == 2
    assert pullers.withdrawn(SOON) == []
    pullers.offer("ada", "ada/2", Offer(2, SOON + timedelta(seconds=7)), NOON)  # renewed in time
    assert pullers.withdrawn(SOON + timedelta(seconds=1)) == [] and pullers.room("sums:v1") == 2
    assert [inbox for _, inbox in pullers.withdrawn(SOON + timedelta(seconds=7))] == ["ada/2"]
    assert pullers.room("sums:v1") == 0 and chosen(pullers) is None


def test_a_suspect_is_tried_alone(pullers: Table):
    for inbox in ("ada/1", "ada/2"):
        pullers.offer("ada", inbox, Offer(2, SOON), NOON)
    pullers.hold("ada", task("task_1", inbox="ada/1"), NOON)
    _, inbox = pullers.choose(task("task_2", suspect=True), NOON) or (None, "")
    assert inbox == "ada/2"  # nothing else is there
    pullers.hold("ada", task("task_2", suspect=True, inbox="ada/2"), NOON)
    assert pullers.choose(task("task_3", suspect=True), NOON) is None
    assert (pullers.choose(task("task_3"), NOON) or (None, ""))[1] == "ada/1"  # and nothing comes beside it
    list(pullers.drop("ada", "task_2.1", NOON))
    assert (pullers.choose(task("task_3"), NOON) or (None, ""))[1] == "ada/2"


def test_an_inbox_of_a_village_worker_is_told_by_its_name():
    assert in_village("ada", "ada/1") and not in_village("ada", "ada") and not in_village("ada", "")


# ---- the heaps

NAMES = [f"a{n}" for n in range(6)]
moves = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.integers(1, 3), st.sampled_from(["active", "inactive"])),
    st.tuples(st.just("hold"), st.sampled_from(NAMES)),
    st.tuples(st.just("drop"), st.sampled_from(NAMES)),
    st.tuples(st.just("trust"), st.sampled_from(NAMES), st.floats(0, 50), st.floats(0, 50)),
    st.tuples(st.just("unanswered"), st.sampled_from(NAMES)),
    st.tuples(st.just("answered"), st.sampled_from(NAMES)),
    st.tuples(st.just("offer"), st.sampled_from(NAMES), st.integers(0, 4)),
    st.tuples(st.just("rank")),
    st.tuples(st.just("choose"), st.sampled_from(sorted(CATALOGUE)), st.sets(st.sampled_from(NAMES), max_size=2),
              st.sampled_from([0.0, 0.5, 0.6]), st.booleans()),
)  # fmt: skip


def apply(table: Table, number: int, move: tuple) -> None:
    match move:
        case "put", name, room, status:
            endpoint = PULL if name in NAMES[:2] else "http://x"
            known = table.entries.get(name)
            table.put(agent(name, room=room, status=status, endpoint=endpoint),
                      known.standing if known else standing(name), NOON)  # fmt: skip
        case "hold", name if name in table.entries and table.entries[name].counted:
            entry = table.entries[name]
            wanted = task(f"task_{number}", inbox=entry.inbox_for(task()) or "")
            table.hold(name, wanted, NOON)
        case "drop", name if name in table.entries and table.entries[name].held:
            list(table.drop(name, next(iter(table.entries[name].held)), NOON))
        case "trust", name, good, bad:
            table.stands(name, standing(name, good=good, bad=bad, completed=1, busy_seconds=good), NOON)
        case "unanswered", name:
            table.unanswered(name, NOON)
        case "answered", name:
            table.answered(name, NOON)
        case "offer", name, credit if name in table.entries and table.entries[name].pulls:
            table.offer(name, f"{name}/1", Offer(credit, SOON), NOON)
        case ("rank",):
            table.rank_anew(NOON)


@settings(max_examples=200)
@given(st.lists(moves, max_size=60))
def test_the_heaps_choose_whom_the_strategy_would_choose_of_all(history):
    table = Table()
    for number, move in enumerate(history):
        apply(table, number, move)
        for entry in table.entries.values():
            assert entry.counted == entry.room >= 0
        assert table.room("sums:v1") == sum(entry.room for entry in table.entries.values())
        if move[0] != "choose":
            continue
        _, strategy, excluded, trust_min, suspect = move
        wanted = task("task_w", routing_strategy=strategy, excluded=tuple(excluded), trust_min=trust_min,
                      suspect=suspect)  # fmt: skip
        able = [
            entry.candidate()
            for entry in table.entries.values()
            if entry.room and entry.inbox_for(wanted) is not None and allowed(wanted, entry.agent, entry.standing, NOON)
        ]
        expected = strategies.named(strategy)(able).agent_id if able else None
        assert chosen(table, wanted) == expected


def looked_at(agents: int, choices: int = 400) -> tuple[int, int]:
    """How many candidates were made, and heap entries compared, by so many assignments and ends."""
    table, made, pushed = Table(), 0, 0
    candidate, push = tables.Entry.candidate, tables.heapq.heappush

    def counting(self):
        nonlocal made
        made += 1
        return candidate(self)

    def pushing(heap, item):
        nonlocal pushed
        pushed += 1
        push(heap, item)

    with pytest.MonkeyPatch.context() as patch:
        for n in range(agents):
            table.put(agent(f"a{n}", room=10), standing(f"a{n}"), NOON)
        for strategy in CATALOGUE:
            table.choose(task(routing_strategy=strategy), NOON)  # makes the heap: once, and paid by all agents
        patch.setattr(tables.Entry, "candidate", counting)
        patch.setattr(tables.heapq, "heappush", pushing)
        for n in range(choices):
            wanted = task(f"task_{n}", routing_strategy=sorted(CATALOGUE)[n % 4])
            entry, _ = table.choose(wanted, NOON) or (None, None)
            assert entry is not None
            table.hold(entry.agent.agent_id, wanted, NOON)
            list(table.drop(entry.agent.agent_id, wanted.attempt_id, NOON))
    return made, pushed


def test_a_choice_costs_the_same_with_ten_agents_and_with_a_thousand():
    costs = [looked_at(agents) for agents in (10, 100, 1000)]
    for made, pushed in costs:
        # An assignment and its end push the agent into four heaps each; heaps that have grown are made anew.
        assert made <= 400 * 8 * 1.3 and pushed == 400 * 8
