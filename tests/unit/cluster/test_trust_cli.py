import asyncio
from argparse import Namespace
from pathlib import Path

import pytest

from cluster.cli.client import Refused
from cluster.cli.main import parser
from cluster.clock import utc_now
from cluster.events import Event
from cluster.settings import Settings
from cluster.store import Store
from cluster.trust.ledger import TrustRecord
from cluster.trust.service import LedgerKeeper


@pytest.fixture
async def settings(store: Store, tmp_path: Path) -> Settings:
    """Of a village with two ledgers."""
    at = utc_now()  # not of the import: evidence fades while other tests run
    for number in range(6):
        data = {"agent_id": ("ada", "bob")[number % 2], "outcome": "COMPLETED", "execution_time_seconds": 8.0}
        data["timeout_seconds"] = 10
        await store.publish(Event(kind="task.completed", subject=f"task_{number}", owner="u", at=at, data=data))
    keeper = LedgerKeeper(store)
    while await keeper.step(wait_seconds=0):
        pass
    return Settings(home=tmp_path, redis_url=store.url)


async def village(settings: Settings, *words: str) -> int:
    told: Namespace = parser().parse_args(["trust", *words])
    return await asyncio.to_thread(told.action, settings, told)


async def test_ledgers_are_verified_exported_and_explained(settings: Settings, tmp_path: Path, capsys):
    file = tmp_path / "ledger.jsonl"
    assert await village(settings, "verify", "--export", str(file)) == 0
    assert capsys.readouterr().out == "2 ledgers hold, 6 records checked\n"
    assert await village(settings, "verify", "ada") == 0
    assert capsys.readouterr().out == "1 ledger holds, 3 records checked\n"
    nowhere = settings.model_copy(update={"redis_url": "unix:///nowhere.sock"})
    assert await village(nowhere, "verify", "--file", str(file)) == 0
    assert capsys.readouterr().out == "2 ledgers hold, 6 records checked\n"
    assert await village(settings, "explain", "ada", "--limit", "2") == 0
    said = capsys.readouterr().out
    assert "prior" in said and "1 earlier" in said and "= 0.553571" in said and "3 records hold; head" in said
    for words in (("verify", "nobody"), ("explain", "nobody"), ("verify", "--file", str(tmp_path / "none"))):
        with pytest.raises(Refused, match="no"):
            await village(settings, *words)


async def test_one_edited_byte_is_found_and_its_record_named(settings: Settings, store: Store, tmp_path: Path, capsys):
    file = tmp_path / "ledger.jsonl"
    await village(settings, "verify", "--export", str(file))
    file.write_bytes(file.read_bytes().replace(b'"reason":"T', b'"reason":"X', 1))
    assert await village(settings, "verify", "--file", str(file)) == 1
    assert "BROKEN: ada: record 1 was changed after it was written (rec_00000001" in capsys.readouterr().out
    names = await store.ids(TrustRecord, "agent", "bob")
    await store.change(TrustRecord, names[1], lambda r: r.model_copy(update={"good": 1.5}))
    assert await village(settings, "verify") == 1
    said = capsys.readouterr().out
    assert f"BROKEN: bob: record 2 was changed after it was written ({names[1]}); before it 1 hold" in said
    assert "1 ledger holds, 4 records checked" in said
    assert await village(settings, "explain", "bob") == 1
    assert "BROKEN: record 2" in capsys.readouterr().out
