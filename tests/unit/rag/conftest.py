"""Knowledge for real: MiniLM once per session, LanceDB in a folder of the test's own, Redis from the outer fixtures."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cluster.identity.model import Principal
from cluster.store import Store
from rag.calibration import load
from rag.embedding import MiniLM
from rag.index import ChunkIndex
from rag.service import Knowledge


@pytest.fixture(scope="session")
def minilm() -> MiniLM:
    return MiniLM()


@pytest.fixture
async def index(tmp_path: Path) -> ChunkIndex:
    return await ChunkIndex.open(tmp_path / "lance", MiniLM.size)


@pytest.fixture
async def knowledge(store: Store, index: ChunkIndex, minilm: MiniLM) -> AsyncIterator[Knowledge]:
    made = Knowledge(store, index, minilm, load())
    yield made
    await made.close()


@pytest.fixture
def person() -> Callable[..., Principal]:
    def make(name: str, *scopes: str) -> Principal:
        return Principal(
            principal_id=f"user_{name}",
            owner=f"user_{name}",
            username=name,
            scopes=frozenset(scopes or {"read", "write"}),
        )

    return make
