"""VPTQ (arXiv:2409.17066): vectors of `dim` weights of a column become the numbers of their nearest centroids.

The codebook is k-means with k-means++ seeds, a vector weighted by its column's diagonal of the Hessian; `residual` adds
a second codebook for what the first leaves over. Columns are taken one by one with the error fed back as in GPTQ (the
paper's channel-independent second-order optimisation). A codebook is stored in float16 and counts: for the small
matrices of a small model that is much. The paper's outlier columns and its norm splitting are left out.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from train.compression.bits import Reader, Writer
from train.compression.codecs import Known
from train.compression.gptq import fed_back

ITERATIONS = 10
SAMPLED = 16_384  # vectors that a codebook is made of
AT_ONCE = 8192  # vectors whose distances are held at a time


def encode(weight: Tensor, params: dict[str, Any], known: Known, chance: torch.Generator) -> bytes:
    """`params`: dim, centroids (a power of two), residual (centroids of the second codebook; 0: none)."""
    dim, (rows, columns) = params["dim"], weight.shape
    padded = F.pad(weight, (0, 0, 0, -rows % dim))
    vectors = padded.T.reshape(-1, dim)  # (C R / dim, dim), column by column
    matters = known.columns(weight).repeat_interleave(len(vectors) // columns)
    if known.rows is not None:
        of_rows = F.pad(known.rows.to(weight), (0, -rows % dim)).view(-1, dim).mean(1)
        matters = matters * of_rows.repeat(columns)
    books = [codebook(vectors, matters, params["centroids"], chance)]
    if params["residual"]:
        left = vectors - books[0][nearest(vectors, books[0])]
        books.append(codebook(left, matters, params["residual"], chance))
    indices = torch.zeros(len(books), columns, len(vectors) // columns, dtype=torch.int64)

    def rounded(column: Tensor, j: int) -> Tensor:
        wanted, found = column.view(-1, dim), torch.zeros_like(column).view(-1, dim)
        for number, book in enumerate(books):
            chosen = nearest(wanted - found, book)
            indices[number, j] = chosen.cpu()
            found = found + book[chosen]
        return found.flatten()

    fed_back(padded, known, rounded, by_size=True)
    writer = Writer()
    for book, chosen in zip(books, indices, strict=True):
        writer.floats(book.cpu().numpy().astype("<f2").flatten())
        writer.integers(chosen.flatten().numpy(), _width(len(book)))
    return writer.data


def decode(reader: Reader, shape: tuple[int, ...], params: dict[str, Any]) -> Tensor:
    """(R, C) float32."""
    (rows, columns), dim = shape, params["dim"]
    each = -(-rows // dim)  # vectors of a column
    whole = torch.zeros(columns * each, dim)
    for size in filter(None, (params["centroids"], params["residual"])):
        book = torch.from_numpy(reader.floats(size * dim, "<f2").astype("f4")).view(size, dim)
        whole = whole + book[torch.from_numpy(reader.integers(columns * each, _width(size)))]
    return whole.view(columns, each * dim).T[:rows].contiguous()


def codebook(vectors: Tensor, matters: Tensor, size: int, chance: torch.Generator) -> Tensor:
    """`size` centroids (size, dim), float16 numbers, of vectors (N, dim) with weights (N,)."""
    if len(vectors) > SAMPLED:
        some = torch.randperm(len(vectors), generator=chance)[:SAMPLED].to(vectors.device)
        vectors, matters = vectors[some], matters[some]
    book = _plus_plus(vectors, matters, size, chance)
    for _ in range(ITERATIONS):
        mine = nearest(vectors, book)
        mass = torch.zeros(size, device=vectors.device).index_add_(0, mine, matters)
        sums = torch.zeros_like(book).index_add_(0, mine, vectors * matters[:, None])
        book = torch.where(mass[:, None] > 0, sums / mass.clamp(min=1e-12)[:, None], book)
    return book.half().float()


def _plus_plus(vectors: Tensor, matters: Tensor, size: int, chance: torch.Generator) -> Tensor:
    """k-means++: each seed is drawn in proportion to weight times squared distance from the seeds before it."""
    distance, chosen = torch.full_like(matters, torch.inf), []
    draws = torch.rand(size, generator=chance, dtype=torch.float64).tolist()
    for draw in draws:
        share = matters if not chosen else matters * distance
        summed = share.double().cumsum(0)
        place = int(torch.searchsorted(summed, draw * float(summed[-1])).clamp(max=len(vectors) - 1))
        chosen.append(place)
        distance = torch.minimum(distance, ((vectors - vectors[place]) ** 2).sum(1))
    return vectors[torch.tensor(chosen, device=vectors.device)]


def nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """(N,) numbers of the nearest centroids of vectors (N, dim)."""
    square = (book**2).sum(1)
    return torch.cat([(square - 2 * part @ book.T).argmin(1) for part in vectors.split(AT_ONCE)])


def _width(size: int) -> int:
    return int(np.ceil(np.log2(size)))
