"""How good a model is on the run's held-out text. No torch: the gateway reads it."""

import math

from pydantic import BaseModel, ConfigDict


class Quality(BaseModel):
    """Measured on held-out documents, the same ones at every stage of a run.

    `loss` is in nats per token, `accuracy` the share of tokens ranked first, `bits_per_byte` does not depend on the
    tokenizer; `tokens` were measured on.
    """

    model_config = ConfigDict(frozen=True)

    loss: float
    accuracy: float
    bits_per_byte: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss: among how many tokens the model hesitates."""
        return math.exp(min(self.loss, 700.0))
