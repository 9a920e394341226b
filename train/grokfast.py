"""GrokFast-EMA (arXiv:2405.20233): amplify the slow part of the gradient, which is what generalises."""

from collections.abc import Iterable

import torch
from torch import Tensor

from train import parallel


class GrokFast:
    """Keeps mean <- alpha * mean + (1 - alpha) * g for every gradient g and makes it g + lamb * mean.

    `alpha` in 0..1 is the mean's memory per step, `lamb` >= 0 the amplification; the paper's choice is 0.98 and 2.0.
    The mean starts as the first gradient. `lamb` 0 leaves gradients as they are.
    """

    def __init__(self, parameters: Iterable[Tensor], alpha: float = 0.98, lamb: float = 2.0) -> None:
        self.parameters, self.alpha, self.lamb = list(parameters), alpha, lamb
        self.means: list[Tensor] = []

    @torch.no_grad()
    def filter(self) -> None:
        """Change every parameter's gradient in place. Call after backward, before clipping and the step."""
        if not self.lamb:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not self.means:
            self.means = [g.clone() for g in gradients]
        else:
            torch._foreach_lerp_(self.means, gradients, 1 - self.alpha)  # pyright: ignore[reportPrivateImportUsage] - as in torch.optim
        torch._foreach_add_(gradients, self.means, alpha=self.lamb)  # pyright: ignore[reportPrivateImportUsage]

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What a checkpoint keeps."""
        return {"means": [parallel.whole(mean) for mean in self.means]}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from a checkpoint."""
        self.means = [parallel.like(mean, p) for mean, p in zip(state["means"], self.parameters, strict=False)]
