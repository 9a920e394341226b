"""The way out to one peer."""

import asyncio

import pytest
from eventually import eventually

from serve_apps.kit import outbox
from serve_apps.kit.outbox import ROOM, ROOM_BYTES, Outbox


class Peer:
    """Takes messages while its door is open."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost: list[bool] = []
        self.door = asyncio.Event()

    async def send(self, message: bytes) -> None:
        await self.door.wait()
        self.got.append(message)

    def now(self, message: bytes) -> bool:
        if self.door.is_set():
            self.got.append(message)
        return self.door.is_set()


@pytest.mark.parametrize(("size", "fit"), [(1, ROOM), (ROOM_BYTES // 10, 10), (2 * ROOM_BYTES, 1)])
async def test_what_waits_is_bounded_in_number_and_in_bytes(size: int, fit: int):
    peer = Peer()
    box = Outbox(peer.send, peer.lost.append)
    assert sum(box.put(bytes(size)) for _ in range(ROOM + 10)) == fit
    peer.door.set()
    await eventually(lambda: peer.lost == [False])
    assert len(peer.got) == fit and not box.put(b"x"), "what was waiting goes, and nothing after it"


async def test_messages_keep_their_order_whichever_way_they_take():
    peer = Peer()
    box = Outbox(peer.send, peer.lost.append, peer.now)
    peer.door.set()
    box.put(b"1")
    peer.door.clear()
    box.put(b"2")
    box.put(b"3")
    peer.door.set()
    box.put(b"4")
    assert peer.got == [b"1"]
    await box.flush(5)
    box.put(b"5")
    assert peer.got == [b"1", b"2", b"3", b"4", b"5"] and box._draining is None


async def test_a_peer_that_takes_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(outbox, "SEND_SECONDS", 0.05)
    peer = Peer()
    box = Outbox(peer.send, peer.lost.append)
    box.put(b"1")
    await eventually(lambda: peer.lost == [True])
    assert not box.put(b"2")


async def test_room_is_there_again_once_half_is_free():
    peer = Peer()
    box = Outbox(peer.send, peer.lost.append)
    for _ in range(ROOM):
        box.put(b"x")
    waiting = asyncio.create_task(box.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    peer.door.set()
    await asyncio.wait_for(waiting, 5)
    assert len(peer.got) >= ROOM // 2


async def test_a_closed_outbox_leaves_no_task():
    peer = Peer()
    box = Outbox(peer.send, peer.lost.append)
    box.put(b"x")
    await asyncio.sleep(0)
    box.put(b"y")
    box.close()
    peer.door.set()
    await asyncio.sleep(0.01)
    assert not peer.got and not peer.lost and len(asyncio.all_tasks()) == 1
