"""Searching by asking and telling: what a phase's search is, so that shells may run it side by side. Pure."""

from collections.abc import Callable
from typing import Any, Protocol

Candidate = dict[str, Any]  # JSON values only
Measured = dict[str, float]
Evaluate = Callable[[Candidate], Measured]  # a plain function that pickles; runs in processes of its own


class Search(Protocol):
    """A search that proposes candidates and learns from what they measured."""

    @property
    def budget(self) -> int:
        """How many candidates it will propose at most."""
        ...

    @property
    def told(self) -> int:
        """How many candidates it has been told about, failed ones too."""
        ...

    def ask(self) -> Candidate | None:
        """The next candidate; None while it waits to be told about earlier ones, and for ever once it is done.

        After a crash candidates that were asked for and not told about are asked for again.
        """
        ...

    def tell(self, candidate: Candidate, measured: Measured | None) -> None:
        """What the candidate measured; None for one that failed."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the search depends on, as JSON. Its class has `restore(state)`."""
        ...


# evolve(search, evaluate, told): asks, evaluates side by side, tells; calls `told()` after each candidate, where a
# checkpoint belongs. Returns when the search is done.
Evolve = Callable[[Search, Evaluate, Callable[[], None]], None]


def in_turn(search: Search, evaluate: Evaluate, told: Callable[[], None]) -> None:
    """An `Evolve` in this very process, one candidate after the other."""
    while (candidate := search.ask()) is not None:
        try:
            measured = evaluate(candidate)
        except ArithmeticError:
            measured = None
        search.tell(candidate, measured)
        told()
