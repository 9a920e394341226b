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


Key = tuple[float | str, ...]


def round_robin(c: Candidate) -> Key:
    """Whoever has waited longest for a turn."""
    return (c.last_turn, c.agent_id)


def trust_weighted(c: Candidate) -> Key:
    """The highest trust; ties to the least loaded, then to whoever has waited longest."""
    return (-round(c.trust, 6), c.load / c.capacity, c.last_turn, c.agent_id)


def least_loaded(c: Candidate) -> Key:
    """The smallest share of its capacity in use."""
    return (c.load / c.capacity, c.last_turn, c.agent_id)


def fastest_response(c: Candidate) -> Key:
    """The lowest mean completion time; an untried agent goes first, or it would never be tried."""
    return (c.mean_seconds or 0.0, c.load / c.capacity, c.last_turn, c.agent_id)


@dataclass(frozen=True)
class Described:
    """A strategy, which is an order of the candidates, lowest first; with its words."""

    key: Callable[[Candidate], Key]
    reason: str
    description: str
    use_cases: tuple[str, ...]
    untried: str = ""  # the reason where the agent has no completed task and that is why

    def __call__(self, candidates: Sequence[Candidate]) -> Choice:
        """The first of them. One is needed."""
        chosen = min(candidates, key=self.key)
        return Choice(chosen.agent_id, self.untried if self.untried and chosen.mean_seconds is None else self.reason)


CATALOGUE: dict[str, Described] = {
    "round_robin": Described(
        round_robin, "Next in turn among available agents", "Distribute tasks evenly across all capable agents",
        ("Homogeneous workloads", "Fair distribution"),
    ),
    "least_loaded": Described(
        least_loaded, "Fewest active tasks for its capacity among available agents",
        "Route to agent with fewest active tasks", ("Load balancing", "Resource optimization"),
    ),
    "trust_weighted": Described(
        trust_weighted, "Highest trust score among available agents", "Prioritize agents with higher trust scores",
        ("Mission-critical tasks", "High reliability requirements"),
    ),
    "fastest_response": Described(
        fastest_response, "Lowest mean completion time among available agents",
        "Route to agent with lowest average completion time",
        ("Time-sensitive operations", "Low latency requirements"), untried="Untried agent, measured first",
    ),
}  # fmt: skip
DEFAULT = "round_robin"


def named(strategy: str) -> Described:
    """The strategy of that name. Raises `UnknownStrategy`."""
    if strategy not in CATALOGUE:
        raise UnknownStrategy(
            f"no routing strategy {strategy!r}", field="routing_strategy", allowed_values=list(CATALOGUE)
        )
    return CATALOGUE[strategy]
