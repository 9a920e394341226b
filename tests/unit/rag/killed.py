"""A process of its own that adds a document and is killed, with -9, at the point that its caller names."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from cluster.identity.model import SYSTEM
from cluster.settings import Settings
from cluster.store import Store
from rag.service import Knowledge

OLD, NEW = "The old gate opens at seven.", "The new gate opens at nine."


def die(*_: object, **__: object) -> None:
    """Leave no time for anything."""
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, home: Path, point: str) -> None:
    store = Store(url)
    knowledge = await Knowledge.open(Settings(home=home), store)
    await knowledge.add(SYSTEM, OLD, {"title": "Gate"}, document_id="doc_gate")
    if point == "before-record":  # the rows are written, the record is not
        knowledge.store.change = die  # type: ignore[method-assign]
        knowledge.store.create = die  # type: ignore[method-assign]
    else:  # the record counts the new rows, the old ones are still there
        knowledge.index.remove = die  # type: ignore[method-assign]
    await knowledge.add(SYSTEM, NEW, {"title": "Gate"}, document_id="doc_gate")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
