"""The Serve deployments, as configs/serve.yaml imports them. Shells: each builds plain parts from Settings."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import structlog
from ray import serve
from ray.serve._private import replica as serve_replica
from starlette.types import ASGIApp

from cluster import logs, tracing
from cluster.clock import utc_now
from cluster.errors import Unavailable, VillageError
from cluster.identity.model import SYSTEM, Principal
from cluster.origin import Origin, within
from cluster.presence import BEAT_SECONDS, beat
from cluster.settings import Settings
from cluster.store import Page, Store
from rag.model import Added, Answer, Document, DocumentRecord, Writer
from serve_apps.chat.app import RemoteEngine
from serve_apps.chat.build import build_engine
from serve_apps.chat.engine import Delta, Finish, ModelRef, Sampling, Turn
from serve_apps.chat.loops import across
from serve_apps.chat.sources import ELSEWHERE, Engines
from serve_apps.chat.vllm_engine import VllmEngine
from serve_apps.compose import build_core, build_forge
from serve_apps.core import Core
from serve_apps.gateway import build_gateway
from serve_apps.knowledge.app import RemoteKnowledge
from serve_apps.listener import Listener

log = structlog.get_logger()
REPLICA: dict[str, Any] = {
    "num_replicas": 1, "max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}, "health_check_period_s": 2,
    "health_check_timeout_s": 10, "graceful_shutdown_timeout_s": 10, "graceful_shutdown_wait_loop_s": 0.5,
}  # fmt: skip


def keep_to_loopback(settings: Settings) -> None:
    """In `dev`, bind the port by which handles reach this replica to loopback; called before Serve opens it.

    Ray 2.60 binds it to every address, whatever the node's own address is, and has no setting for it.
    """
    if settings.profile == "dev" and not settings.ray_address:
        opened_in: Any = serve_replica
        bind = opened_in.add_port_to_grpc_server
        opened_in.add_port_to_grpc_server = lambda server, _: bind(server, "127.0.0.1:0")


async def keep_beating(store: Store, name: str, about: Callable[[], dict[str, Any]]) -> None:
    """A sign of life, for as long as this loop turns."""
    while True:
        try:
            await beat(store, name, utc_now(), about())
        except Unavailable:
            log.warning("the store does not answer")
        await asyncio.sleep(BEAT_SECONDS)


@contextmanager
def on_behalf(origin: Origin | None, what: str) -> Iterator[None]:
    """Work for a request that came to another process: its changes and its trace go on here."""
    with tracing.span(what, origin.traceparent if origin else ""), within(origin):
        yield


@serve.deployment(**REPLICA)
class GatewayReplica:
    """The gateway behind the front door; chat and knowledge are reached over handles."""

    def __init__(self, chat: Any, knowledge: Any) -> None:
        self.settings = Settings()
        keep_to_loopback(self.settings)
        self.engine, self.knowledge = RemoteEngine(chat), RemoteKnowledge(knowledge)
        self.listener = Listener(self.settings, "gateway", self._build).start()

    async def _build(self) -> ASGIApp:
        return build_gateway(await build_core(self.settings, self.engine, self.knowledge))

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self.listener.check()

    def __del__(self) -> None:
        self.listener.stop()


@serve.deployment(**REPLICA)
class ChatReplica:
    """The engine, and the gateway in the same process: a token passes no other process on its way out."""

    engine: Engines

    def __init__(self, knowledge: Any) -> None:
        self.settings = Settings()
        keep_to_loopback(self.settings)
        self.knowledge = RemoteKnowledge(knowledge)
        self.listener = Listener(self.settings, "chat", self._build).start()

    async def _build(self) -> ASGIApp:
        self.engine = build_engine(self.settings)
        core = await build_core(self.settings, self.engine, self.knowledge)
        self.beating = asyncio.ensure_future(keep_beating(core.store, "chat", self._about))
        self.warming = asyncio.ensure_future(self._warm(core))
        return build_gateway(core)

    async def _warm(self, core: Core) -> None:
        """Load the default model before somebody waits for it; the seedling as soon as it is forged."""
        here = self.engine.here
        while isinstance(here, VllmEngine):
            try:
                model = await core.chat.model(SYSTEM)
                if not model.path.startswith(ELSEWHERE):
                    await here.load(model)
                return
            except VillageError as error:
                log.info("no model to load yet", reason=error.message)
            await asyncio.sleep(BEAT_SECONDS)

    def _about(self) -> dict[str, Any]:
        return {"loaded": {loaded.model_id: round(loaded.memory_mb) for loaded in self.engine.loaded()}}

    async def generate(
        self, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
    ) -> AsyncGenerator[Delta | Finish, None]:
        """For replicas without an engine: see `RemoteEngine`."""
        assert self.listener.loop is not None
        async with aclosing(
            across(self.listener.loop, lambda: self.engine.generate(model, messages, sampling))
        ) as steps:
            async for step in steps:
                yield step

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self.listener.check()

    def __del__(self) -> None:
        self.listener.stop()


@serve.deployment(**REPLICA)
class KnowledgeReplica:
    """The one process with the embedder and the tables. Methods as in `rag.service.Knowledge`."""

    async def __init__(self) -> None:
        from rag.service import Knowledge

        settings = Settings()
        logs.configure("knowledge")
        tracing.configure(settings, "knowledge")
        keep_to_loopback(settings)
        self.store = Store(settings.redis)
        self.knowledge = await Knowledge.open(settings, self.store)
        await self.knowledge.warm_up()
        self.beating = asyncio.ensure_future(keep_beating(self.store, "knowledge", dict))

    async def add(
        self, who: Principal, content: str, metadata: Mapping[str, Any] | None, chunk_strategy: str,
        generate_embeddings: bool, update_knowledge_graph: bool, document_id: str, origin: Origin | None,
    ) -> Added:  # fmt: skip
        """See `Knowledge.add`."""
        with on_behalf(origin, "knowledge.add"):
            return await self.knowledge.add(
                who, content, metadata, chunk_strategy, generate_embeddings, update_knowledge_graph, document_id
            )

    async def query(
        self, who: Principal, query: str, max_results: int, include_sources: bool, mode: str,
        filters: Mapping[str, Any] | None, context: Mapping[str, Any] | None, writer: Writer | None,
        origin: Origin | None,
    ) -> Answer:  # fmt: skip
        """See `Knowledge.query`."""
        with on_behalf(origin, "knowledge.query"):
            return await self.knowledge.query(who, query, max_results, include_sources, mode, filters, context, writer)

    async def get(self, who: Principal, document_id: str) -> Document:
        """See `Knowledge.get`."""
        return await self.knowledge.get(who, document_id)

    async def documents(self, who: Principal, limit: int, offset: int) -> Page[DocumentRecord]:
        """See `Knowledge.documents`."""
        return await self.knowledge.documents(who, limit, offset)

    async def delete(self, who: Principal, document_id: str, origin: Origin | None) -> DocumentRecord:
        """See `Knowledge.delete`."""
        with on_behalf(origin, "knowledge.delete"):
            return await self.knowledge.delete(who, document_id)


@serve.deployment(**REPLICA)
class ForgeReplica:
    """Keeps training runs and their jobs in step: a run whose job was killed gets another, the seedling is forged."""

    async def __init__(self) -> None:
        settings = Settings()
        logs.configure("forge")
        tracing.configure(settings, "forge")
        keep_to_loopback(settings)
        self.store = Store(settings.redis)
        self.forge = build_forge(settings, self.store)
        self.seedling = settings.chat_model == "seedling"
        self.tending = asyncio.ensure_future(self._tend())
        self.beating = asyncio.ensure_future(keep_beating(self.store, "forge", dict))

    async def _tend(self) -> None:
        again = True  # a seedling whose run failed is tried anew once at each start
        while True:
            try:
                if self.seedling:
                    self.seedling = await self.forge.ensure_seedling(again) is not None
                    again = False
                for run in await self.forge.reconcile():
                    log.info("another attempt", run=run.run_id, attempt=run.attempt)
            except VillageError as error:
                log.warning("cannot look after the runs now", reason=error.message)
            await asyncio.sleep(BEAT_SECONDS)

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if self.tending.done():
            raise RuntimeError("the forge is not looked after") from self.tending.exception()


_knowledge = KnowledgeReplica.bind()
village = GatewayReplica.bind(ChatReplica.bind(_knowledge), _knowledge)
forge = ForgeReplica.bind()
