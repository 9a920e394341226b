"""Knowledge across Ray: gateway replicas ask the one replica that has the embedder and the tables."""

from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import Unavailable, VillageError
from cluster.identity.model import Principal
from cluster.origin import current
from cluster.store import Page
from rag.model import Added, Answer, Document, DocumentRecord, Writer


class RemoteKnowledge:
    """`rag.service.Knowledge` over the handle of a deployment with the same methods. Raises `Unavailable` too."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*arguments, **named)
        except RayTaskError as error:
            if isinstance(error.cause, VillageError):
                raise error.cause from None
            raise Unavailable("the knowledge replica failed at this request", component="knowledge") from error
        except (RayError, RayServeException) as error:
            raise Unavailable("the knowledge replica is away", component="knowledge") from error

    async def add(
        self, who: Principal, content: str, metadata: Mapping[str, Any] | None = None, chunk_strategy: str = "semantic",
        generate_embeddings: bool = True, update_knowledge_graph: bool = True, document_id: str = "",
    ) -> Added:  # fmt: skip
        """See `Knowledge.add`."""
        return await self._ask(
            "add", who, content, metadata, chunk_strategy, generate_embeddings, update_knowledge_graph, document_id,
            origin=current(),
        )  # fmt: skip

    async def query(
        self, who: Principal, query: str, max_results: int = 10, include_sources: bool = True,
        mode: str = "comprehensive", filters: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None, writer: Writer | None = None,
    ) -> Answer:  # fmt: skip
        """See `Knowledge.query`."""
        return await self._ask(
            "query", who, query, max_results, include_sources, mode, filters, context, writer, origin=current()
        )

    async def get(self, who: Principal, document_id: str) -> Document:
        """See `Knowledge.get`."""
        return await self._ask("get", who, document_id)

    async def documents(self, who: Principal, limit: int = 50, offset: int = 0) -> Page[DocumentRecord]:
        """See `Knowledge.documents`."""
        return await self._ask("documents", who, limit, offset)

    async def delete(self, who: Principal, document_id: str) -> DocumentRecord:
        """See `Knowledge.delete`."""
        return await self._ask("delete", who, document_id, origin=current())
