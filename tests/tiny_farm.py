"""A registry model and a text that a farm's task trains on in a test's time."""

import shutil
from pathlib import Path
from typing import Any

import torch

from train.model.checkpoint import save_llama
from train.model.llama import Llama
from train.model.shape import Shape
from train.model.tokenizer import Tokenizer

torch.set_num_threads(1)  # matrices this small only wait for one another
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CONFIG: dict[str, Any] = {
    "batch_size": 4, "learning_rate": 0.01, "steps": 20, "dataset": "tiny", "model": "model_tiny", "seed": 7
}  # fmt: skip


def lines() -> list[str]:
    return [" ".join(WORDS[i % 10] for i in range(start, start + 6 + start % 5)) for start in range(300)]


def text(path: Path) -> Path:
    """As JSON Lines, so that each line is a document."""
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(f'{{"text": "{number}: {line}"}}' for number, line in enumerate(lines())))
    return path


def model(folder: Path, width: int = 32) -> Path:
    """Two layers, 32 wide."""
    cut = Tokenizer.train(lines(), 300)
    shape = Shape(width=width, layers=2, heads=1, feed_forward=64, vocab_size=cut.vocab_size, context=32)
    torch.manual_seed(3)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_llama(Llama(shape), shape, cut, folder)
    return folder
