"""Records that stand in several of their kind's sorted sets at once: for lists with filters that combine."""

from collections.abc import Sequence
from pathlib import Path

from cluster.store.indexes import SCRATCH
from cluster.store.store import Store

SCRIPT = (Path(__file__).parent / "intersect.lua").read_text()


async def intersect(
    store: Store, groups: Sequence[Sequence[str]], low: float, high: float, offset: int, limit: int
) -> tuple[int, list[str]]:
    """Ids that stand in some set of every group with `low <= score <= high`: how many, and a page, highest first.

    One round trip; Redis works in proportion to the smaller of two sets that meet, so the sets must be bounded.
    """
    keys = [*SCRATCH, *(key for group in groups for key in group)]
    arguments = [*(_bound(score) for score in (low, high)), offset, limit, *(len(group) for group in groups)]
    total, *ids = await store.run(SCRIPT, keys, arguments)
    return int(total), ids


def _bound(score: float) -> str:
    return {float("-inf"): "-inf", float("inf"): "+inf"}.get(score) or repr(float(score))
