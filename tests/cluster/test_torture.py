"""Five seeds of `village torture`. `make torture` runs fifty, with longer stops."""

import psutil
import pytest

from cluster.processes import belonging
from cluster.torture.checker import check, summary
from cluster.torture.history import save
from cluster.torture.plan import Size, drawn
from cluster.torture.world import torture

SIZE = Size(seconds=5.0, tasks=120, pause_seconds=3.0)


@pytest.mark.parametrize("seed", [1, 6, 7, 11, 23])
async def test_every_promise_is_kept_under_faults(seed, tmp_path):
    history = await torture(drawn(seed, SIZE), tmp_path)
    findings = check(history)
    if findings:
        save(history, tmp_path / "history.jsonl")
    again = f"village torture --seed {seed} --seconds 5 --tasks 120 --pause 3"
    assert not findings, "\n".join([again, str(tmp_path / "history.jsonl"), *map(str, findings)])
    counts = summary(history)
    # Under faults, and yet most of it is done: a torture in which nothing happens shows nothing.
    assert counts["completed"] > 50 and counts["webhook events"] > 200 and counts["trust lines"] > 50
    assert [p for p in psutil.Process().children() if "cluster.torture" in " ".join(p.cmdline())] == []
    assert list(belonging(tmp_path)) == []
