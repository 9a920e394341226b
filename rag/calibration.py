"""From retrieval scores to probabilities: logistic calibration (Platt 1999), fitted by `benchmarks/retrieval.py`."""

from datetime import date
from math import exp
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from cluster.settings import ROOT

CONFIG = ROOT / "configs" / "knowledge.yaml"


class Logistic(BaseModel):
    """P = 1 / (1 + e^-(intercept + cosine * c + coverage * k)). No weight is negative: more evidence, never less P."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    intercept: float
    cosine: float = Field(0.0, ge=0.0)
    coverage: float = Field(0.0, ge=0.0)

    def __call__(self, cosine: float, coverage: float) -> float:
        """`cosine` of query and passage, `coverage` of the query's words by the passage."""
        return 1.0 / (1.0 + exp(-(self.intercept + self.cosine * cosine + self.coverage * coverage)))


class Calibration(BaseModel):
    """Four fits: of one source or of the whole answer, with vectors or (keyword mode) without."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Logistic
    source_without_vectors: Logistic
    answer: Logistic
    answer_without_vectors: Logistic
    fitted_at: date
    fitted_on: str
    figures: dict[str, float]  # on folds that the fit did not see

    def relevance(self, cosine: float | None, coverage: float) -> float:
        """Probability that a passage is relevant to the query."""
        return self.source_without_vectors(0.0, coverage) if cosine is None else self.source(cosine, coverage)

    def confidence(self, cosine: float | None, coverage: float) -> float:
        """Probability that the best three sources hold a relevant one, from the best scores among them."""
        return self.answer_without_vectors(0.0, coverage) if cosine is None else self.answer(cosine, coverage)


class WriterRule(BaseModel):
    """When a served model may write the answer: it has the size, and a measured loss that is low enough.

    A model that nobody measured is trusted from `unmeasured_parameters` on. Loss in nats per token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_parameters: int = Field(ge=0)
    max_held_out_loss: float = Field(gt=0)
    unmeasured_parameters: int = Field(ge=0)


class KnowledgeConfig(BaseModel):
    """`configs/knowledge.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: Calibration
    min_confidence: float = Field(ge=0.0, le=1.0)  # below this no sentence is offered as an answer
    writer: WriterRule


def load(path: Path = CONFIG) -> KnowledgeConfig:
    """The configuration. Raises pydantic's ValidationError."""
    return KnowledgeConfig.model_validate(yaml.safe_load(path.read_text()))
