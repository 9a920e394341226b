"""What a merge is worth: its loss on text and its answers to questions, measured by any process that has the folders.

The text is neither the judge's (`held_out`, which the gate looks at) nor of the search's own making: documents of the
training side, set apart by their content. The parents have learnt from them, so the numbers are lower than on new text;
what they are for is to say which of two merges is better (docs/forge.md has how well they do).
"""

import copy
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.data.packing import Batch
from train.data.prepared import texts
from train.data.sources import Document
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.evomerge.merging import Recipe, depth, family, filled, mean, merge, remembered
from train.model.generate import generate
from train.model.learner import Learner
from train.model.tokenizer import END
from train.search import Candidate, Measured

SALT = "evomerge"  # which documents are set apart has nothing to do with which are held out
MADE_OF_OTHERS = ("conversation", "replay")  # sources whose documents repeat others
ASKED = ("sums", "capitals", "dialogue")


@dataclass(frozen=True)
class Task:
    """What is to be measured: pickles, and names files by what is in them, so that a process reads them once."""

    parents: tuple[Path, ...]
    digests: tuple[str, ...]  # of the parents' folders
    ancestor: Path | None  # what task vectors start from; None: the parents' mean
    data: Path
    share: float  # of the training documents
    tokens: int
    questions: int
    context: int
    answer_tokens: int
    precision: str
    device: str


@dataclass
class Ready:
    """A task in memory."""

    learner: Learner  # whose weights are overwritten by each candidate
    parents: list[dict[str, Tensor]]
    ancestor: dict[str, Tensor]
    batches: list[Batch]
    questions: list[Document]


def set_apart(documents: Sequence[Document], share: float) -> list[Document]:
    """About that share of the documents, decided by their content."""
    return [
        document for document in documents
        if document.source not in MADE_OF_OTHERS
        and int(hashlib.sha256(f"{SALT}{document.fingerprint}".encode()).hexdigest()[:8], 16) < share * 0x1_0000_0000
    ]  # fmt: skip


def questions_of(documents: Sequence[Document], most: int) -> list[Document]:
    """At most so many single questions with their answers, spread over all there are."""
    asked = [document for document in documents if document.source in ASKED and len(document.turns) == 2]
    return asked[:: max(1, math.ceil(len(asked) / most))] if most else []


@lru_cache(maxsize=2)
def ready(task: Task) -> Ready:
    """Models and texts of the task. Raises `Failed` for parents that do not fit together."""
    learner, found = family([*task.parents, *([task.ancestor] if task.ancestor else [])])
    parents = [parent.weights for parent in found[: len(task.parents)]]
    scratch = copy.deepcopy(learner)
    scratch.model.to(task.device)
    scratch.replay = remembered(found[: len(parents)])
    documents = set_apart(texts(task.data).training, task.share)
    batches = held_out_batches(scratch, documents, task.tokens, min(task.context, scratch.context))
    ancestor = found[-1].weights if task.ancestor else mean(parents)
    return Ready(scratch, parents, ancestor, batches, questions_of(documents, task.questions))


def built(task: Task, recipe: Recipe) -> Learner:
    """The merge. The next one that is built here overwrites it."""
    here = ready(task)
    return filled(here.learner, merge(recipe, here.parents, here.ancestor))


def evaluate(task: Task, candidate: Candidate) -> Measured:
    """Loss in nats per token, error as the share of questions not answered exactly, size, and seconds.

    Raises `ArithmeticError` where the loss is no number.
    """
    here, begun = ready(task), time.perf_counter()
    learner = built(task, candidate["recipe"])
    merged = time.perf_counter()
    loss, accuracy = held_out_loss(learner.model, here.batches, task.precision, torch.device(task.device))
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    done = time.perf_counter()
    measured = {
        "loss": loss, "accuracy": accuracy, "parameters": float(learner.parameters), "layers": float(depth(learner)),
        "merge_seconds": merged - begun, "loss_seconds": done - merged,
    }  # fmt: skip
    if here.questions:
        measured["error"] = 1 - answered(learner, here.questions, task.answer_tokens)
    return measured | {"seconds": time.perf_counter() - begun}


def answered(learner: Learner, questions: Sequence[Document], most_tokens: int) -> float:
    """The share (0 to 1) of questions to which the greedy reply is exactly the answer."""
    tokenizer: Any = learner.tokenizer
    prompts = [tokenizer.prompt(document.turns[:-1]) for document in questions]
    replies = generate(learner, prompts, most_tokens, stop=stops(learner))
    right = [
        tokenizer.decode(reply).strip() == document.turns[-1].content.strip()
        for reply, document in zip(replies, questions, strict=True)
    ]
    return sum(right) / len(right)


def stops(learner: Learner) -> list[int]:
    """The ids that end a reply."""
    inner: Any = getattr(learner.tokenizer, "inner", None)
    return [learner.tokenizer.ids[END]] if inner is None else [inner.eos_token_id]
