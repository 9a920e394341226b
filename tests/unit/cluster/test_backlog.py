from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.routing import backlog as backlogs
from cluster.routing.backlog import Backlog, Waiting
from cluster.tasks.model import AGEING_SECONDS, MOST_PRIORITY, level

NOW = 1_000_000.0
CAP = "sums:v1"


def waiting(name: object, priority: int = 5, share: str = "a", born: float = NOW, capability: str = CAP) -> Waiting:
    return Waiting(born - priority * AGEING_SECONDS, f"task_{name}", capability, share)


def backlog(*tasks: Waiting) -> Backlog:
    made = Backlog()
    for task in tasks:
        made.add(task)
    return made


def taken(of: Backlog, most: int = 1000, now: float = NOW) -> list[str]:
    return [task.task_id.removeprefix("task_") for task in of.take(CAP, now, most)]


# ---- order


def test_the_urgent_goes_first_then_the_older():
    tasks = [waiting(n, priority, born=NOW - age) for n, (priority, age) in enumerate([(5, 1), (9, 0), (5, 2), (1, 9)])]
    assert taken(backlog(*tasks)) == ["1", "2", "0", "3"]


def test_only_what_was_asked_for_is_taken_and_once():
    of = backlog(*(waiting(n, born=NOW - 9 + n) for n in range(5)))
    assert taken(of, 2) == ["0", "1"] and taken(of, 2) == ["2", "3"] and taken(of, 0) == [] and taken(of) == ["4"]
    assert taken(of) == [] and of.take("none:v1", NOW, 5) == []


def test_a_task_that_is_told_twice_stands_there_once():
    of = backlog(waiting(1), waiting(1), waiting(1))
    assert taken(of) == ["1"]
    of.add(waiting(1))  # it came back
    assert taken(of) == ["1"]


def test_a_task_that_is_given_another_priority_moves():
    # The bug: a known task kept its old place, which the router then took for a change it had not heard of, and the
    # task was forgotten.
    of = backlog(waiting(1, 2), waiting(2, 5), waiting(1, 9))
    assert of.take(CAP, NOW, 1) == [waiting(1, 9)] and taken(of) == ["2"]


@given(st.lists(st.tuples(st.integers(1, 10), st.sampled_from("abc"), st.floats(0, 5000)), max_size=40))
def test_a_higher_level_always_goes_before_a_lower_one(tasks):
    of = backlog(*(waiting(n, p, share, NOW - age) for n, (p, share, age) in enumerate(tasks)))
    levels = [level(task.place, NOW) for task in of.take(CAP, NOW, 100)]
    assert levels == sorted(levels, reverse=True) and len(levels) == len(tasks)


# ---- shares


@given(st.lists(st.sampled_from("aaaaab"), max_size=60), st.integers(0, 40))
def test_within_a_priority_every_share_that_has_tasks_gets_the_same_number(shares, most):
    of = backlog(*(waiting(n, 5, share, NOW - n % 100) for n, share in enumerate(shares)))
    left = Counter(shares)
    got: Counter[str] = Counter()
    for task in of.take(CAP, NOW, most):
        behind = [share for share in left if left[share] - got[share] > 0 and got[share] < got[task.share]]
        assert not behind, f"{behind} had less and waits"
        got[task.share] += 1
    assert got.total() == min(most, len(shares))


def test_a_share_that_was_idle_has_not_saved_up():
    # The bug: a share whose line had run empty came back with all the turns that the others had had meanwhile.
    of = backlog(waiting("b", share="b"), *(waiting(n, share="a") for n in range(20)))
    taken(of)
    for n in range(20):
        of.add(waiting(f"a{n}", share="a", born=NOW + n))
        of.add(waiting(f"b{n}", share="b", born=NOW + n))
    got = Counter(task.share for task in of.take(CAP, NOW + 60, 10))
    assert abs(got["a"] - got["b"]) <= 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=40))
def test_shares_that_always_have_tasks_are_never_more_than_one_turn_apart(turns):
    of, number, got = Backlog(), 0, Counter({share: 0 for share in "abc"})
    for share in "abc" * 200:
        of.add(waiting(number := number + 1, share=share, born=NOW + number))
    for share, most in turns:  # newcomers of one share change nothing for the others
        of.add(waiting(number := number + 1, share=share, born=NOW + number))
        got.update(task.share for task in of.take(CAP, NOW + number, most))
        assert max(got.values()) - min(got.values()) <= 1


