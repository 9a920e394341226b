"""The farm's keeper, over a real Redis: whoever is killed anywhere, the next one goes on and nothing is done twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from dying import Dying
from eventually import eventually
from restartable import Redis
from safetensors.numpy import load_file, save

from cluster.clock import utc_now
from cluster.errors import Conflict, Forbidden, Invalid
from cluster.farm.checkpoints import Files
from cluster.farm.keeper import FarmKeeper, keep_farm
from cluster.farm.model import Client, Desk, FarmTask, Rank, RankState, TaskState
from cluster.farm.order import Order
from cluster.farm.protocol import Heartbeat, Progress, Replaced, Result
from cluster.farm.service import FOLDER, Farm
from cluster.identity.model import SYSTEM, Principal
from cluster.settings import Settings
from cluster.store import Store
from cluster.trust.service import Trust

ANN = Principal(principal_id="user_ann", owner="user_ann", username="ann", scopes=frozenset({"write"}))


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Village:
    """A farm, and clients that work when they are told to."""

    def __init__(self, store: Store, home: Path, clock=utc_now) -> None:
        settings = Settings(home=home, redis_url=store.url)
        self.store, self.clock = store, clock
        self.farm = Farm(store, Trust(store, clock), settings, clock)
        self.fleet = self.farm.fleet
        self.files = Files(settings.home / FOLDER)

    async def keeper(self, store: Store | None = None) -> FarmKeeper:
        store = store or self.store
        made = FarmKeeper(store, self.files, Trust(store, self.clock), timedelta(seconds=30), self.clock)
        await made.open()
        return made

    async def join(self, *names: str) -> None:
        await self.fleet.sit("desk")
        for name in names:
            await self.fleet.connect(SYSTEM, name, "desk", f"conn_{name}")

    async def order(self, **fields) -> str:
        return (await self.farm.order(SYSTEM, Order(**{"type": "training"} | fields))).task_id

    async def ask(self, name: str) -> Rank | None:
        return (await self.fleet.ask(name, f"conn_{name}")).rank

    async def upload(self, name: str, rank: Rank, value: float) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield save({"w": np.full(5, value, np.float32)})

        await self.farm.checkpoints.upload(SYSTEM, rank.task_id, rank.rank, rank.round, name, None, body())

    async def report(self, name: str, task_id: str, status="completed", **fields) -> str:
        said = Result(task_id=task_id, status=status, **fields)
        return await self.fleet.result(name, f"conn_{name}", said)

    async def task(self, task_id: str) -> FarmTask:
        return await self.store.get(FarmTask, task_id)


async def settled(keeper: FarmKeeper) -> None:
    """Until nothing follows from anything: what time brings is an event of the next step."""
    quiet = 0
    while quiet < 2:
        busy = await keeper.step(wait_seconds=0) or keeper.aside.tasks
        await asyncio.gather(*keeper.aside.tasks, return_exceptions=True)
        quiet = 0 if busy else quiet + 1


@pytest.fixture
def village(store: Store, tmp_path: Path) -> Village:
    return Village(store, tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(store: Store, tmp_path: Path, clock: Clock) -> Village:
    """With a clock that stands still."""
    return Village(store, tmp_path, clock)


async def work_all(village: Village, task_id: str, names: list[str], keeper: FarmKeeper, dying: Dying | None) -> None:
    """Two clients work through every round; the keeper is replaced when it has died."""
    for _ in range(200):
        if (await village.task(task_id)).state is TaskState.COMPLETED and (await village.task(task_id)).tidy:
            return
        for name in names:
            rank = await village.ask(name)
            if rank is not None:
                await village.upload(name, rank, 10.0 * rank.round + rank.rank)
                await village.report(name, task_id, samples=1 + 2 * rank.rank)
        try:
            await settled(keeper)
        except asyncio.CancelledError:
            assert dying is not None and dying.left <= 0
        if dying is not None and dying.left <= 0 and keeper.store is dying:
            keeper = await village.keeper()
    raise AssertionError(await village.task(task_id))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
async def test_a_keeper_that_is_killed_at_any_commit_is_followed_by_one_that_goes_on(village, at: int, after: bool):
    await village.join("a", "b")
    task_id = await village.order(n_clients=2, rounds=2)
    dying = Dying(village.store.url, 10**9, after)
    keeper = await village.keeper(dying)
    dying.left = at
    await work_all(village, task_id, ["a", "b"], keeper, dying)
    assert dying.left <= 0, "it did not die: there are fewer commits than this test thinks"
    await dying.close()
    done = await village.task(task_id)
    assert done.aggregated is True and [ended.completed for ended in done.history] == [2, 2]
    found = load_file(village.files.average(task_id, 2))["w"]
    np.testing.assert_allclose(found, np.full(5, 10 + 3 / 4), rtol=1e-6)
    told = Counter(event.kind for event in await village.store.events(limit=500))
    assert (told["farm.rank_completed"], told["farm.round_completed"], told["farm.task_completed"]) == (4, 1, 1)
    assert told["farm.rank_assigned"] == 4 and told["farm.task_started"] == 1
    for name in ("a", "b"):
        client = await village.store.get(Client, name)
        assert not client.holds and client.completed + client.failed == len(client.recent)
    assert not list(village.files.folder.rglob("*.part"))


async def test_a_keeper_killed_while_it_averages_leaves_nothing_half_done(village, monkeypatch: pytest.MonkeyPatch):
    await village.join("a")
    task_id = await village.order()
    keeper = await village.keeper()
    await village.ask("a")
    await settled(keeper)
    rank = await village.ask("a")
    await village.upload("a", rank, 4.0)
    await village.report("a", task_id)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    average = Files.averaged

    def slowly(files, task, shares):
        loop.call_soon_threadsafe(begun.set)
        return average(files, task, shares)

    monkeypatch.setattr(Files, "averaged", slowly)
    await keeper.step(wait_seconds=0)
    await begun.wait()
    keeper.aside.cancel()
    await asyncio.gather(*keeper.aside.tasks, return_exceptions=True)
    assert (await village.task(task_id)).state is TaskState.RUNNING
    await settled(await village.keeper())
    assert (await village.task(task_id)).state is TaskState.COMPLETED
    assert load_file(village.files.average(task_id, 1))["w"].tolist() == [4.0] * 5


async def test_two_keepers_hand_out_no_rank_twice(village):
    names = [f"c{n}" for n in range(8)]
    await village.join(*names)
    tasks = [await village.order(n_clients=3, rounds=2) for _ in range(4)]
    other = Store(village.store.url)
    keepers = [await village.keeper(), await village.keeper(other)]
    stop = False

    async def work(name: str) -> None:
        while not stop:
            rank = await village.ask(name)
            if rank is None:
                await asyncio.sleep(0.005)
                continue
            await village.report(name, rank.task_id, round=rank.round, attempt=rank.attempt)

    async def keep(keeper: FarmKeeper) -> None:
        while not stop:
            await keeper.step(wait_seconds=0)
            await asyncio.sleep(0)

    async def all_done() -> bool:
        return all(task.state is TaskState.COMPLETED for task in await village.store.many(FarmTask, tasks))

    running = [asyncio.create_task(work(name)) for name in names] + [asyncio.create_task(keep(k)) for k in keepers]
    await eventually(all_done, within=20)
    stop = True
    await asyncio.gather(*running)
    await other.close()
    told = Counter(event.kind for event in await village.store.events(limit=5000))
    assert told["farm.rank_assigned"] == told["farm.rank_completed"] == 4 * 3 * 2
    assert told["farm.task_completed"] == 4 and told["farm.round_completed"] == 4
    clients = await village.store.many(Client, names)
    assert sum(client.completed for client in clients) == 24


async def test_a_result_whose_answer_was_lost_is_a_duplicate(village):
    await village.join("a")
    task_id = await village.order()
    keeper = await village.keeper()
    await village.ask("a")
    await settled(keeper)
    dying = Dying(village.store.url, 1, after=True)
    village.fleet.store = dying
    with suppress(asyncio.CancelledError):
        await village.report("a", task_id)
    village.fleet.store = village.store
    assert await village.report("a", task_id) == "duplicate"
    assert (await village.store.get(Client, "a")).completed == 1
    await dying.close()


async def test_a_client_whose_process_died_keeps_its_rank_and_is_given_nothing_meanwhile(timed, clock: Clock):
    await timed.join("a", "b")
    await timed.ask("b")
    keeper = await timed.keeper()
    clock.forward(11)  # the desk was not heard of since
    task_id = await timed.order()
    await settled(keeper)
    assert (await timed.task(task_id)).handed == 0, "b waits at a process that is gone"
    assert (await timed.store.get(Client, "b")).waiting_since is None
    await timed.fleet.sit("other")
    await timed.fleet.connect(SYSTEM, "a", "other", "conn_new")
    with pytest.raises(Replaced):
        await timed.ask("a")
    await timed.fleet.ask("a", "conn_new")
    await settled(keeper)
    held = await timed.fleet.ask("a", "conn_new")
    assert held.rank is not None and held.rank.attempt == 1
    clock.forward(20)
    await timed.fleet.connect(SYSTEM, "a", "third", "conn_third")
    await settled(keeper)
    again = await timed.fleet.ask("a", "conn_third")
    assert again.rank == held.rank, "the lease outlives the process"
    clock.forward(7200)
    await keeper.beat()
    assert await timed.store.count(Desk, "at") == 0


async def test_a_lease_ends_when_its_client_is_silent_and_not_before(timed, clock: Clock):
    await timed.join("a")
    task_id = await timed.order()
    keeper = await timed.keeper()
    await timed.ask("a")
    await settled(keeper)
    for _ in range(4):
        clock.forward(25)
        await timed.fleet.heartbeat("a", "conn_a", Heartbeat())
        await settled(keeper)
    clock.forward(25)
    assert await timed.fleet.progress("a", "conn_a", Progress(task_id=task_id, progress=5)) == ""
    clock.forward(29)
    await settled(keeper)
    assert (await timed.store.get(Client, "a")).holds
    clock.forward(2)
    await settled(keeper)
    client = await timed.store.get(Client, "a")
    assert not client.holds and client.failed == 1
    assert (await timed.task(task_id)).open_ranks == (0,)
    assert await timed.report("a", task_id) == "stale"
    assert await timed.fleet.progress("a", "conn_a", Progress(task_id=task_id, progress=9)) == "stale"


async def test_a_rank_has_its_time_and_a_pause_does_not_count(timed, clock: Clock):
    await timed.join("a")
    task_id = await timed.order(timeout_seconds=60, max_retries=0)
    keeper = await timed.keeper()
    await timed.ask("a")
    await settled(keeper)

    async def on(seconds: float) -> None:
        for _ in range(int(seconds / 10)):
            clock.forward(10)
            await timed.fleet.heartbeat("a", "conn_a", Heartbeat())
            await settled(keeper)

    await on(50)
    await timed.farm.set_status(SYSTEM, task_id, "paused", "")
    await on(300)
    assert (await timed.store.get(Client, "a")).holds
    await timed.farm.set_status(SYSTEM, task_id, "running", "")
    await on(10)
    assert (await timed.task(task_id)).state is TaskState.FAILED, "50 s before the pause and 10 s after it"
    [event] = [e for e in await timed.store.events(limit=500) if e.kind == "farm.rank_timeout"]
    assert (event.data["outcome"], event.data["timeout_seconds"]) == ("TIMEOUT", 60)
    assert 60 <= event.data["execution_time_seconds"] <= 70
    assert event.data["agent_id"] == "farm_a" and not (await timed.store.get(Client, "a")).holds


async def test_a_paused_task_does_not_end_its_round(village):
    await village.join("a")
    task_id = await village.order()
    keeper = await village.keeper()
    await village.ask("a")
    await settled(keeper)
    await village.farm.set_status(SYSTEM, task_id, "paused", "")
    assert await village.report("a", task_id) == ""
    await settled(keeper)
    assert (await village.task(task_id)).state is TaskState.PAUSED
    await village.farm.set_status(SYSTEM, task_id, "running", "")
    await settled(keeper)
    assert (await village.task(task_id)).state is TaskState.COMPLETED


async def test_a_rank_nobody_survives_is_given_up(timed, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.farm.machine.MAX_LOSSES", 3)
    await timed.join("a")
    task_id = await timed.order()
    keeper = await timed.keeper()
    for _ in range(3):
        await timed.fleet.sit("desk")
        await timed.ask("a")
        await settled(keeper)
        assert (await timed.store.get(Client, "a")).holds
        clock.forward(31)
        await settled(keeper)
    done = await timed.task(task_id)
    assert done.state is TaskState.FAILED and "not heard of" in done.error


async def test_late_words_about_an_earlier_round_do_not_count_for_this_one(village):
    await village.join("a")
    task_id = await village.order(rounds=2)
    keeper = await village.keeper()
    await village.ask("a")
    await settled(keeper)
    assert await village.report("a", task_id, round=0, attempt=1) == ""
    await village.ask("a")
    await settled(keeper)
    assert (await village.ask("a")).round == 1
    assert await village.report("a", task_id, round=0, attempt=1) == "duplicate"
    said = Progress(task_id=task_id, progress=99, round=0)
    assert await village.fleet.progress("a", "conn_a", said) == "duplicate"
    assert (await village.store.get(Rank, f"{task_id}.1.0")).progress == 0
    assert await village.report("a", task_id, round=1) == ""


async def test_a_round_that_cannot_be_averaged_fails_its_task_with_the_reason(village, monkeypatch):
    def full(files, task, shares):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Files, "averaged", full)
    await village.join("a")
    task_id = await village.order()
    keeper = await village.keeper()
    await village.ask("a")
    await settled(keeper)
    await village.upload("a", await village.ask("a"), 1.0)
    await village.report("a", task_id)
    await settled(keeper)
    done = await village.task(task_id)
    assert done.state is TaskState.FAILED and "could not be averaged" in done.error


async def test_old_checkpoints_go_and_those_that_count_stay(village):
    await village.join("a")
    task_id = await village.order(rounds=6)
    keeper = await village.keeper()
    await work_all(village, task_id, ["a"], keeper, None)
    folder = village.files.task(task_id)
    assert sorted(path.name for path in folder.iterdir()) == [
        "average-4.safetensors", "average-5.safetensors", "average-6.safetensors", "round-4", "round-5",
    ]  # fmt: skip


async def test_a_client_id_is_whose_it_was_first(village):
    await village.join("a")
    with pytest.raises(Forbidden):
        await village.fleet.connect(ANN, "a", "desk", "conn_x")
    assert (await village.store.get(Client, "a")).owner == SYSTEM.owner


async def test_an_owner_has_only_so_many_clients(village, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.farm.fleet.MAX_PER_OWNER", 2)
    await village.join("a", "b", "a")
    with pytest.raises(Conflict):
        await village.join("c")


async def test_an_order_that_contradicts_itself_is_refused(village):
    with pytest.raises(Invalid):
        await village.order(n_clients=2, min_ranks=3)


async def test_every_shelf_is_empty_once_a_task_is_gone(village):
    await village.join("a", "b")
    task_id = await village.order(n_clients=2)
    keeper = await village.keeper()
    for name in ("a", "b"):
        await village.ask(name)
    await settled(keeper)
    await village.report("a", task_id)
    await village.farm.delete(SYSTEM, task_id)
    await settled(keeper)
    for index in ("work", "unsettled", "cut"):
        assert await village.store.count(FarmTask, index) == 0
    assert await village.store.count(FarmTask, "list", "all") == 0
    assert await village.store.count(Rank, "task", task_id) == await village.store.count(Rank, "deadline") == 0
    assert await village.store.count(Client, "lease") == 0
    keys = await village.store._redis.keys("*farm_rank*")
    assert not keys


async def test_a_deletion_goes_on_where_a_killed_keeper_left_it(village):
    for at in range(1, 6):
        await village.join("a")
        task_id = await village.order()
        dying = Dying(village.store.url, 10**9, after=False)
        keeper = await village.keeper(dying)
        await village.ask("a")
        await settled(keeper)
        await village.farm.delete(SYSTEM, task_id)
        dying.left = at
        with suppress(asyncio.CancelledError):
            await settled(keeper)
        await settled(await village.keeper())
        assert await village.store.find(FarmTask, task_id) is None
        assert not (await village.store.get(Client, "a")).holds
        await dying.close()


async def test_it_goes_on_after_redis_was_killed(tmp_path: Path):
    redis = Redis(tmp_path / "redis")
    redis.start()
    await redis.answers()
    store = Store(redis.url)
    village = Village(store, tmp_path)
    running = asyncio.create_task(keep_farm(Store(redis.url), Settings(home=tmp_path, redis_url=redis.url)))
    try:
        await village.join("a")
        task_id = await village.order(rounds=2)
        rank = await eventually(lambda: village.ask("a"))
        await village.upload("a", rank, 3.0)
        redis.kill()
        redis.start()
        await redis.answers()
        await village.fleet.sit("desk")
        assert await village.ask("a") == await store.get(Rank, rank.rank_id), "the lease has held"
        assert await village.report("a", task_id) == ""

        async def second() -> Rank | None:
            held = await village.ask("a")
            return held if held is not None and held.round == 1 else None

        await eventually(second)
        assert await village.report("a", task_id) == ""

        async def completed() -> bool:
            return (await village.task(task_id)).state is TaskState.COMPLETED

        await eventually(completed)
        assert load_file(village.files.average(task_id, 1))["w"].tolist() == [3.0] * 5
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await store.close()
        redis.kill()


def test_a_folder_is_only_ever_that_of_a_task(tmp_path: Path):
    files = Files(tmp_path)
    for bad in ("..", "task_/../..", "task_x", "", "task_1.0", "/etc"):
        with pytest.raises(ValueError, match="no task"):
            files.task(bad)
    assert RankState.CUT in RankState
