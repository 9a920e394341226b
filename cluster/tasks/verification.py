"""Replicated verification: several agents do the same task, and their results are compared. Pure.

A task that asks for it is never routed itself. Its replicas are, one after the other is with another agent, until their
agents would be wrong together with a probability of at most `0.5 ** replicas`, each being wrong with `1 - trust`: so
`replicas` agents nobody knows, or fewer that have earned trust (after BOINC's adaptive replication, Anderson 2019).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST = 9
NUMERIC_TOLERANCE = 1e-6


class Verification(BaseModel):
    """What a client asks for."""

    model_config = ConfigDict(frozen=True)

    replicas: int = Field(default=2, ge=1, le=MOST)  # as many agents as nobody knows have to agree
    comparator: Literal["exact", "numeric", "json_subset"] = "exact"
    tolerance: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)  # of numbers, relative beyond one
    fields: tuple[str, ...] = Field(default=(), max_length=50)  # of `json_subset`: the members that count, as in "a.b"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.comparator == "json_subset") != bool(self.fields):
            raise ValueError("`fields` names the members that `json_subset` compares")
        if self.comparator == "exact" and self.tolerance:
            raise ValueError("`exact` has no tolerance")
        return self

    @property
    def margin(self) -> float:
        """The tolerance that counts."""
        if self.tolerance is not None:
            return self.tolerance
        return NUMERIC_TOLERANCE if self.comparator == "numeric" else 0.0

    @property
    def target(self) -> float:
        """The probability of being wrong together that is low enough."""
        return 0.5**self.replicas

    @property
    def most(self) -> int:
        """Replicas at the most."""
        return 2 * self.replicas + 1


class Replication(Verification):
    """What was asked for, and how it stands."""

    asked: int = 0  # replicas that were made: their ids follow
    agreed: tuple[str, ...] = ()  # agents whose results agreed
    disagreed: tuple[str, ...] = ()


def replica_id(task_id: str, number: int) -> str:
    """The id of a task's replica, counted from 1."""
    return f"{task_id}_r{number}"


@dataclass(frozen=True)
class Replica:
    """A replica as the judge sees it."""

    agent_id: str = ""  # who has it, or had it at its end
    ended: bool = False
    completed: bool = False
    result: Any = None


@dataclass(frozen=True)
class Agreed:
    """The result, who gave it, and who gave another."""

    result: Any
    agents: tuple[str, ...]
    against: tuple[str, ...]


@dataclass(frozen=True)
class More:
    """One more replica, for none of these agents."""

    excluded: tuple[str, ...]


@dataclass(frozen=True)
class Open:
    """Nothing to do until something changes."""


@dataclass(frozen=True)
class Hopeless:
    """No agreement among as many as are allowed."""

    reason: str


Verdict = Agreed | More | Open | Hopeless


def judge(ask: Verification, replicas: Sequence[Replica], trust: Mapping[str, float]) -> Verdict:
    """What the replicas so far come to. An agent has one vote, and only a completed replica is one."""
    votes: dict[str, Any] = {}
    for replica in replicas:
        if replica.completed and replica.agent_id not in votes and countable(ask, replica.result):
            votes[replica.agent_id] = replica.result
    doubts = {agent: max(0.0, 1.0 - trust.get(agent, 0.5)) for agent in {*votes, *(r.agent_id for r in replicas)}}
    # Closeness is no equivalence, so a group is all that are close to one of them, whose result it is.
    groups = {
        agent: tuple(other for other, said in votes.items() if other == agent or alike(ask, result, said))
        for agent, result in votes.items()
    }
    centre = min(groups, key=lambda agent: _doubt(groups[agent], doubts), default="")
    best = groups.get(centre, ())
    if best and enough(ask, _doubt(best, doubts)):
        return Agreed(votes[centre], best, tuple(agent for agent in votes if agent not in best))
    live = [replica for replica in replicas if not replica.ended]
    if any(not replica.agent_id for replica in live):
        return Open()  # who gets it is not known yet
    if live and enough(ask, _doubt({*best, *(replica.agent_id for replica in live)}, doubts)):
        return Open()  # if they agree, that is it
    if len(replicas) < ask.most:
        return More(tuple(dict.fromkeys(replica.agent_id for replica in replicas if replica.agent_id)))
    if live:
        return Open()
    completed = sum(replica.completed for replica in replicas)
    return Hopeless(f"no agreement: {completed} of {len(replicas)} replicas completed, {_groups(ask, votes)}")


def enough(ask: Verification, doubt: float) -> bool:
    """Whether that is a probability to accept."""
    return doubt <= ask.target * (1 + 1e-9)


def _doubt(agents: Collection[str], doubts: Mapping[str, float]) -> float:
    return math.prod(doubts[agent] for agent in agents)


def _groups(ask: Verification, votes: Mapping[str, Any]) -> str:
    heads: list[Any] = []
    for result in votes.values():
        if not any(alike(ask, head, result) for head in heads):
            heads.append(result)
    return f"with {len(heads)} different result{'' if len(heads) == 1 else 's'}"


def countable(ask: Verification, result: Any) -> bool:
    """Whether a result can agree with another: for `json_subset` it has every member that counts."""
    return all(picked(result, name) is not MISSING for name in ask.fields)


def alike(ask: Verification, a: Any, b: Any) -> bool:
    """Whether two results agree."""
    if ask.comparator == "json_subset":
        return all(same(picked(a, name), picked(b, name), ask.margin) for name in ask.fields)
    return same(a, b, ask.margin)


MISSING = object()


def picked(result: Any, name: str) -> Any:
    """The member that `name` leads to, as in "totals.sum"; `MISSING` where there is none."""
    for part in name.split("."):
        if not isinstance(result, dict) or part not in result:
            return MISSING
        result = result[part]
    return result


def same(a: Any, b: Any, margin: float) -> bool:
    """Whether two JSON values are equal; numbers within `margin`, relative to those beyond one."""
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b or _close(a, b, margin)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[name], margin) for name, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, margin) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _close(a: float, b: float, margin: float) -> bool:
    try:
        return abs(a - b) <= margin * max(1.0, abs(a), abs(b))
    except OverflowError:  # an integer beyond all floats
        return False