def test_idle_shares_are_forgotten():
    of = Backlog()
    for n in range(500):
        of.add(waiting(n, share=f"s{n}", born=NOW + n))
        of.take(CAP, NOW + n, 1)
    assert len(of.lines[CAP]) < 100


# ---- ageing


@settings(max_examples=40)
@given(st.integers(1, 10), st.integers(5, 600), st.sampled_from(["a", "b"]))
def test_nothing_starves_under_a_stream_of_urgent_tasks(priority, every_seconds, share):
    # One task is served every so often, and a new one of the highest priority comes each time.
    of = backlog(waiting("old", priority, share="a"))
    longest = (MOST_PRIORITY - priority) * AGEING_SECONDS + 3 * every_seconds + AGEING_SECONDS
    now, number = NOW, 0
    while now <= NOW + longest:
        of.add(waiting(number := number + 1, 10, share=share, born=now))
        if "old" in taken(of, 1, now):
            return
        now += every_seconds
    raise AssertionError(f"not served within {longest} s")


# ---- giving back, and parking


@given(st.lists(st.tuples(st.integers(4, 5), st.sampled_from("ab")), min_size=1, max_size=30), st.integers(1, 10))
def test_what_is_given_back_is_taken_again_in_the_same_order(tasks, most):
    made = [waiting(n, p, share, NOW - n) for n, (p, share) in enumerate(tasks)]
    of, untouched = backlog(*made), backlog(*made)
    for _ in range(3):
        of.give_back(of.take(CAP, NOW, most))
    assert Counter(taken(of, most)) == Counter(taken(untouched, most))
    assert sorted(taken(of)) == sorted(taken(untouched))


def test_giving_back_does_not_cost_a_share_its_turn():
    of = backlog(*(waiting(f"{share}{n}", share=share, born=NOW + n) for n in range(20) for share in "ab"))
    got: Counter[str] = Counter()
    for _ in range(5):
        batch = of.take(CAP, NOW, 4)
        of.give_back([task for task in batch if task.share == "a"])
        got.update(task.share for task in batch if task.share == "b")
    got.update(task.share for task in of.take(CAP, NOW, 12))
    assert got["b"] < 12 and abs(got["a"] - got["b"]) <= 1


def test_parked_tasks_stand_aside_until_they_are_tried_again():
    of = backlog(waiting(1, 9), waiting(2), waiting(3))
    [first] = of.take(CAP, NOW, 1)
    of.park(first)
    of.add(waiting(1, 9))  # told again
    assert taken(of, 1) == ["2"]
    assert of.unpark() == {CAP} and of.unpark() == set()
    assert taken(of) == ["1", "3"]


def test_a_parked_task_that_moves_stands_in_its_new_place():
    of = backlog(waiting(1, 9), waiting(2))
    [first] = of.take(CAP, NOW, 1)
    of.park(first)
    of.add(waiting(1, 1))
    of.unpark()
    assert of.take(CAP, NOW, 2) == [waiting(2), waiting(1, 1)]


# ---- heads only


class Queues:
    """The store's part: every ready task, by line."""

    def __init__(self) -> None:
        self.tasks: dict[str, Waiting] = {}

    def head(self, capability: str, share: str, limit: int) -> list[tuple[str, float]]:
        line = sorted(task for task in self.tasks.values() if (task.capability, task.share) == (capability, share))
        return [(task.task_id, task.place) for task in line[:limit]]

    def fill(self, of: Backlog) -> None:
        for _ in range(3):
            hungry = of.hungry([CAP])
            asked = of.ask(hungry)
            for capability, share in hungry:
                of.fill(capability, share, self.head(capability, share, asked), asked)

    def serve(self, of: Backlog, now: float, most: int) -> list[Waiting]:
        """Like the router: fill what is hungry, take a batch, and so on until there are enough."""
        served: list[Waiting] = []
        while len(served) < most:
            self.fill(of)
            batch = of.take(CAP, now, most - len(served))
            if not batch:
                break
            for task in batch:
                assert self.tasks.pop(task.task_id) == task
            served += batch
        return served


