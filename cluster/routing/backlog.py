"""The ready tasks that the router knows of, in the order in which they are served. Plain state; no store, no clock.

Priority first, with the priority that waiting has earned (`tasks.model.level`); within a priority each share (client)
gets the same number of tasks, by start-time fair queueing (Goyal, Vin and Cheng, 1996) with tasks of equal length;
within a share the oldest. Only the heads are kept: a line that is longer says so, and is filled again from the store.
"""

import bisect
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cluster.tasks.model import level

KEEP = 512  # ids of a line at the most; half of them when it is cut or filled
MOST_PARKED = 2048  # of a line: a share with more that nobody may have waits for them


@dataclass(frozen=True, order=True)
class Waiting:
    """A ready task, as its line knows it: `place` is the score of the store's index."""

    place: float
    task_id: str
    capability: str = field(compare=False)
    share: str = field(compare=False)


@dataclass
class Line:
    """The head of one share's queue for one capability; `more`: the store has others behind it."""

    waiting: list[Waiting] = field(default_factory=list)
    known: dict[str, Waiting] = field(default_factory=dict)
    parked: dict[str, Waiting] = field(default_factory=dict)  # nobody who has room may have them
    more: bool = False
    missed: bool = False  # a task came while the store was asked for the head
    served: float = 0.0  # virtual time: tasks that it was served

    def add(self, task: Waiting) -> None:
        """In its place, the last one that was told; not at all if that is behind what is kept here."""
        if task.task_id in self.parked:
            self.parked[task.task_id] = task
            return
        if known := self.known.pop(task.task_id, None):
            del self.waiting[bisect.bisect_left(self.waiting, known)]
        if self.more and not self.waiting:
            self.missed = True  # the store is asked for the head before anything of this line is served
            return
        if self.more and task > self.waiting[-1]:
            return
        bisect.insort(self.waiting, task)
        self.known[task.task_id] = task
        if len(self.waiting) > KEEP:
            for cut in self.waiting[KEEP // 2 :]:
                del self.known[cut.task_id]
            del self.waiting[KEEP // 2 :]
            self.more = True

    def drop(self, task_id: str) -> None:
        """It is not ready any more."""
        self.parked.pop(task_id, None)
        if known := self.known.pop(task_id, None):
            del self.waiting[bisect.bisect_left(self.waiting, known)]

    def pop(self) -> Waiting:
        """The first."""
        first = self.waiting.pop(0)
        del self.known[first.task_id]
        return first


class Backlog:
    """Lines by capability and share."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[str, Line]] = {}
        self.reached: dict[str, float] = {}  # virtual time of each capability: what the last one served had
        self.parked: set[tuple[str, str]] = set()  # lines with some

    def add(self, task: Waiting) -> None:
        """A task has become ready."""
        lines = self.lines.setdefault(task.capability, {})
        line = lines.setdefault(task.share, Line())
        if not line.waiting and not line.more:
            # Who was idle has not saved up: a share begins where the others are.
            line.served = max(line.served, self.reached.get(task.capability, 0.0))
        line.add(task)

    def drop(self, capability: str, share: str, task_id: str) -> None:
        """A task that waited has ended."""
        if line := self.lines.get(capability, {}).get(share):
            line.drop(task_id)

    def expect(self, capability: str, share: str) -> None:
        """The store has tasks of this line; none is known here."""
        line = self.lines.setdefault(capability, {}).setdefault(share, Line())
        line.more = True

    def hungry(self, capabilities: Iterable[str]) -> list[tuple[str, str]]:
        """The lines that have to be filled before anything of these capabilities is served."""
        found = [
            (capability, share, line)
            for capability in capabilities
            for share, line in self.lines.get(capability, {}).items()
            if line.more and not line.waiting and len(line.parked) < MOST_PARKED
        ]
        for _, _, line in found:
            line.missed = False
        return [(capability, share) for capability, share, _ in found]

    def ask(self, hungry: Iterable[tuple[str, str]]) -> int:
        """How many ids to ask for, so that there are enough beyond those that are parked."""
        return KEEP // 2 + max((len(self.lines[capability][share].parked) for capability, share in hungry), default=0)

    def fill(self, capability: str, share: str, rows: Sequence[tuple[str, float]], asked: int) -> None:
        """What the store has at the head of a line: ids and places, of `asked` that were asked for."""
        line = self.lines[capability][share]
        line.more = False
        for task_id, place in rows:
            line.add(Waiting(place, task_id, capability, share))
        line.more = line.more or line.missed or len(rows) >= asked

    def take(self, capability: str, now: float, most: int) -> list[Waiting]:
        """Up to `most` tasks, in fair order; they are no longer in their lines."""
        lines = self.lines.get(capability, {})
        heads = [
            (-level(line.waiting[0].place, now), line.served, share) for share, line in lines.items() if line.waiting
        ]
        heapq.heapify(heads)
        taken: list[Waiting] = []
        while heads and len(taken) < most:
            _, served, share = heapq.heappop(heads)
            line = lines[share]
            taken.append(line.pop())
            self.reached[capability] = max(served, self.reached.get(capability, 0.0))
            line.served = served + 1
            if line.waiting:
                heapq.heappush(heads, (-level(line.waiting[0].place, now), line.served, share))
            elif line.more:
                break  # its head is not known, so neither is what comes next
        if len(lines) > 2 * len(heads) + 64:
            self._forget(capability)
        return taken

    def _forget(self, capability: str) -> None:
        """Drop idle shares: who comes back begins where the others are. One turn that it was ahead is forgotten too."""
        reached = self.reached.get(capability, 0.0)
        lines = self.lines[capability]
        for share in [name for name, line in lines.items() if not (line.waiting or line.more or line.parked)]:
            if lines[share].served <= reached + 1:
                del lines[share]

    def give_back(self, tasks: Iterable[Waiting]) -> None:
        """Tasks that nobody could take now; their shares were not served."""
        for task in tasks:
            line = self.lines[task.capability].setdefault(task.share, Line(served=self.reached[task.capability]))
            line.served -= 1
            line.add(task)

    def park(self, task: Waiting) -> None:
        """A task that was taken, but nobody who has room may have it: others go first, and its share was not served."""
        line = self.lines[task.capability].setdefault(task.share, Line(served=self.reached[task.capability]))
        line.served -= 1
        line.parked[task.task_id] = task
        self.parked.add((task.capability, task.share))

    def unpark(self) -> set[str]:
        """All parked tasks stand in their lines again. Returns their capabilities."""
        lines, self.parked = self.parked, set()
        for capability, share in lines:
            line = self.lines[capability][share]
            tasks, line.parked = line.parked, {}
            for task in tasks.values():
                line.add(task)
        return {capability for capability, _ in lines}

    def sizes(self) -> dict[str, int]:
        """How many tasks of each capability are known to wait: at least so many do."""
        sizes = {name: sum(len(line.waiting) for line in lines.values()) for name, lines in self.lines.items()}
        return {name: size for name, size in sizes.items() if size}
