"""A Llama-architecture decoder in plain PyTorch, for training small models fast.

Parameter names are those of transformers' `LlamaForCausalLM`, so a state dict goes to and fro unchanged. It exists
because it saves a worker the seconds that importing transformers takes, is no slower, and takes document ids, which
keep packed documents from seeing each other (measured in docs/log.md).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.model.kernels import RMSNorm, rotate
from train.model.shape import Shape

INITIAL_DEVIATION = 0.02
MOST_SCORED = 512  # positions whose scores are kept for the backward pass
TOGETHER = 128  # queries that look at one stretch of keys


class Stretch(NamedTuple):
    """Some queries, the keys that any of them looks at, and what is added to their scores (B * H, queries, keys)."""

    queries: slice
    keys: slice
    bias: Tensor


Seen = Tensor | list[Stretch] | None  # where queries look: a mask, the same in stretches, or None, which is causal


class Attention(nn.Module):
    """Causal self-attention with rotary positions (arXiv:2104.09864)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, seen: Seen, past: "Past | None" = None) -> Tensor:
        """(B, T, W) -> (B, T, W); `past` has the P keys and values before these and is given these too."""
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)  # (B, H, T, D)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        if past is not None:
            k, v = past.grown(self, k, v)
        return self.o_proj(attend(q, k, v, seen).transpose(1, 2).flatten(2))


class Past:
    """Keys and values (B, H, P, D) of every layer, for text that grows at its end. Without gradients."""

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}  # with room at the end, and how much is used

    @property
    def length(self) -> int:
        """Positions so far."""
        return next(iter(self.kept.values()))[2] if self.kept else 0

    def grown(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the layer, these at their end."""
        if layer not in self.kept:
            self.kept[layer] = (k, v, k.shape[2])
            return k, v
        *both, used = self.kept[layer]
        total = used + k.shape[2]
        if both[0].shape[2] < total:
            both = [F.pad(kept[:, :, :used], (0, 0, 0, total)) for kept in both]
        for kept, new in zip(both, (k, v), strict=True):
            kept[:, :, used:total] = new
        self.kept[layer] = (both[0], both[1], total)
        return both[0][:, :, :total], both[1][:, :, :total]

    def choose(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone."""
        self.kept = {layer: (k[rows], v[rows], used) for layer, (k, v, used) in self.kept.items()}


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, seen: Seen, past: Past | None = None) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, seen, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and last norm: what transformers calls `LlamaModel`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.norm_eps)


class Llama(nn.Module):
    """Token ids in, logits out; the embedding is also the output matrix."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model, self.heads = Decoder(shape), shape.heads
        self.lm_head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        self.apply(_initialise)
        self.lm_head.weight = self.model.embed_tokens.weight
        cosine, sine = rotation_table(shape)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, T) int -> logits (B, T, vocabulary). With `documents` (B, T) a token sees only its own document."""
        return self.lm_head(self.hidden(tokens, None if documents is None else same_document(documents)))

    def past(self) -> Past:
        """Of a text that has not begun."""
        return Past()

    def hidden(
        self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        """(B, T) int -> (B, T, W): what `lm_head` turns into logits.

        `mask` (B, 1, T, P + T) is true where a query may look; `positions` (T,) or (B, T) are 0, 1, 2, ... unless
        given. `past` has the P positions before and grows by these.
        """
        return self._through(tokens, mask, torch.arange(tokens.shape[1]) if positions is None else positions, past)

    def grow(self, tokens: Tensor, seen: Tensor, past: Past) -> Tensor:
        """(B, T) further tokens -> logits (B, V) of what follows the last; `past` grows.

        `seen` (B, P + T) is false for positions that are padding.
        """
        start, length = past.length, tokens.shape[1]
        causal = torch.ones(length, start + length, dtype=torch.bool, device=tokens.device).tril(start)
        mask = causal & seen[:, None, None, :]
        mask = mask | ~mask.any(-1, keepdim=True)  # a padded query looks anywhere: nobody reads what it sees
        x = self._through(tokens, mask, torch.arange(start, start + length), past)
        return self.lm_head(x[:, -1])

    def _through(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, past: Past | None) -> Tensor:
        # Of every head: (T, D) -> (1, T, D), and (B, T, D) -> (B, 1, T, D).
        cosine, sine = self.cosine[positions].unsqueeze(-3), self.sine[positions].unsqueeze(-3)
        x = self.model.embed_tokens(tokens)  # (B, T, W)
        if mask is not None and worth_stretches(mask):
            seen: Seen = stretches(mask.expand(len(x), -1, -1, -1), self.heads, x.dtype)
        else:
            seen = mask
        for layer in self.model.layers:
            x = layer(x, cosine, sine, seen, past)
        return self.model.norm(x)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)


def rotation_table(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine (context, D) of every position's rotation; entries i and i + D/2 of a head turn as a pair."""
    exponent = torch.arange(0, shape.head_width, 2, dtype=torch.float32) / shape.head_width
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), shape.rope_theta**-exponent)
    angles = torch.cat((angles, angles), dim=-1)  # (context, D)
    return angles.cos(), angles.sin()


def worth_stretches(mask: Tensor) -> bool:
    """Whether a CPU computes attention under this mask faster by matrix products than by its fused kernel.

    The kernel's backward pass takes twice their time up to a few hundred positions, and five times at 64 in bf16; they
    keep scores, so long text is left to the kernel.
    """
    return mask.device.type == "cpu" and mask.dtype == torch.bool and 8 <= mask.shape[-2] <= MOST_SCORED


def stretches(mask: Tensor, heads: int, kind: torch.dtype) -> list[Stretch]:
    """Where queries look, (B, 1, T, P + T), for all layers; biases are of `kind` or of what autocast makes of it.

    Packed documents are short, so that most queries see a small part of the row: scores elsewhere are not computed.
    """
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else kind
    looked_at, found = mask.any(0)[0], list[Stretch]()
    for start in range(0, mask.shape[2], TOGETHER):
        queries = slice(start, min(start + TOGETHER, mask.shape[2]))
        keys = looked_at[queries].any(0).nonzero()
        first, last = (int(keys[0]), int(keys[-1]) + 1) if len(keys) else (0, 1)
        part = mask[:, :, queries, first:last]
        bias = torch.zeros(part.shape, dtype=kind).masked_fill_(~part, torch.finfo(kind).min)
        found.append(Stretch(queries, slice(first, last), bias.expand(-1, heads, -1, -1).flatten(0, 1)))
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
    """Queries (B, H, T, D), keys and values (B, H, P + T, D) -> (B, H, T, D).

    A mask (B or 1, 1, T, P + T) is true where a query may look.
    """
    if not isinstance(seen, list):
        return F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None)
    batch, scale = q.shape[0], q.shape[-1] ** -0.5
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    said = []
    for queries, keys, bias in seen:
        scores = torch.baddbmm(bias.to(q.dtype), q[:, queries], k[:, keys].transpose(1, 2), alpha=scale)
        said.append(torch.bmm(scores.softmax(-1), v[:, keys]))
    return torch.cat(said, dim=1).unflatten(0, (batch, -1))


def same_document(documents: Tensor) -> Tensor:
    """(B, T) document ids -> (B, 1, T, T), true where the key is not later and of the same document."""
    return (documents[:, None, :, None] == documents[:, None, None, :]).tril()
