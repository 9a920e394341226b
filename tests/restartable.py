"""A redis-server of one test's own, which may be killed, paused and started again over the same data."""

from pathlib import Path
from subprocess import Popen

from eventually import eventually

from cluster.errors import Unavailable
from cluster.store import Store, server


class Redis:
    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"unix://{folder}/redis.sock"
        self.process: Popen[bytes] | None = None

    def start(self) -> None:
        self.process = server.start(self.folder / "data", self.folder / "redis.sock")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def send(self, signal: int) -> None:
        assert self.process is not None
        self.process.send_signal(signal)

    async def answers(self) -> None:
        """Return once it does."""
        store = Store(self.url)

        async def pong() -> bool:
            try:
                return await store.ping() > 0
            except Unavailable:
                return False

        await eventually(pong)
        await store.close()
