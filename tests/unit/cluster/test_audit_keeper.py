import asyncio
import os
import random
import sys
from pathlib import Path

import pytest
from audit_harness import ADMIN, happened, kept, log_of, person, program
from dying import Dying
from eventually import eventually

from cluster.audit.archive import FOLDER, Archive
from cluster.audit.keeper import AuditKeeper
from cluster.audit.model import Entry, Head
from cluster.audit.service import Audit
from cluster.errors import Unavailable
from cluster.events.cursor import Cursor
from cluster.presence import Presence
from cluster.store import Store

ANN, APP = person("ann"), program("app")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def audit(store: Store, tmp_path) -> Audit:
    return Audit(store, Archive(tmp_path / "audit"))


async def test_the_log_has_one_entry_for_each_event_that_matters_in_their_order(store: Store, audit: Audit):
    for number in range(6):
        await store.publish(happened("model.deleted" if number % 2 else "task.created", number, ANN))
    await kept(store)
    await kept(store)
    assert [entry.subject for entry in await log_of(audit)] == ["thing_1", "thing_3", "thing_5"]
    verdict = await audit.verify()
    assert verdict.fault is None and verdict.checked == 3 and verdict.hash == (await store.get(Head, "audit")).hash


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
async def test_a_keeper_killed_at_any_commit_leaves_nothing_out_and_doubles_nothing(store, audit, at, after):
    dying = Dying(store.url, at, after)

    async def live() -> None:
        keeper = AuditKeeper(dying)
        await keeper.open()
        for number in range(6):
            await store.publish(happened("model.deleted", number, ANN))
            await keeper.step(wait_seconds=0)
            await keeper.beat()

    with pytest.raises(asyncio.CancelledError):
        await live()
    await dying.close()
    await store.publish(happened("model.deleted", 6, ANN))
    await kept(store)
    told = {event.subject for event in await store.events() if event.kind == "model.deleted"}
    assert [entry.subject for entry in await log_of(audit)] == sorted(told) and (await audit.verify()).fault is None


async def test_two_keepers_at_once_write_each_event_once(store: Store, audit: Audit):
    for number in range(60):
        await store.publish(happened("model.deleted", number, ANN))
    other = Store(store.url)
    await asyncio.gather(kept(store), kept(other))
    await other.close()
    assert [e.subject for e in await log_of(audit)] == [f"thing_{n}" for n in range(60)]
    assert (await audit.verify()).fault is None and await store.count(Entry, "all") == 60


async def test_a_keeper_whose_cursor_was_lost_goes_on_after_the_chains_end(store: Store, audit: Audit):
    keeper = await kept(store)
    await store.publish(happened("model.deleted", 1, ANN))
    while await keeper.step(0):
        pass
    again = AuditKeeper(store)
    await again.open()
    assert again.cursor == keeper.cursor and await store.find(Cursor, "audit") is None
    await again.beat()
    assert (await store.get(Cursor, "audit")).event_id == keeper.cursor
    assert (await store.get(Presence, "audit")).data["cursor"] == keeper.cursor


async def test_a_keeper_without_a_store_says_so_and_opens_again(store: Store):
    away = AuditKeeper(Store("unix:///nonexistent/redis.sock"))
    with pytest.raises(Unavailable):
        await away.open()


HARMS = [
    "body", "details", "swap", "drop first", "drop middle", "drop last", "insert", "head", "unreadable", "forged tail",
]  # fmt: skip


