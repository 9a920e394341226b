import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from audit_harness import happened, kept, mover, person

from cluster.audit.archive import FOLDER
from cluster.audit.model import Entry
from cluster.cli.main import main
from cluster.clock import iso, utc_now
from cluster.store import Store

ANN = person("ann")


@pytest.fixture
async def village(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`await village("audit", "list")` -> exit status; eight entries, three of them in the archive."""
    monkeypatch.setenv("VILLAGE_HOME", str(tmp_path))
    monkeypatch.setenv("VILLAGE_REDIS_URL", store.url)
    monkeypatch.setenv("COLUMNS", "200")
    for number in range(8):
        await store.publish(happened("model.deleted" if number % 2 else "login.failed", number, ANN))
    await kept(store)
    await mover(store, tmp_path / FOLDER).move(3)

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["village", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return lambda *words: asyncio.to_thread(command, *words)


async def test_verify_says_that_the_log_holds_and_gives_an_anchor_for_the_next_time(village, capsys):
    assert await village("audit", "verify") == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "8 entries hold, 3 of them in the archive"
    anchor = last.removeprefix("anchor ")
    assert await village("audit", "verify", "--anchor", anchor) == 0
    assert await village("audit", "verify", "--anchor", anchor[:-1] + ("0" if anchor[-1] != "0" else "1")) == 1
    assert "entry 8" in capsys.readouterr().out
    assert await village("audit", "verify", "--anchor", "nonsense") == 2


async def test_verify_names_the_entry_that_was_changed(village, store: Store, capsys):
    ids = await store.ids(Entry, "all")
    await store.change(Entry, ids[2], lambda entry: entry.model_copy(update={"ip_address": "192.0.2.99"}))
    assert await village("audit", "verify") == 1
    assert "BROKEN: entry 6 (" in capsys.readouterr().out


async def test_list_filters_as_the_endpoint_does(village, capsys):
    assert await village("audit", "list", "--failures", "--limit", "2") == 0
    out = capsys.readouterr().out
    assert "login_failed !" in out and "model_deleted" not in out and "2 of 4" in out
    assert await village("audit", "list", "--since", iso(utc_now() + timedelta(days=1))) == 0
    assert "0 of 0" in capsys.readouterr().out
    assert await village("audit", "list", "--type", "nonsense") == 2


async def test_without_a_store_it_says_so_in_one_line(village, monkeypatch, capsys):
    monkeypatch.setenv("VILLAGE_REDIS_URL", "unix:///nonexistent/redis.sock")
    assert await village("audit", "verify") == 1
    assert capsys.readouterr().err.startswith("village: ")
