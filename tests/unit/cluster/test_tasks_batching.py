"""References inside a batch: what is taken stands on what is taken, and nothing waits for itself."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import CircularDependency, DependencyNotFound, Invalid
from cluster.tasks.batching import Named, renamed, settle


def named(*items: tuple[str, list[str]]) -> list[Named]:
    return [Named(ref, tuple(depends_on)) for ref, depends_on in items]


def test_an_order_is_not_needed():
    items = named(("c", ["ref:b", "task_1"]), ("b", ["ref:a"]), ("a", []))
    assert settle(items, {}, {"task_1"}) == {}
    assert renamed(items[0], {"a": "task_a", "b": "task_b"}) == ("task_b", "task_1")


def test_a_failure_takes_along_what_depends_on_it_and_nothing_else():
    items = named(("a", []), ("b", ["ref:a"]), ("c", ["ref:b"]), ("d", []), ("", ["ref:c", "ref:d"]))
    errors = settle(items, {0: Invalid("priority")}, set())
    assert set(errors) == {0, 1, 2, 4} and errors[0].message == "priority"
    assert all(isinstance(errors[index], DependencyNotFound) for index in (1, 2, 4))
    assert errors[4].details["missing"] == ["ref:c"]


def test_a_circle_is_named_and_who_stands_outside_it_only_fails_with_it():
    items = named(("a", ["ref:b"]), ("b", ["ref:a"]), ("c", ["ref:a"]), ("d", ["ref:d"]), ("e", []))
    errors = settle(items, {}, set())
    assert isinstance(errors[0], CircularDependency) and errors[0].details["refs"] == ["a", "b"]
    assert isinstance(errors[1], CircularDependency) and errors[3].details["refs"] == ["d"]
    assert isinstance(errors[2], DependencyNotFound) and set(errors) == {0, 1, 2, 3}


def test_unknown_names_and_repeated_refs():
    errors = settle(named(("a", ["task_none", "ref:none"]), ("b", []), ("b", []), ("", ["ref:b"])), {}, set())
    assert errors[0].details["missing"] == ["ref:none", "task_none"]
    assert errors[2].details == {"field": "ref", "ref": "b"} and set(errors) == {0, 2}


@given(st.data())
def test_what_is_taken_stands_on_what_is_taken(data: st.DataObject):
    size = data.draw(st.integers(1, 12))
    some = st.lists(st.integers(0, size - 1), max_size=3)
    edges = [data.draw(some) for _ in range(size)]
    bad = data.draw(st.sets(st.integers(0, size - 1)))
    items = [Named(f"r{n}", tuple(f"ref:r{m}" for m in edges[n])) for n in range(size)]
    errors = settle(items, dict.fromkeys(bad, Invalid("bad")), set())
    taken = set(range(size)) - errors.keys()
    assert all(set(edges[n]) <= taken for n in taken) and not bad & taken
    done: set[int] = set()
    while ready := {n for n in taken - done if set(edges[n]) <= done}:  # so there is an order to run them in
        done |= ready
    assert done == taken

    def reaches(n: int) -> set[int]:
        seen: set[int] = set()
        front = {n}
        while front:
            seen |= front
            front = {m for k in front for m in edges[k]} - seen
        return seen

    def circular(n: int) -> bool:
        return any(n in reaches(m) for m in edges[n])

    for n in errors:  # and nothing is refused without a cause
        assert any(m in bad or circular(m) for m in reaches(n))
        assert not isinstance(errors[n], CircularDependency) or circular(n)
