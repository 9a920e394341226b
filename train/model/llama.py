"""A Llama-architecture decoder in plain PyTorch, for training small models fast.

Parameter names are those of transformers' `LlamaForCausalLM`, so a state dict goes to and fro unchanged. It exists
because it saves a worker the seconds that importing transformers takes, is no slower, and takes document ids, which
keep packed documents from seeing each other (measured in docs/log.md).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.model.shape import Shape

INITIAL_DEVIATION = 0.02
MOST_SCORED = 512  # positions whose scores are kept for the backward pass


class Attention(nn.Module):
    """Causal self-attention with rotary positions (arXiv:2104.09864)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(
        self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None, past: "Past | None" = None
    ) -> Tensor:
        """(B, T, W) -> (B, T, W); `mask` (B, 1, T, P + T) is true where a query may look, None means causal.

        `past` has the P keys and values before these and is given these too.
        """
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)  # (B, H, T, D)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        if past is not None:
            k, v = past.grown(self, k, v)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class Past:
    """Keys and values (B, H, P, D) of every layer, for text that grows at its end."""

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Positions so far."""
        return next(iter(self.kept.values()))[0].shape[2] if self.kept else 0

    def grown(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the layer, these at their end."""
        if layer in self.kept:
            before_k, before_v = self.kept[layer]
            k, v = torch.cat((before_k, k), dim=2), torch.cat((before_v, v), dim=2)
        self.kept[layer] = (k, v)
        return k, v


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
        self.input_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None, past: Past | None = None) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, mask, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and last norm: what transformers calls `LlamaModel`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, shape.norm_eps)


class Llama(nn.Module):
    """Token ids in, logits out; the embedding is also the output matrix."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Decoder(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        self.apply(_initialise)
        self.lm_head.weight = self.model.embed_tokens.weight
        cosine, sine = rotation_table(shape)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, T) int -> logits (B, T, vocabulary). With `documents` (B, T) a token sees only its own document."""
        return self.lm_head(self.hidden(tokens, None if documents is None else same_document(documents)))

    def hidden(
        self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, past: "Past | None" = None
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
        bias = mask if mask is None or not worth_a_bias(mask) else as_bias(mask, x.dtype)
        for layer in self.model.layers:
            x = layer(x, cosine, sine, bias, past)
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


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """(B, H, T, D) -> the same in x's type, each pair turned by its position's angle."""
    left, right = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat((-right, left), dim=-1) * sine).to(x.dtype)


def worth_a_bias(mask: Tensor) -> bool:
    """Whether a CPU computes attention under this mask faster by two matrix products than by its fused kernel.

    The kernel's backward pass takes twice their time up to a few hundred positions, and five times at 64 in bf16; they
    keep (B, H, T, P + T) scores, so long text is left to the kernel.
    """
    return mask.device.type == "cpu" and mask.dtype == torch.bool and 8 <= mask.shape[-2] <= MOST_SCORED


def as_bias(mask: Tensor, kind: torch.dtype) -> Tensor:
    """Where a query may look -> what is added to its scores, in `kind` or what autocast makes of it."""
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else kind
    return torch.zeros(mask.shape, dtype=kind).masked_fill_(~mask, torch.finfo(kind).min)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Queries (B, H, T, D), keys and values (B, H, P + T, D) -> (B, H, T, D).

    `mask` (B or 1, 1, T, P + T) is true where a query may look, or a bias of the queries' type; None means causal.
    """
    if mask is None or mask.dtype != q.dtype:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
    (batch, heads, length, width), total = q.shape, k.shape[2]
    bias = mask.expand(batch, heads, length, total).reshape(-1, length, total)
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).unflatten(0, (batch, heads))


def same_document(documents: Tensor) -> Tensor:
    """(B, T) document ids -> (B, 1, T, T), true where the key is not later and of the same document."""
    return (documents[:, None, :, None] == documents[:, None, None, :]).tril()
