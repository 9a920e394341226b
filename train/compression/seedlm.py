"""SeedLM (arXiv:2410.10714): a block of C weights is a seed and P numbers, needs no data, and no codebook either.

A seed is the state of a 16-bit linear-feedback shift register (taps 16, 15, 13, 4; Fibonacci form, period 2^16 - 1).
The C P states that follow it, moved to [-1, 1], are a matrix U (C, P); the block is U t with t (P,) from least squares,
stored as 4-bit mantissas with one 4-bit exponent: 16 + 4 + 4 P bits a block.

Deviations. The paper's exponent floor(log2 max |t|) would use 5 of the 16 mantissas; ours is the smallest that holds
max |t|, or one less where that is nearer. A byte per matrix moves the exponents' window to where its weights are. The
paper tries every seed on every block; here the `seeds` first ones are ranked by the energy |Q^T w|^2 of the block in
U's orthonormal basis Q, which is what U can say of it, and those of the best groups are tried with rounding.
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cluster.hardware import native_bf16
from train.compression.bits import Reader, Writer
from train.compression.codecs import Known

BITS, TAPS = 16, (16, 15, 13, 4)
PERIOD = 2**BITS - 1
LEAST, MOST = -8, 7  # of a 4-bit mantissa
EXPONENTS = 16
GROUP, TRIED = 16, 4  # seeds of a group, and groups of a block whose seeds are tried
SEEDS_AT_ONCE, BLOCKS_AT_ONCE = 2048, 512


def following(state: int, bits: int = BITS, taps: tuple[int, ...] = TAPS) -> int:
    """The register's next state: shifted right by one, its new highest bit the parity of the taps."""
    bit = 0
    for tap in taps:
        bit ^= state >> (bits - tap)
    return state >> 1 | (bit & 1) << (bits - 1)


@cache
def states() -> np.ndarray:
    """(PERIOD,) the register's states from 1 on: every number but 0, once."""
    found, state = np.empty(PERIOD, np.int64), 1
    for i in range(PERIOD):
        found[i], state = state, following(state)
    return found


@cache
def position() -> np.ndarray:
    """(2^16,) where in `states` each state is; 0 for the state 0, which the register never has."""
    where = np.zeros(2**BITS, np.int64)
    where[states()] = np.arange(PERIOD)
    return where


def projection(seeds: np.ndarray, c: int, p: int) -> Tensor:
    """(N,) seeds -> U (N, C, P) float32, row by row the states after the seed, in [-1, 1]."""
    window = states()[(position()[seeds][:, None] + 1 + np.arange(c * p)) % PERIOD]
    half = 2 ** (BITS - 1)
    return torch.from_numpy(((window - half) / (half - 1)).astype(np.float32)).view(-1, c, p)


def encode(weight: Tensor, params: dict[str, Any], known: Known, chance: torch.Generator) -> bytes:
    """`params`: c, p, seeds (how many are tried, up to 65535)."""
    c, p = params["c"], params["p"]
    flat = weight.flatten()
    blocks = F.pad(flat, (0, -len(flat) % c)).view(-1, c)
    search = search_of(c, p, min(params["seeds"], PERIOD), blocks.device)
    typical = float(blocks.square().mean().sqrt().clamp(min=1e-30))
    window = int(np.clip(np.round(np.log2(typical)) - 12, -120, 100))  # exponents reach from a 4096th to 8 of it
    parts = [search(part, window) for part in blocks.split(BLOCKS_AT_ONCE)]
    seeds, exponents, mantissas = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
    writer = Writer()
    writer.floats(np.array([window], "i1"))
    writer.integers(seeds, BITS)
    writer.integers(exponents, 4)
    writer.integers(mantissas.flatten() - LEAST, 4)
    return writer.data


