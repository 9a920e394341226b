"""Final compression, the last phase: a model's tensors, each by the codec that saves most for least loss, in one file.

SeedLM (arXiv:2410.10714), VPTQ (arXiv:2409.17066), Hyper-compression (arXiv:2409.00592), GPTQ (arXiv:2210.17323) and
k-quants are candidates for each tensor; see `train.compression`.
"""

from typing import Literal

from pydantic import Field

from train.evaluate.quality import Quality
from train.phases.phase import Outcome, Phase, PhaseConfig, Verdict, Work

Codec = Literal["kquant", "gptq", "vptq", "seedlm", "hyper"]


class FinalCompressionConfig(PhaseConfig):
    """Values come from `configs/phases/final_compression.yaml`."""

    tolerance_nats: float = Field(0.02, ge=0)  # that the loss may rise by, per token
    target_bits: float = Field(0, ge=0)  # a weight, on average; 0: as few as the tolerance allows
    codecs: tuple[Codec, ...] = ("kquant", "gptq", "vptq", "seedlm", "hyper")  # that are tried
    seeds: int = Field(65_535, ge=32, le=65_535)  # that SeedLM tries for each block
    group: int = Field(128, ge=8)  # columns that share a scale in GPTQ with fixed bits
    smallest: int = Field(1024, ge=1)  # weights; smaller tensors are kept in two bytes a number
    calibration_tokens: int = Field(16_384, ge=256)  # of training text, that Hessians are made of
    measured_tokens: int = Field(4096, ge=256)  # of other training text, that losses are measured on
    measured: int = Field(2, ge=0, le=16)  # encodings of each tensor whose loss is measured
    timed_tokens: int = Field(64, ge=1)  # that are generated to measure speed


class FinalCompression(Phase[FinalCompressionConfig]):
    """See the module."""

    name = "final_compression"
    Config = FinalCompressionConfig

    @property
    def total_steps(self) -> int:
        """Counted in tensors once the model is known."""
        return 1

    def run(self, work: Work) -> dict[str, float]:
        """See `train.compression.compress`."""
        from train.compression.compress import compress

        return compress(self, work)

    def gate(self, before: Quality, after: Quality, metrics: dict[str, float]) -> Verdict:
        """Bytes must have been saved, and the held-out loss may have risen by the tolerance."""
        saved = metrics["compression_ratio"]
        good = saved > 0 and after.loss - before.loss <= self.config.tolerance_nats
        return Verdict(
            outcome=Outcome.PASS if good else Outcome.KEEP,
            reason=f"{saved:.1%} of the bytes saved, {metrics['bits_per_weight']:.2f} bits a weight; held-out loss "
            f"{before.loss:.3f} -> {after.loss:.3f} nats per token, {self.config.tolerance_nats} are allowed",
        )
