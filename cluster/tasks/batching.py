"""References inside a batch: which of its items can be taken, and which fail with what they depend on. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import CircularDependency, DependencyNotFound, Invalid, VillageError

REF = "ref:"


@dataclass(frozen=True)
class Named:
    """What an item of a batch is called there, and what it waits for: ids of tasks, and `ref:NAME` of other items."""

    ref: str = ""
    depends_on: tuple[str, ...] = ()

    @property
    def refs(self) -> list[str]:
        """The items of the batch that it names."""
        return [name.removeprefix(REF) for name in self.depends_on if name.startswith(REF)]

    @property
    def ids(self) -> list[str]:
        """The tasks that it names."""
        return [name for name in self.depends_on if not name.startswith(REF)]


def settle(items: Sequence[Named], failed: Mapping[int, VillageError], known: set[str]) -> dict[int, VillageError]:
    """Every item that cannot be taken, with its error: those in `failed`, and what follows from them.

    `known`: the ids of tasks that exist for the caller. What is left depends on known tasks and on what is left only,
    and not on itself.
    """
    errors, place = dict(failed), _places(items)
    for index, item in enumerate(items):
        if item.ref and place[item.ref] != index:
            errors.setdefault(index, Invalid(f"item {place[item.ref]} has this ref", field="ref", ref=item.ref))
        missing = [name for name in item.ids if name not in known]
        missing += [REF + name for name in item.refs if name not in place]
        if missing:
            errors.setdefault(index, _missing("no such task", missing))
    edges = {index: [place[name] for name in item.refs if name in place] for index, item in enumerate(items)}
    for index in edges:
        if index not in errors and (cycle := _cycle(edges, index)):
            names = [items[other].ref for other in cycle]
            told = " -> ".join([*names, names[0]])
            errors[index] = CircularDependency(f"the items wait for each other: {told}", field="depends_on", refs=names)
    moved = True
    while moved:  # at most as often as the batch has items
        moved = False
        for index, others in edges.items():
            if index not in errors and (lost := [other for other in others if other in errors]):
                errors[index] = _missing("not taken", [REF + items[other].ref for other in lost])
                moved = True
    return errors


def _places(items: Sequence[Named]) -> dict[str, int]:
    place: dict[str, int] = {}
    for index, item in enumerate(items):
        if item.ref:
            place.setdefault(item.ref, index)
    return place


def _missing(why: str, names: Sequence[str]) -> DependencyNotFound:
    names = sorted(set(names))
    return DependencyNotFound(f"{why}: {', '.join(names)}", field="depends_on", missing=names)


def _cycle(edges: Mapping[int, Sequence[int]], start: int) -> list[int]:
    """The shortest way from an item back to itself, which is left out at its end; [] where there is none."""
    came: dict[int, int] = {}
    front = [start]
    while front:
        following: list[int] = []
        for index in front:
            for other in edges[index]:
                if other == start:
                    way = [index]
                    while way[-1] != start:
                        way.append(came[way[-1]])
                    return way[::-1]
                if other not in came:
                    came[other] = index
                    following.append(other)
        front = following
    return []


def renamed(item: Named, ids: Mapping[str, str]) -> tuple[str, ...]:
    """What it waits for, with the ids that the items of the batch were given."""
    return tuple(ids[name.removeprefix(REF)] if name.startswith(REF) else name for name in item.depends_on)
