"""Which of several agents gets a task. Pure: the same candidates and turn give the same answer.

A candidate is active, has the capability, and has room. A new strategy is one function and one entry in CATALOGUE.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.errors import UnknownStrategy


@dataclass(frozen=True)
class Candidate:
    """An agent as routing sees it."""

    agent_id: str
    trust: float  # 0-1
    load: int  # tasks that it holds
    capacity: int
    mean_seconds: float | None  # of its completed tasks; None for an untried agent
    last_turn: int  # number of the assignment that it got last; 0 for none


@dataclass(frozen=True)
class Choice:
    """The agent that was chosen, and why."""

    agent_id: str
    reason: str


Strategy = Callable[[Sequence[Candidate]], Choice]


def round_robin(candidates: Sequence[Candidate]) -> Choice:
    """Whoever has waited longest for a turn."""
    chosen = min(candidates, key=lambda c: (c.last_turn, c.agent_id))
    return Choice(chosen.agent_id, "Next in turn among available agents")


def trust_weighted(candidates: Sequence[Candidate]) -> Choice:
    """The highest trust; ties to the least loaded, then to whoever has waited longest."""
    chosen = min(candidates, key=lambda c: (-round(c.trust, 6), c.load / c.capacity, c.last_turn, c.agent_id))
    return Choice(chosen.agent_id, "Highest trust score among available agents")


def least_loaded(candidates: Sequence[Candidate]) -> Choice:
    """The smallest share of its capacity in use."""
    chosen = min(candidates, key=lambda c: (c.load / c.capacity, c.last_turn, c.agent_id))
    return Choice(chosen.agent_id, "Fewest active tasks for its capacity among available agents")


def fastest_response(candidates: Sequence[Candidate]) -> Choice:
    """The lowest mean completion time; an untried agent goes first, or it would never be tried."""
    chosen = min(candidates, key=lambda c: (c.mean_seconds or 0.0, c.load / c.capacity, c.last_turn, c.agent_id))
    tried = "Lowest mean completion time among available agents"
    return Choice(chosen.agent_id, tried if chosen.mean_seconds is not None else "Untried agent, measured first")


@dataclass(frozen=True)
class Described:
    """A strategy with its words."""

    choose: Strategy
    description: str
    use_cases: tuple[str, ...]


CATALOGUE: dict[str, Described] = {
    "round_robin": Described(
        round_robin, "Distribute tasks evenly across all capable agents", ("Homogeneous workloads", "Fair distribution")
    ),
    "least_loaded": Described(
        least_loaded, "Route to agent with fewest active tasks", ("Load balancing", "Resource optimization")
    ),
    "trust_weighted": Described(
        trust_weighted, "Prioritize agents with higher trust scores",
        ("Mission-critical tasks", "High reliability requirements"),
    ),
    "fastest_response": Described(
        fastest_response, "Route to agent with lowest average completion time",
        ("Time-sensitive operations", "Low latency requirements"),
    ),
}  # fmt: skip
DEFAULT = "round_robin"


def named(strategy: str) -> Strategy:
    """The strategy of that name. Raises `UnknownStrategy`."""
    if strategy not in CATALOGUE:
        raise UnknownStrategy(
            f"no routing strategy {strategy!r}", field="routing_strategy", allowed_values=list(CATALOGUE)
        )
    return CATALOGUE[strategy].choose