def decode(reader: Reader, shape: tuple[int, ...], params: dict[str, Any]) -> Tensor:
    """(R, C) float32."""
    count, c, p = int(np.prod(shape)), params["c"], params["p"]
    blocks = -(-count // c)
    (window,) = reader.floats(1, "i1")
    seeds, exponents = reader.integers(blocks, BITS), reader.integers(blocks, 4)
    mantissas = torch.from_numpy(reader.integers(blocks * p, 4) + LEAST).view(blocks, p)
    t = mantissas * torch.exp2(torch.from_numpy(exponents + int(window)).float())[:, None]
    u = projection(seeds, c, p)
    whole = u[:, :, 0] * t[:, :1]
    for i in range(1, p):  # in this order: the same bits on every machine
        whole = whole + u[:, :, i] * t[:, i : i + 1]
    return whole.flatten()[:count].view(shape)


@lru_cache(maxsize=3)
def search_of(c: int, p: int, seeds: int, device: torch.device) -> "Search":
    """Made once: seconds."""
    return Search(c, p, seeds, device)


class Search:
    """The best seed for each block (B, C): `search(blocks, window)` -> seeds (B,), exponents (B,), mantissas (B, P)."""

    def __init__(self, c: int, p: int, seeds: int, device: torch.device) -> None:
        self.seeds = torch.arange(1, seeds + 1, device=device)
        self.u = projection(np.arange(1, seeds + 1), c, p).to(device)  # (S, C, P)
        basis = torch.linalg.qr(self.u.double())[0]  # (S, C, P); far better conditioned than U^T U
        self.inverse = torch.linalg.pinv(self.u.double()).float()  # (S, P, C)
        upper = torch.triu_indices(c, c, device=device)
        onto = basis @ basis.transpose(1, 2)  # (S, C, C): |Q^T w|^2 = <Q Q^T, w w^T>, a number for each i <= j
        twice = torch.where(upper[0] == upper[1], 1.0, 2.0)
        fast = torch.bfloat16 if native_bf16(device) else torch.float32
        self.onto = (onto[:, upper[0], upper[1]] * twice).to(fast)  # (S, C (C + 1) / 2)
        self.onto = F.pad(self.onto, (0, 0, 0, -seeds % GROUP))
        self.upper, self.fast = upper, fast

    def __call__(self, blocks: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        tried = self.promising(blocks)  # (B, K)
        t = torch.einsum("bkpc,bc->bkp", self.inverse[tried], blocks)
        largest = t.abs().amax(-1).clamp(min=1e-30)
        holding = (largest / MOST).log2().ceil() - window  # (B, K): the smallest whose mantissas reach so far
        exponents = torch.cat((holding, holding - 1), dim=1).clamp(0, EXPONENTS - 1)  # (B, 2 K)
        units = torch.exp2(exponents + window)[:, :, None]
        mantissas = (t.repeat(1, 2, 1) / units).round().clamp(LEAST, MOST)
        again = tried.repeat(1, 2)
        errors = (torch.einsum("bkcp,bkp->bkc", self.u[again], mantissas * units) - blocks[:, None]).square().sum(-1)
        best = errors.argmin(1)
        row = torch.arange(len(blocks), device=blocks.device)
        return self.seeds[again[row, best]], exponents[row, best].long(), mantissas[row, best].long()

    def promising(self, blocks: Tensor) -> Tensor:
        """(B, K) numbers of seeds: those of the groups in which some seed's basis holds most of the block."""
        unit = blocks / blocks.norm(dim=1, keepdim=True).clamp(min=1e-30)
        products = (unit[:, self.upper[0]] * unit[:, self.upper[1]]).to(self.fast)  # (B, C (C + 1) / 2)
        energy = [
            (part @ products.T).view(-1, GROUP, len(blocks)).amax(1) for part in self.onto.split(SEEDS_AT_ONCE)
        ]  # each (groups, B)
        best = torch.cat(energy).float().topk(min(TRIED, len(self.onto) // GROUP), dim=0).indices.T  # (B, groups)
        members = best[:, :, None] * GROUP + torch.arange(GROUP, device=blocks.device)
        return members.flatten(1).clamp(max=len(self.seeds) - 1)
