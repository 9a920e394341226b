"""DukeNet AINS, routing routes: parse, call the core, render."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cluster.clock import iso, utc_now
from cluster.routing.replaying import AS_SUBMITTED, MOST_TASKS, Window
from cluster.routing.strategies import CATALOGUE, DEFAULT
from serve_apps.core import FromCore
from serve_apps.dialects.ains.routes_agents import counted
from serve_apps.dialects.ains.routes_trust import aware
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/ains/routing")


class Trial(BaseModel):
    """A task that is not submitted."""

    capability_required: str = Field(min_length=1, max_length=200)
    routing_strategy: str = DEFAULT
    priority: int = Field(5, ge=1, le=10)


class Span(BaseModel):
    """When the tasks were submitted: two times, or the last so many seconds. A time without a zone means UTC."""

    start: Annotated[datetime | None, AfterValidator(aware)] = None
    end: Annotated[datetime | None, AfterValidator(aware)] = None
    last_seconds: float | None = Field(None, gt=0, le=31 * 86_400, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.last_seconds is None) == (self.start is None):
            raise ValueError("either `start`, or `last_seconds`, is wanted")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise ValueError("`end` is before `start`")
        return self


class Different(BaseModel):
    """What is to be different about an agent."""

    model_config = ConfigDict(extra="forbid")

    max_concurrent_tasks: int | None = Field(None, ge=1, le=10_000)
    status: Literal["active", "inactive"] | None = None


class Counterfactual(BaseModel):
    """A window of recorded tasks, and what is to be different."""

    window: Span
    capability: str = Field("", max_length=200)
    routing_strategy: str = Field("", max_length=50)
    strategies: tuple[str, ...] = Field((), max_length=10)
    agents: dict[str, Different] = Field({}, max_length=1000)
    seed: int = Field(0, ge=0, lt=2**53)
    limit: int = Field(MOST_TASKS, ge=1, le=MOST_TASKS)

    def wanted(self) -> Window:
        """In the core's words."""
        now, span = utc_now(), self.window
        end = span.end or now
        names = self.strategies or ((self.routing_strategy,) if self.routing_strategy else (AS_SUBMITTED, *CATALOGUE))
        return Window(
            start=span.start or end - timedelta(seconds=span.last_seconds or 0.0), end=end,
            capability=self.capability, strategies=tuple(dict.fromkeys(names)), seed=self.seed, limit=self.limit,
            agents={name: change.model_dump(exclude_none=True) for name, change in self.agents.items()},
        )  # fmt: skip


@router.post("/simulate")
async def simulate(body: Counterfactual, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Replay the tasks of a window under other strategies, or with other agents; nothing changes."""
    window = body.wanted()
    found = await core.routing.simulate(who, window)
    return {
        "window": {"start": iso(window.start), "end": iso(window.end)}, "seed": window.seed, **found,
        "changed_agents": window.agents,
    }  # fmt: skip


@router.post("/test")
async def try_out(body: Trial, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Who would get such a task now; nothing changes."""
    found = await core.routing.preview(body.capability_required, body.routing_strategy)
    counts = counted(found.standing)
    return {
        "selected_agent": {
            "agent_id": found.agent.agent_id, "display_name": found.agent.display_name,
            "trust_score": counts["trust_score"], "current_load": found.load,
            "avg_completion_time_seconds": counts["avg_completion_time_seconds"],
        },
        "strategy_used": body.routing_strategy, "selection_reason": found.reason,
        "alternatives_considered": found.considered - 1,
    }  # fmt: skip


@router.get("/strategies")
async def strategies(who: SignedIn) -> dict[str, Any]:
    """The strategies and what each is for."""
    return {
        "strategies": [
            {"name": name, "description": each.description, "use_cases": each.use_cases}
            for name, each in CATALOGUE.items()
        ],
        "default_strategy": DEFAULT,
    }
