"""What cognate's workers do: a tokenizer, a model, training on the run's texts, and the model's folder."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from train.data.packing import Batches
from train.data.prepared import texts
from train.data.sources import Document
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.model.checkpoint import publish
from train.model.learner import Learner, fresh, load, tokenizer_for
from train.model.shape import choose
from train.phases.phase import Work
from train.resumable import measured, together, train

if TYPE_CHECKING:
    from train.phases.cognate import Cognate, CognateConfig


def pretrain(phase: "Cognate", work: Work) -> dict[str, float]:
    """Leaves the model in `work.output`."""
    config, corpus = phase.config, texts(work.data)
    torch.manual_seed(config.seed)
    learner = load(work.base) if work.base else from_nothing(config, work, corpus.training)
    batches = Batches(
        by_source(learner, corpus.training), config.mix, context=config.context_length, size=config.batch_size,
        pad=learner.pad, seed=config.seed, part=(work.rank, work.world),
    )  # fmt: skip
    rows = held_out_batches(learner, corpus.held_out, config.held_out_tokens, config.context_length)

    def evaluate(model: nn.Module) -> tuple[float, float]:
        return held_out_loss(model, rows, config.precision, work.device)

    progress = train(work, config, learner.model, batches, evaluate=evaluate)
    if work.rank == 0:
        publish(work.output, learner.save)
    return measured(progress)


def from_nothing(config: "CognateConfig", work: Work, documents: tuple[Document, ...]) -> Learner:
    """Random weights, and a tokenizer trained on the documents."""
    if work.rank == 0:
        tokenizer_for(work.folder / "tokenizer.json", lambda: documents, config.vocab_size)
    together(work)
    tokenizer = tokenizer_for(work.folder / "tokenizer.json", lambda: documents, config.vocab_size)
    shape = choose(config.target_architecture, config.parameter_budget, tokenizer.vocab_size, config.context_length)
    return fresh(shape, tokenizer)


def by_source(learner: Learner, documents: tuple[Document, ...]) -> dict[str, list[np.ndarray]]:
    """Every document's ids (tokens,) int32, by source."""
    found: dict[str, list[np.ndarray]] = {}
    for document in documents:
        found.setdefault(document.source, []).append(np.array(learner.ids(document), dtype=np.int32))
    return found