async def harmed(store: Store, harm: str) -> str:
    """Change the stored log behind its back; the number that the verdict should name, or words of it."""
    ids = await store.ids(Entry, "all")
    if harm == "body":
        await store.change(Entry, ids[2], lambda e: e.model_copy(update={"success": False}))
        return "entry 3 ("
    if harm == "details":
        await store.change(Entry, ids[2], lambda e: e.model_copy(update={"details": e.details.replace("POST", "PAST")}))
        return "entry 3 ("
    if harm == "swap":
        two = await store.many(Entry, ids[2:4])
        for mine, other in zip(ids[2:4], two[::-1], strict=True):
            await store._redis.hset("{village}:log:" + mine, "body", other.model_dump_json())
        return "entry 3 is missing"
    if harm.startswith("drop"):
        index = {"first": 0, "middle": 2, "last": -1}[harm.split()[1]]
        gone = await store.delete(Entry, ids[index])
        return f"entry {gone.number} is missing"
    if harm == "insert":
        entry = await store.get(Entry, ids[2])
        await store.create(entry.model_copy(update={"log_id": ids[2] + "0", "action": "forged"}))
        return "entry 4 is missing"
    if harm == "head":
        await store.change(Head, "audit", lambda h: h.model_copy(update={"hash": "0" * 64}))
        return "end"
    if harm == "unreadable":
        await store._redis.hset("{village}:log:" + ids[3], "body", "{")
        return "entry 4 cannot be read"
    entry = await store.get(Entry, ids[-1])
    update = {"log_id": "log_ffffffffffff", "created_ms": 2**44, "number": entry.number + 1}
    await store.create(entry.model_copy(update=update))
    return f"entry {entry.number + 1} ("


@pytest.mark.parametrize("harm", HARMS)
async def test_verify_finds_what_was_done_to_the_log_and_where(store: Store, audit: Audit, harm: str):
    for number in range(6):
        await store.publish(happened("model.deleted", number, ANN))
    await kept(store)
    assert (await audit.verify()).fault is None
    expected = await harmed(store, harm)
    assert expected in ((await audit.verify()).fault or "")


async def test_a_log_that_was_written_anew_is_told_by_a_hash_that_was_kept_elsewhere(store: Store, audit: Audit):
    await store.publish(happened("model.deleted", 1, ANN))
    await (await kept(store)).beat()
    good = await audit.verify()
    anchor = (good.checked, good.hash)
    for kind, some in ((Head, ["audit"]), (Entry, await store.ids(Entry, "all"))):
        for name in some:
            await store.delete(kind, name)
    assert "missing" in ((await audit.verify(anchor)).fault or "")
    await store.publish(happened("model.deleted", 2, ANN))
    await kept(store)
    assert (await audit.verify()).fault is None and "once had" in ((await audit.verify(anchor)).fault or "")


async def test_verify_beside_a_keeper_that_writes_finds_nothing_wrong(store: Store, audit: Audit):
    other, found = Store(store.url), []

    async def look() -> None:
        while (await audit._head()).length < 80:
            found.append((await audit.verify()).fault)

    async def write() -> None:
        for number in range(80):
            await other.publish(happened("model.deleted", number, ANN))
            await kept(other)

    await asyncio.gather(look(), write())
    await other.close()
    assert found and not any(found)
    assert len(await log_of(audit, ADMIN)) == 80


KEEPER = """
import asyncio, sys
from cluster.audit.keeper import keep_audit
from cluster.settings import Settings
from cluster.store import Store

async def main():
    settings = Settings()
    await keep_audit(Store(settings.redis), settings)

asyncio.run(main())
"""


async def test_a_keeper_process_that_is_killed_again_and_again_keeps_each_event_once(store: Store, tmp_path: Path):
    audit = Audit(store, Archive(tmp_path / FOLDER))
    environment = {
        "VILLAGE_HOME": str(tmp_path), "VILLAGE_REDIS_URL": store.url, "VILLAGE_AUDIT_KEEP_ENTRIES": "20",
    }  # fmt: skip
    published = 0
    for life in range(3):
        before = await audit._head()
        keeper = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KEEPER, env={**os.environ, **environment}, cwd=ROOT
        )

        async def at_work(life: int = life, before: Head = before) -> bool:
            nonlocal published
            for _ in range(2):
                await store.publish(happened("model.deleted", published, ANN))
                published += 1
            now = await audit._head()
            return now.length > before.length and (life == 0 or now.archived > before.archived)

        await eventually(at_work, within=30)
        await asyncio.sleep(random.random() * 0.3)  # somewhere in its work, moving old entries too
        keeper.kill()
        await keeper.wait()
    await kept(store)
    assert [entry.subject for entry in await log_of(audit, limit=100)] == [f"thing_{n}" for n in range(published)]
    verdict = await audit.verify()
    assert verdict.fault is None and verdict.checked == published and verdict.archived > 0
