import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from audit_harness import ADMIN, ALL, happened, kept, log_of, mover, person, program
from dying import Dying
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.audit.archive import Archive, Foreign
from cluster.audit.filters import Filter
from cluster.audit.model import Entry, Head
from cluster.audit.mover import BATCH, Damaged, Mover
from cluster.audit.service import Audit
from cluster.clock import utc_now
from cluster.errors import Unavailable
from cluster.identity.model import Principal
from cluster.identity.records import ApiKey
from cluster.store import Store
from cluster.store.indexes import entries

ANN, BOB, APP, BAD = person("ann"), person("robert"), program("app"), program("o'app\\")
KINDS = ("model.deleted", "login.failed", "key.used", "agent.registered", "training.failed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def audit(store: Store, folder: Path) -> Audit:
    return Audit(store, Archive(folder))


async def written(store: Store, count: int = 24) -> None:
    """Entries of four principals and five kinds."""
    for number in range(count):
        who = (ANN, BOB, APP, BAD)[number % 4]
        await store.publish(happened(KINDS[number % 5], number, who, data={"name": f"thing {number}"}))
    await kept(store)


async def test_what_has_moved_is_read_as_if_it_had_not(store: Store, audit: Audit, folder: Path):
    await written(store)
    before = await log_of(audit)
    for count in (5, 10):
        assert await mover(store, folder).move(count) == count
        assert await log_of(audit) == before
    assert await store.count(Entry, "all") == 9 and (await store.get(Head, "audit")).archived == 15
    assert (await audit.verify()).fault is None and (await audit.verify()).checked == 24
    await written(store, 3)
    assert (await log_of(audit))[:24] == before and (await audit.verify()).checked == 27
    # A page that begins in Redis and ends in the archive, and one that lies beyond both.
    assert [e.number for e in (await audit.page(ADMIN, ALL, 10, 5)).items] == [17, 16, 15, 14, 13]
    assert (await audit.page(ADMIN, ALL, 30, 5)).items == []


def fits(entry: Entry, who: Principal, wanted: Filter) -> bool:
    """What a filter means, said once more."""
    return (
        (who.is_admin or bool(entry.parties & {who.owner}))
        and wanted.client_id in ("", entry.client_id)
        and wanted.event_type in ("", entry.event_type)
        and wanted.action in ("", entry.action)
        and wanted.ip_address in ("", entry.ip_address)
        and wanted.success in (None, entry.success)
        and (wanted.since is None or entry.created_at >= wanted.since)
        and (wanted.until is None or entry.created_at <= wanted.until)
    )


async def test_filters_and_pages_mean_the_same_in_redis_in_the_archive_and_across_both(store, audit, folder):
    await written(store)
    everything = await log_of(audit)
    times = [e.created_at + timedelta(milliseconds=n) for e in everything[::5] for n in (-1, 0)]
    choices = st.builds(
        Filter, client_id=st.sampled_from(["", "app", "o'app\\", "nobody"]),
        action=st.sampled_from(["", "login_failed"]), event_type=st.sampled_from(["", "authentication", "agent"]),
        success=st.sampled_from([None, True, False]),
        ip_address=st.sampled_from(["", "192.0.2.3", "192.0.2.9"]), since=st.sampled_from([None, *times]),
        until=st.sampled_from([None, *times]),
    )  # fmt: skip
    loop = asyncio.get_running_loop()

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(choices, st.sampled_from([ADMIN, ANN, APP, BAD]), st.integers(0, 8), st.integers(1, 8))
    def look(wanted: Filter, who: Principal, offset: int, limit: int) -> None:
        page = asyncio.run_coroutine_threadsafe(audit.page(who, wanted, offset, limit), loop).result()
        expected = [entry for entry in everything[::-1] if fits(entry, who, wanted)]
        assert page.total == len(expected) and page.items == expected[offset : offset + limit]

    for count in (0, 10, 14):
        await mover(store, folder).move(count)
        await asyncio.to_thread(look)


async def test_a_user_reads_what_the_clients_that_are_theirs_did(store: Store, audit: Audit, folder: Path):
    at = utc_now()
    await store.create(
        ApiKey(
            key_id="key_1", digest="d", client_id="app", name="n", scopes=(), rate_limit_per_minute=1,
            rate_limit_per_hour=1, created_by=ANN.owner, created_at=at,
        )
    )  # fmt: skip
    await written(store)
    for count in (0, 12):
        await mover(store, folder).move(count)
        assert {e.actor for e in await log_of(audit, ANN)} == {"user_ann", "client_app"}
        assert {e.actor for e in await log_of(audit, ANN, Filter(client_id="app"))} == {"client_app"}
        assert {e.actor for e in await log_of(audit, BOB)} == {"user_robert"}
        assert await log_of(audit, BOB, Filter(client_id="app")) == []


@pytest.mark.parametrize("after", [False, True])
async def test_a_move_killed_between_the_archive_and_redis_doubles_nothing(store, audit, folder, after):
    await written(store)
    before = await log_of(audit)
    dying = Dying(store.url, 1, after)
    with pytest.raises(asyncio.CancelledError):
        await mover(dying, folder).move(10)
    await dying.close()
    assert await Archive(folder).count(ALL, 1_000_000) == 10  # the rows are there
    assert await log_of(audit) == before and (await audit.verify()).fault is None
    assert await mover(store, folder).move(14) == 14  # the same ones, and more
    assert await log_of(audit) == before and (await audit.verify()).fault is None
    assert await Archive(folder).count(ALL, 1_000_000) == (24 if after else 14)


async def test_two_that_move_at_once_move_each_entry_once(store: Store, audit: Audit, folder: Path):
    await written(store)
    other = Store(store.url)
    moved = await asyncio.gather(*(mover(s, folder).move(10) for s in (store, other, store, other)))
    await other.close()
    archived = (await store.get(Head, "audit")).archived
    assert sum(moved) == archived == await Archive(folder).count(ALL, 1_000_000) > 0
    assert len(await log_of(audit)) == 24 and (await audit.verify()).fault is None


async def test_reading_and_writing_go_on_while_entries_move(store: Store, audit: Audit, folder: Path):
    await written(store, 40)
    other, seen = Store(store.url), []

    async def move() -> None:
        for _ in range(10):
            await mover(other, folder).move(4)

    async def look() -> None:
        while (await audit._head()).archived < 40:
            seen.append([e.number for e in (await audit.page(ADMIN, Filter(until=until), 0, 40)).items])
            assert (await audit.verify()).fault is None

    until = (await audit.page(ADMIN, ALL, 0, 1)).items[0].created_at
    await asyncio.gather(move(), look())
    await other.close()
    assert seen and all(numbers == list(range(40, 0, -1)) for numbers in seen)


@pytest.mark.parametrize("column", ["action", "success", "ip_address", "details", "previous", "created_ms"])
async def test_one_changed_value_in_the_archive_is_found(store: Store, audit: Audit, folder: Path, column: str):
    await written(store)
    await mover(store, folder).move(20)
    other = {"success": "false", "created_ms": "1", "details": '\'{"name": "thing 7"}\''}.get(column, "'x'")
    table = await (await _lance()).connect_async(str(folder))
    await (await table.open_table("entries")).update(where="number = 8", updates_sql={column: other})
    assert "entry 8 (" in ((await audit.verify()).fault or "")


async def test_a_row_that_is_gone_from_the_archive_is_missed(store: Store, audit: Audit, folder: Path):
    await written(store)
    await mover(store, folder).move(20)
    table = await (await _lance()).connect_async(str(folder))
    await (await table.open_table("entries")).delete("number = 8")
    assert (await audit.verify()).fault == "entry 8 is missing"


async def _lance():
    import lancedb

    return lancedb


async def test_nothing_leaves_redis_for_an_archive_of_another_village_or_behind_a_gap(store, folder):
    await written(store)
    await mover(store, folder).move(10)
    await store._redis.flushall()
    await written(store)
    with pytest.raises(Foreign):
        await mover(store, folder).move(10)
    ids = await store.ids(Entry, "all")
    assert len(ids) == 24
    await store.delete(Entry, ids[2])
    with pytest.raises(Damaged):
        await mover(store, folder).move(10)
    assert await store.count(Entry, "all") == 23


async def test_an_archive_that_is_gone_is_said_to_be_and_not_taken_for_an_empty_one(store, audit, folder):
    await written(store)
    await mover(store, folder).move(10)
    elsewhere = Audit(store, Archive(folder.parent / "elsewhere"))
    with pytest.raises(Unavailable):
        await elsewhere.page(ADMIN, ALL)


async def test_entries_move_when_they_are_old_or_too_many_and_not_a_few_at_a_time(store: Store, folder: Path):
    await written(store, 30)
    hour, now = timedelta(hours=1), utc_now()

    def made(keep: timedelta, most: int, at=now) -> Mover:
        return Mover(store, Archive(folder), keep, most, clock=lambda: at)

    assert await made(hour, 100).due() == 0 and await made(hour, 20).due() == 10
    later = made(hour, 100, now + 2 * hour)
    assert await later.due() == 30 and BATCH > 30
    later._moved_at = asyncio.get_running_loop().time()
    assert await later.step() == 0  # fewer than a batch, and the last move was just now
    later._moved_at -= 2 * hour.total_seconds()
    assert await later.step() == 30 and await later.due() == 0 and await store.count(Entry, "all") == 0


def test_a_gateway_does_not_load_the_archives_library_until_somebody_looks_back():
    code = "import sys, cluster.audit.service, serve_apps.gateway; print('lancedb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_the_sets_of_an_entry_are_those_that_the_filters_name():
    texts = {name: name for name, field in Entry.model_fields.items() if field.annotation is str}
    entry = Entry(number=1, created_ms=1, success=True, **texts)
    whole = Filter(("owner",), "client_id", "event_type", "action", True, "ip_address")
    assert {key for group in whole.groups() for key in group} < entries(entry).keys()
    assert {key for group in ALL.groups() for key in group} < entries(entry).keys()
