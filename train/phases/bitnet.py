"""Bitnet, the fourth phase: ternary weights (BitNet b1.58, arXiv:2402.17764), trained so, taught by the parent model.

The gateway reads this file, so torch is imported only where a worker runs.
"""

from pydantic import Field

from train.evaluate.quality import Quality
from train.phases.phase import Outcome, Phase, TrainedConfig, Verdict, Work


class BitnetConfig(TrainedConfig):
    """Values come from `configs/phases/bitnet.yaml`."""

    learning_rate: float = Field(4e-3, gt=0, le=1)  # a trit changes when its latent weight has moved far
    lambda_share: float = Field(0.4, ge=0, le=1)  # of the steps, over which weights go from full precision to ternary
    alpha: float = Field(0.3, ge=0, le=1)  # of the loss, on the text itself; the rest on the parent's distribution
    temperature: float = Field(1.0, gt=0, le=20)  # softens both distributions
    tolerance: float = Field(0.1, ge=0)  # nats per token that the held-out loss may rise by; 0.1 is perplexity + 10 %


class Bitnet(Phase[BitnetConfig]):
    """See the module."""

    name = "bitnet"
    Config = BitnetConfig

    @property
    def total_steps(self) -> int:
        """Optimizer steps."""
        return self.config.max_steps

    def run(self, work: Work) -> dict[str, float]:
        """See `train.bitnet.quantisation`."""
        from train.bitnet.quantisation import quantise

        return quantise(self, work)

    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """Ternary weights may cost a little quality, and must save space."""
        good = after.loss <= before.loss + self.config.tolerance
        smaller = metrics["packed_bytes"] < metrics["weights_bytes_before"]
        return Verdict(
            outcome=Outcome.PASS if good and smaller else Outcome.KEEP,
            reason=f"held-out loss {before.loss:.3f} -> {after.loss:.3f} nats per token (may rise by "
            f"{self.config.tolerance:.2f}; rounding alone: {metrics['held_out_loss_rounded']:.3f}), weights "
            f"{metrics['weights_bytes_before'] / 1e6:.2f} -> {metrics['packed_bytes'] / 1e6:.2f} MB",
        )