steps = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.integers(1, 10), st.sampled_from("abc"), st.floats(0, 3000)),
        st.tuples(st.just("move"), st.integers(0, 60), st.integers(1, 10)),
        st.tuples(st.just("serve"), st.integers(1, 12)),
    ),
    max_size=120,
)


@settings(max_examples=150)
@given(steps)
def test_heads_that_are_filled_from_the_store_serve_like_the_whole_queue(history):
    queues, whole, number = Queues(), Backlog(), 0
    with pytest.MonkeyPatch.context() as patch:
        heads = Backlog()

        def tell(task: Waiting) -> None:
            queues.tasks[task.task_id] = task
            patch.setattr(backlogs, "KEEP", 8)
            heads.add(task)
            patch.setattr(backlogs, "KEEP", 10_000)
            whole.add(task)

        for step in history:
            match step:
                case "new", priority, share, age:
                    tell(waiting(number := number + 1, priority, share, NOW - age))
                case "move", which, priority if f"task_{which}" in queues.tasks:
                    known = queues.tasks[f"task_{which}"]
                    tell(waiting(which, priority, known.share))
                case "serve", most:
                    patch.setattr(backlogs, "KEEP", 8)
                    served = queues.serve(heads, NOW, most)
                    patch.setattr(backlogs, "KEEP", 10_000)
                    assert served == whole.take(CAP, NOW, most)
        assert all(len(line.waiting) <= 8 for line in heads.lines.get(CAP, {}).values())


def test_a_task_that_comes_while_the_store_is_asked_is_not_forgotten():
    # The bug: the store's answer was older than the event, and the line then took itself for complete.
    of = Backlog()
    of.expect(CAP, "a")
    asked = of.ask(hungry := of.hungry([CAP]))
    of.add(waiting(2))  # told while the answer, which does not have it, is on its way
    for capability, share in hungry:
        of.fill(capability, share, [("task_1", waiting(1).place)], asked)
    assert taken(of) == ["1"] and of.hungry([CAP]) == [(CAP, "a")]
    of.fill(CAP, "a", [("task_2", waiting(2).place)], asked)
    assert taken(of) == ["2"] and of.hungry([CAP]) == []


def test_what_is_expected_is_asked_for_before_it_is_served():
    of = Backlog()
    of.expect(CAP, "a")
    assert taken(of) == [] and of.hungry([CAP, "none:v1"]) == [(CAP, "a")]
    of.fill(CAP, "a", [], 10)
    assert of.hungry([CAP]) == [] and taken(of) == []


def test_tasks_behind_many_that_nobody_may_have_are_found():
    # The bug: the store was asked for the same head again and again, in a loop without a pause.
    queues, of = Queues(), Backlog()
    for n in range(700):
        task = waiting(n, 9 if n < 690 else 5, born=NOW + n)
        queues.tasks[task.task_id] = task
    of.expect(CAP, "a")
    found: list[str] = []
    for _ in range(20):
        queues.fill(of)
        for task in of.take(CAP, NOW + 700, 128):
            if task.place < waiting(0, 6).place:
                of.park(task)
            else:
                found.append(task.task_id)
                del queues.tasks[task.task_id]
    assert len(found) == 10 and of.hungry([CAP]) == [] and len(of.lines[CAP]["a"].parked) == 690


def test_a_line_with_too_many_parked_tasks_is_left_alone_until_they_are_tried_again(monkeypatch):
    monkeypatch.setattr(backlogs, "MOST_PARKED", 4)
    monkeypatch.setattr(backlogs, "KEEP", 8)
    queues, of = Queues(), Backlog()
    for n in range(20):
        queues.tasks[f"task_{n}"] = waiting(n, born=NOW + n)
    of.expect(CAP, "a")
    queues.fill(of)
    for task in of.take(CAP, NOW + 20, 4):
        of.park(task)
    assert of.hungry([CAP]) == [] and of.take(CAP, NOW + 20, 1) == []
    of.unpark()
    queues.fill(of)
    assert len(of.take(CAP, NOW + 20, 4)) == 4
