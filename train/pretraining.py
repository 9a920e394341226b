"""What cognate's workers do: a tokenizer, a model, training on the run's texts, and the model's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from train.causes import Cause, Failed
from train.data.feed import Feed
from train.data.feed import by_source as by_source
from train.data.prepared import report, texts
from train.data.sources import Document
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.model.checkpoint import publish
from train.model.learner import Learner, fresh, load, tokenizer_for
from train.model.shape import choose
from train.phases.phase import Work
from train.resumable import measured, together, train

if TYPE_CHECKING:
    from train.phases.cognate import Cognate, CognateConfig

DIFFERENCES_TOLD = 5


def pretrain(phase: "Cognate", work: Work) -> dict[str, float]:
    """Leaves the model in `work.output`, its siblings in `work.sibling_outputs`."""
    config, corpus, counted = phase.config, texts(work.data), report(work.data)
    work.note("data", **counted)
    torch.manual_seed(config.seed)
    learner = imported((work.base, *work.siblings)) if work.base else from_nothing(config, work, corpus.training)
    context = min(config.context_length, learner.context)
    feed = Feed(learner, work, (*corpus.training, *learner.replay), config.batch_size, context)
    rows = held_out_batches(learner, corpus.held_out, config.held_out_tokens, context)

    def evaluate(model: nn.Module) -> tuple[float, float]:
        return held_out_loss(model, rows, config.precision, work.device)

    if config.siblings > 1:
        from train.siblings import Family, train_siblings

        return counted | train_siblings(Family(config, work, learner, feed.batches, evaluate, corpus.held_out))
    progress = train(work, config, learner.model, feed.batches(config.mix, config.seed), evaluate=evaluate)
    if work.rank == 0:
        publish(work.output, learner.save)
    return counted | measured(progress)


def from_nothing(config: "CognateConfig", work: Work, documents: Sequence[Document]) -> Learner:
    """Random weights, and a tokenizer trained on the documents."""
    if work.rank == 0:
        tokenizer_for(work.folder / "tokenizer.json", lambda: documents, config.vocab_size)
    together(work)
    tokenizer = tokenizer_for(work.folder / "tokenizer.json", lambda: documents, config.vocab_size)
    shape = choose(config.target_architecture, config.parameter_budget, tokenizer.vocab_size, config.context_length)
    return fresh(shape, tokenizer)


def imported(folders: Sequence[Path]) -> Learner:
    """The model of the folder, or the average of several of one shape and one tokenizer. Raises `Failed`."""
    learner = load(folders[0])
    if len(folders) == 1:
        return learner
    from train.evomerge.operators import linear

    parents = [learner, *(load(folder) for folder in folders[1:])]
    for folder, other in zip(folders[1:], parents[1:], strict=True):
        alike(learner, other, folders[0], folder)
    merged = linear([parent.model.state_dict() for parent in parents], [1.0] * len(parents))
    learner.model.load_state_dict(merged)
    learner.replay = list(dict.fromkeys(document for parent in parents for document in parent.replay))
    return learner


def alike(one: Learner, other: Learner, first: Path, second: Path) -> None:
    """Raises `Failed` unless the two have the same tensors and cut text alike."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.model.state_dict().items()} for each in (one, other)]
    names = sorted(set(shapes[0]) | set(shapes[1]))
    differing = [
        f"{name}: {shapes[0].get(name, 'none')} and {shapes[1].get(name, 'none')}"
        for name in names
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    if differing:
        more = f" and {len(differing) - DIFFERENCES_TOLD} more" if len(differing) > DIFFERENCES_TOLD else ""
        told = "; ".join(differing[:DIFFERENCES_TOLD])
        raise Failed(f"models of different shapes cannot be averaged: {told}{more}", Cause.BASE_MODEL)
    if one.tokenizer_digest != other.tokenizer_digest:
        raise Failed(f"the models in {first} and {second} have different tokenizers", Cause.BASE_MODEL)
