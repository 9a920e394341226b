from datetime import timedelta

import pytest

from cluster.clock import utc_now
from cluster.routing.table import MAX_REST_SECONDS, Table
from cluster.trust.ledger import Standing
from cluster.workers.model import Agent

NOON = utc_now()


def agent(name: str, *tags: str, room: int = 2, status="active") -> Agent:
    return Agent(
        agent_id=name, owner="user_1", display_name=name, public_key="", endpoint="http://x", tags=tags or ("sums:v1",),
        max_concurrent_tasks=room, status=status, created_at=NOON, last_seen_at=NOON,
    )  # fmt: skip


def standing(name: str) -> Standing:
    return Standing(standing_id=name, as_of=NOON)


def names(table: Table, at=NOON, capability: str = "sums:v1") -> list[str]:
    return sorted(entry.agent.agent_id for entry in table.free(capability, at))


@pytest.fixture
def table() -> Table:
    made = Table()
    for name in ("ada", "bob"):
        made.put(agent(name), standing(name))
    return made


def test_free_means_active_capable_and_with_room(table: Table):
    table.put(agent("off", status="inactive"), standing("off"))
    table.put(agent("other", "texts:v1"), standing("other"))
    assert names(table) == ["ada", "bob"] and names(table, capability="texts:v1") == ["other"]
    assert names(table, capability="none:v1") == []
    table.hold("ada", "task_1.1")
    assert names(table) == ["ada", "bob"]
    table.hold("ada", "task_2.1")
    assert names(table) == ["bob"]
    assert list(table.drop("ada", "task_1.1")) == ["sums:v1"] and names(table) == ["ada", "bob"]


def test_dropping_twice_frees_once(table: Table):
    table.hold("ada", "task_1.1")
    table.hold("ada", "task_1.2")  # the same task came back to the same agent: another attempt
    assert list(table.drop("ada", "task_1.1")) == ["sums:v1"]
    assert list(table.drop("ada", "task_1.1")) == [] and list(table.drop("nobody", "task_1.1")) == []
    assert table.entries["ada"].held == {"task_1.2"}


def test_a_changed_agent_keeps_what_it_holds_and_loses_its_old_tags(table: Table):
    table.hold("ada", "task_1.1")
    table.put(agent("ada", "texts:v1", room=1), standing("ada"))
    assert table.entries["ada"].held == {"task_1.1"}
    assert names(table) == ["bob"] and names(table, capability="texts:v1") == []


def test_turns_are_counted(table: Table):
    table.hold("bob", "task_1.1")
    table.hold("ada", "task_2.1")
    assert table.entries["bob"].last_turn < table.entries["ada"].last_turn
    assert table.entries["ada"].candidate(NOON).load == 1 and table.entries["ada"].candidate(NOON).trust == 0.5


def test_an_agent_without_an_answer_rests_each_time_twice_as_long(table: Table):
    rests = [(table.unanswered("ada", NOON) - NOON).total_seconds() for _ in range(8)]
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]
    assert names(table) == ["bob"] and names(table, NOON + timedelta(seconds=60)) == ["ada", "bob"]
    assert list(table.rested(NOON + timedelta(seconds=59))) == []
    assert list(table.rested(NOON + timedelta(seconds=60))) == ["sums:v1"]
    assert list(table.rested(NOON + timedelta(seconds=61))) == []
    table.answered("ada")
    assert (table.unanswered("ada", NOON) - NOON).total_seconds() == 1
    assert table.unanswered("nobody", NOON) is None


def test_an_agent_that_was_away_for_days_only_rests(table: Table):
    # The bug: after 1024 deliveries without an answer the doubling left the range of a float, and no task came back.
    table.entries["ada"].silent = 5000
    assert table.unanswered("ada", NOON) == NOON + timedelta(seconds=MAX_REST_SECONDS)
