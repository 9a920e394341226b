"""A small GPT-2 and a training loop in the style of nanoGPT (github.com/karpathy/nanoGPT), after its README.

Its "I only have a macbook" setting: characters of Tiny Shakespeare, 4 layers, 4 heads, 128 wide, context 64, batch 12,
2,000 steps, no dropout, float32 on a CPU, a learning rate of 1e-3 down to 1e-4.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CORPUS = Path(__file__).parents[1] / "train" / "data" / "corpus" / "shakespeare.txt"
LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
RATE, LAST_RATE, WARMUP, BETA2, DECAY, CLIP = 1e-3, 1e-4, 100, 0.99, 0.1, 1.0


def characters() -> tuple[Tensor, Tensor, int]:
    """Training and validation text as character numbers (n,) int64, nine to one, and how many characters there are."""
    text = CORPUS.read_text()
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    data = torch.tensor([numbers[character] for character in text])
    cut = int(0.9 * len(data))
    return data[:cut], data[cut:], len(numbers)


class Block(nn.Module):
    """Pre-norm attention and a GELU feed-forward of four times the width."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.qkv(self.norm_1(x)).split(WIDTH, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """Learned positions, tied embedding; residual projections begin smaller by the root of twice the depth."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS))
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Peer:
    """The loop, so that it may be gone through in parts."""

    def __init__(self, data: Tensor, vocabulary: int, steps: int = STEPS) -> None:
        torch.manual_seed(1337)
        self.data, self.model, self.step, self.steps = data, GPT(vocabulary), 0, steps
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, BETA2))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Windows from anywhere, and what follows each character."""
        starts = torch.randint(len(self.data) - CONTEXT, (BATCH,)).tolist()
        x = torch.stack([self.data[i : i + CONTEXT] for i in starts])
        return x, torch.stack([self.data[i + 1 : i + 1 + CONTEXT] for i in starts])

    def run(self, until: int) -> None:
        """Train up to that step."""
        x, y = self.batch()
        while self.step < until:
            for group in self.optimizer.param_groups:
                group["lr"] = rate(self.step, self.steps)
            loss = F.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
            x, y = self.batch()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()  # it logs every step of so short a run
            self.step += 1

    def loss(self, data: Tensor) -> float:
        """Nats per character over all of the text, window by window."""
        return over_all(self.model, data)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to the last rate."""
    if step < WARMUP:
        return RATE * (step + 1) / (WARMUP + 1)
    return LAST_RATE + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))) * (RATE - LAST_RATE)


@torch.no_grad()
def over_all(model: nn.Module, data: Tensor) -> float:
    """Mean nats per character; every character but those that do not fill a window is guessed once, in windows."""
    count = (len(data) - 1) // CONTEXT
    x, y = (data[i : i + count * CONTEXT].view(count, CONTEXT) for i in (0, 1))
    parts = zip(x.split(128), y.split(128), strict=True)
    nats = sum(F.cross_entropy(model(a).float().flatten(0, 1), b.flatten(), reduction="sum").item() for a, b in parts)
    return nats / (count * CONTEXT)
