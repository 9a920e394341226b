"""What a search over a phase's parameters is: the space, how it is drawn from, and when a trial is stopped. Pure."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

JSONValue = float | int | str | bool


class Dimension(BaseModel):
    """One parameter's values: `choices`, or from `low` to `high`, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: tuple[JSONValue, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False  # drawn evenly over the logarithm
    whole: bool = False  # integers only

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        if bool(self.choices) == (self.low is not None and self.high is not None):
            raise ValueError("either choices, or low and high")
        if self.low is not None and self.high is not None:
            if self.low >= self.high:
                raise ValueError("low is below high")
            if self.log and self.low <= 0:
                raise ValueError("a logarithm needs a low above 0")
        return self

    @property
    def corners(self) -> tuple[JSONValue, ...]:
        """Values that must be valid for all to be."""
        if self.choices:
            return self.choices
        assert self.low is not None and self.high is not None
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


class SearchConfig(BaseModel):
    """`parameters.search` of any phase: several trials of the phase, of which the best is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: dict[str, Dimension] = Field(min_length=1, max_length=16)
    trials: int = Field(8, ge=1, le=1000)
    at_once: int = Field(0, ge=0)  # trials side by side; 0: one for each of the cluster's cores or GPUs
    sampler: Literal["tpe", "random"] = "tpe"  # Optuna's tree-structured Parzen estimator (arXiv:1907.10902)
    scheduler: Literal["asha", "none"] = "asha"  # stop poor trials early (arXiv:1810.05934)
    reduction: int = Field(3, ge=2, le=16)  # ASHA keeps one trial in so many at every rung
    grace: float = Field(0.15, gt=0, le=1)  # share of the steps that every trial may take
    metric: str = "held_out_loss"
    mode: Literal["min", "max"] = "min"


def sampled(config: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """A trial's configuration: the phase's, with the point's values and no further search."""
    return config | point | {"search": None}


def corners(search: SearchConfig) -> list[dict[str, JSONValue]]:
    """Points that between them have every dimension's corners, the others at their first."""
    first = {name: dimension.corners[0] for name, dimension in search.space.items()}
    return [first | {name: value} for name, dimension in search.space.items() for value in dimension.corners]
