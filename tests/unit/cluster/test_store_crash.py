import asyncio
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import ClassVar

import pytest
from eventually import eventually

from cluster.clock import utc_now
from cluster.errors import Unavailable
from cluster.events import Event
from cluster.store import Record, Store, server


class Counter(Record):
    kind: ClassVar[str] = "counter"
    counter_id: str
    value: int = 0


SLOW_DISK = """
#include <unistd.h>
#include <sys/syscall.h>
int fdatasync(int fd) { usleep(600000); return syscall(SYS_fdatasync, fd); }
int fsync(int fd) { usleep(600000); return syscall(SYS_fsync, fd); }
"""


class Server:
    """A redis-server that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None
        self.url = f"unix://{folder}/redis.sock"

    def start(self) -> None:
        self.process: Popen[bytes] | None = server.start(self.folder / "data", self.folder / "redis.sock")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("r"))
    made.start()
    yield made
    made.kill()


async def answers(url: str) -> None:
    """Return once the server does."""
    store = Store(url)

    async def pong() -> bool:
        try:
            return await store.ping() > 0
        except Unavailable:
            return False

    await eventually(pong)
    await store.close()


def cut(file: Path) -> None:
    """As a write that was cut by the kill."""
    with open(file, "ab") as half:
        half.write(b"*3\r\n$3\r\nSET\r\n$1")


def compiled(text: str, folder: Path) -> Path:
    (folder / "slow.c").write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "slow.so", folder / "slow.c"], check=True)
    return folder / "slow.so"


def counted(_: Counter, after: Counter) -> Event:
    return Event(kind="counter.grew", subject=after.id, owner="user_1", at=utc_now(), data={"value": after.value})


async def test_what_was_acknowledged_is_there_after_kill_9_and_nothing_twice(private: Server):
    await answers(private.url)
    acknowledged = dict.fromkeys((f"c{n}" for n in range(8)), 0)
    seen: list[Event] = []
    stop = asyncio.Event()

    async def write(name: str) -> None:
        store = Store(private.url)
        while not stop.is_set():
            try:
                after = await store.upsert(
                    Counter(counter_id=name), lambda c: c.model_copy(update={"value": c.value + 1}), counted
                )
                acknowledged[name] = after.value
            except Unavailable:
                await asyncio.sleep(0.01)
        await store.close()

    async def read() -> None:
        store = Store(private.url)
        async for event in store.follow("evt_0-0"):
            seen.append(event)

    reader = asyncio.create_task(read())
    writers = [asyncio.create_task(write(name)) for name in acknowledged]
    for _ in range(4):
        await asyncio.sleep(0.1 + random.random() * 0.2)
        private.kill()
        private.start()
    await asyncio.sleep(0.3)
    stop.set()
    await asyncio.gather(*writers)
    store = Store(private.url)
    total = 0
    for name, value in acknowledged.items():
        kept = (await store.get(Counter, name)).value
        assert value <= kept <= value + 1, f"{name}: {value} acknowledged, {kept} kept"
        total += kept
    events = await store.events(limit=100_000)
    grew = {name: [e.data["value"] for e in events if e.subject == name] for name in acknowledged}
    assert all(values == list(range(1, len(values) + 1)) for values in grew.values())  # one event per change, in order
    assert len(events) == total
    await eventually(lambda: len(seen) >= total)
    reader.cancel()
    assert [e.event_id for e in seen] == [e.event_id for e in events]  # the reader resumed by itself and missed none
    await store.close()


async def test_a_truncated_append_only_file_does_not_keep_the_server_from_starting(private: Server):
    await answers(private.url)
    store = Store(private.url)
    await store.create(Counter(counter_id="a", value=7))
    await store.close()
    private.kill()
    cut(next((private.folder / "data").rglob("*.aof")))
    private.start()
    await answers(private.url)
    store = Store(private.url)
    assert (await store.get(Counter, "a")).value == 7
    await store.close()


@pytest.mark.skipif(shutil.which("cc") is None, reason="plays a slow disk with a few lines of C")
async def test_a_slow_disk_costs_no_acknowledged_write(
    private: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The bug: while the disk flushes, `appendfsync everysec` acknowledges what only the server's memory has.
    library = compiled(SLOW_DISK, tmp_path)
    private.kill()
    store, counter = Store(private.url), Counter(counter_id="a")
    for seconds in (1.3, 0.2, 0.3):
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(library))
            private.start()
        await answers(private.url)
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            counter = await store.upsert(counter, lambda c: c.model_copy(update={"value": c.value + 1}))
        private.kill()
    private.start()
    await answers(private.url)
    assert (await store.get(Counter, "a")).value == counter.value
    server.flush(private.folder / "data")
    await store.close()
