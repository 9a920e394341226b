"""What cognate's workers do: prepare the data once, train from the newest checkpoint, publish the model's folder."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed, nn

from cluster.errors import VillageError
from train.data.packing import Batch, Batches, batch, pack
from train.data.sources import Document, corpus
from train.evaluate.perplexity import held_out_loss, perplexity
from train.loop import Loop, LoopConfig, Progress
from train.manifest import Checkpoints, write_durably
from train.model.checkpoint import publish, write_json
from train.model.learner import Learner, learner
from train.phases.phase import Quality, Work

if TYPE_CHECKING:
    from train.phases.cognate import Cognate, CognateConfig

ROWS_AT_ONCE = 8  # in an evaluation


def pretrain(phase: "Cognate", work: Work) -> None:
    """Leaves the model in `work.model_folder`. Raises `VillageError` when the gate refuses it."""
    if work.model_folder.exists():
        work.note("the model is already there")
        return
    config = phase.config
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")
    made = learner(config, work.folder, make=lambda: corpus(work.root, config.held_out, config.seed).training)
    data = prepared(config, work, made)
    loop = loop_for(config, work, made, data)
    checkpoints = Checkpoints(work.folder / "checkpoints")
    if (found := checkpoints.newest()) is not None:
        loop.restore(torch.load(found[1], weights_only=True))
        work.note("resumed", step=found[0].step)
    else:
        work.note("training from the start", parameters=made.parameters, data_digest=data["digest"])
    progress = loop.run()
    if work.rank == 0:
        conclude(phase, work, made, progress, data["digest"])


def loop_for(config: "CognateConfig", work: Work, made: Learner, data: dict[str, Any]) -> Loop:
    """The loop over this worker's share of every batch."""
    model = work.wrap(made.model)
    batches = Batches(
        data["training"], config.mix, context=config.context_length, size=config.batch_size, pad=made.pad,
        seed=config.seed, part=(work.rank, work.world),
    )  # fmt: skip
    rows = held_out_batches(data["held_out"], config, made.pad)
    checkpoints = Checkpoints(work.folder / "checkpoints")

    def evaluate(model: nn.Module) -> tuple[float, float]:
        loss, accuracy = held_out_loss(model, rows, config.precision, work.device)
        work.note("held-out text", loss=round(loss, 4), accuracy=round(accuracy, 4))
        return loss, accuracy

    def save(step: int, state: dict[str, Any]) -> None:
        if work.rank == 0:
            checkpoints.save(step, lambda file: torch.save(state, file))
            work.note("checkpoint", step=step)

    settings = LoopConfig.model_validate(config.model_dump(include=set(LoopConfig.model_fields)))
    return Loop(model, batches, settings, evaluate=evaluate, save=save, report=work.report, device=work.device)


def prepared(config: "CognateConfig", work: Work, made: Learner) -> dict[str, Any]:
    """The tokenized corpus: made once, so that a run goes on with the same data when the project's pages change."""
    path = work.folder / "data.pickle"
    if not path.exists() and work.rank == 0:
        text = corpus(work.root, config.held_out, config.seed)
        training: dict[str, list[np.ndarray]] = {}
        for document in text.training:
            training.setdefault(document.source, []).append(encode(made, document))
        held_out = [encode(made, document) for document in text.held_out]
        whole = {"training": training, "held_out": held_out, "digest": text.digest}
        write_durably(path, lambda file: pickle.dump(whole, file))
    together(work)
    return pickle.loads(path.read_bytes())  # our own file, in our own folder


def together(work: Work) -> None:
    """Wait until every worker is here."""
    if work.world > 1:
        distributed.barrier()


def encode(made: Learner, document: Document) -> np.ndarray:
    """(tokens,) int32."""
    return np.array(made.chat(document.turns) if document.turns else made.text(document.text), dtype=np.int32)


def held_out_batches(documents: Sequence[np.ndarray], config: "CognateConfig", pad: int) -> list[Batch]:
    """Rows of held-out documents, spread evenly over all of them, up to `held_out_tokens`."""
    rows = pack(documents, config.context_length)
    wanted = max(1, config.held_out_tokens // config.context_length)
    rows = rows[:: max(1, len(rows) // wanted)][:wanted]
    parts = (rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE))
    return [batch(part, config.context_length, pad) for part in parts]


def measured(progress: Progress) -> dict[str, float]:
    """The run's numbers, each of them measured."""
    first, last = progress.held_out[0], progress.held_out[-1]
    tail = [point.loss for point in progress.history[-10:]]
    return {
        "loss": sum(tail) / len(tail), "held_out_loss_before": first.loss, "held_out_loss": last.loss,
        "perplexity_before": perplexity(first.loss), "perplexity": perplexity(last.loss),
        "accuracy_before": first.accuracy, "accuracy": last.accuracy, "training_seconds": progress.seconds,
        "tokens": float(progress.tokens), "tokens_per_second": progress.tokens_per_second,
    }  # fmt: skip


def conclude(phase: "Cognate", work: Work, made: Learner, progress: Progress, digest: str) -> None:
    """Pass the gate and publish."""
    first, last = progress.held_out[0], progress.held_out[-1]
    verdict = phase.gate(
        Quality(loss=first.loss, accuracy=first.accuracy), Quality(loss=last.loss, accuracy=last.accuracy)
    )
    work.note("gate", passed=verdict.passed, reason=verdict.reason)
    if not verdict.passed:
        raise VillageError(f"the gate refused the model: {verdict.reason}", phase=phase.name)
    told = {
        "phases": [*made.phases, phase.name], "metrics": measured(progress), "parameters": made.parameters,
        "context_length": phase.config.context_length, "gate": verdict.reason,
        "lineage": {
            "run_id": work.run.run_id, "seed": phase.config.seed, "data_digest": digest,
            "base_models": list(phase.config.base_models), "tokenizer": made.tokenizer_digest,
            "torch": torch.__version__,
        },
    }  # fmt: skip

    def write(folder: Path) -> None:
        made.save(folder)
        write_json(folder / "training.json", told)

    publish(work.model_folder, write)
    work.note("the model is written", folder=str(work.model_folder))
