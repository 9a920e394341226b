"""What the owner of a farm task asks for."""

from pydantic import Field

from cluster.farm.resources import Frozen, Requirements


class Order(Frozen):
    """What a task's owner asks for. `url`, `version` and `name` are labels: the server fetches nothing."""

    type: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$", examples=["training"])
    name: str = Field(default="", max_length=200)
    url: str = Field(default="", max_length=2000)
    version: str = Field(default="", max_length=100)
    batch_size: int | None = Field(default=None, ge=1, le=10**6)
    learning_rate: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    epochs: int | None = Field(default=None, ge=1, le=10**6)
    distributed: bool = False
    requirements: Requirements = Requirements()
    n_clients: int = Field(default=1, ge=1, le=1000)
    model: str | None = Field(default=None, max_length=200)
    dataset: str | None = Field(default=None, max_length=200)
    rounds: int = Field(default=1, ge=1, le=1000)
    steps: int | None = Field(default=None, ge=1, le=10**9)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    straggler_seconds: float | None = Field(default=None, gt=0, le=30 * 86_400, allow_inf_nan=False)
    min_ranks: int | None = Field(default=None, ge=1, le=1000)
    max_retries: int = Field(default=3, ge=0, le=10)
    timeout_seconds: int = Field(default=3600, ge=1, le=30 * 86_400)

    @property
    def enough(self) -> int:
        """How many ranks a round needs at least, once the stragglers are cut off."""
        return min(self.n_clients, self.min_ranks or -(-self.n_clients // 2))
