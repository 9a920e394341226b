import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from engine_contract import eventually
from scripted_engine import ScriptedEngine

from cluster.errors import ModelNotReady, NotFound, Unavailable
from cluster.identity.model import Principal
from cluster.store import Page, Store
from serve_apps.chat.engine import Delta, ModelRef, Sampling
from serve_apps.chat.model import KEPT
from serve_apps.chat.service import Chat, Reply

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ANN = Principal(principal_id="user_ann", owner="user_ann", username="ann", scopes=frozenset({"write"}))
BOB = Principal(principal_id="user_bob", owner="user_bob", username="bob", scopes=frozenset({"write"}))
SHORT = Sampling(0.0, 6)


class Registry:
    """One model; the seedling is not there yet."""

    record = SimpleNamespace(
        model_id="model_1", name="tiny", path="/models/1", digest="sha256:0123456789abcdef", context_length=256,
        size_bytes=10, owner="user_ann", created_at=NOON,
    )  # fmt: skip

    async def get(self, who, id_or_name):
        if id_or_name not in ("model_1", "tiny"):
            raise NotFound(f"no model {id_or_name}")
        return self.record

    async def page(self, who, offset=0, limit=50):
        return Page([self.record], 1)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def chat(store: Store, engine: ScriptedEngine) -> Chat:
    async def making(name: str):
        return {"progress": 0.4, "phase": "cognate"}

    return Chat(store, Registry(), engine, lambda: NOON, making=making)


async def talk(chat: Chat, message: str, conversation_id: str = "", who: Principal = ANN) -> Reply:
    steps = [step async for step in chat.converse(who, "tiny", message, conversation_id, SHORT)]
    assert all(isinstance(step, Delta) for step in steps[:-1])
    assert isinstance(steps[-1], Reply)
    return steps[-1]


async def test_a_reply_says_what_it_cost_and_who_gave_it(chat: Chat):
    reply = await talk(chat, "hello")
    assert reply.conversation_id.startswith("conv_")
    assert reply.prompt_tokens == len("u:hello\n")
    assert reply.completion_tokens == len(reply.text) == 6
    assert reply.confidence is not None and 0 < reply.confidence <= 1
    assert reply.model.version == "0123456789ab"
    assert reply.inference_time_ms > 0


async def test_a_conversation_remembers(chat: Chat, engine: ScriptedEngine):
    first = await talk(chat, "hello")
    await talk(chat, "and then?", first.conversation_id)
    assert [(turn.role, turn.content) for turn in engine.prompts[1]] == [
        ("user", "hello"), ("assistant", first.text), ("user", "and then?"),
    ]  # fmt: skip
    kept = await chat.conversation(ANN, first.conversation_id)
    assert (kept.message_count, kept.title) == (4, "hello")
    assert (await chat.conversations(ANN)).total == 1


async def test_the_callers_own_id_begins_a_conversation(chat: Chat):
    reply = await talk(chat, "hello", "conv_123abc")
    assert reply.conversation_id == "conv_123abc"


async def test_a_long_conversation_keeps_its_newest_messages_and_counts_all(chat: Chat):
    for number in range(KEPT // 2 + 3):
        await talk(chat, str(number), "conv_long")
    kept = await chat.conversation(ANN, "conv_long")
    assert (len(kept.messages), kept.message_count) == (KEPT, KEPT + 6)
    assert kept.messages[0].content == "3"


async def test_somebody_elses_conversation_does_not_exist(chat: Chat):
    await talk(chat, "secret", "conv_ann")
    with pytest.raises(NotFound):
        await talk(chat, "hello", "conv_ann", BOB)
    with pytest.raises(NotFound):
        await chat.conversation(BOB, "conv_ann")
    assert (await chat.conversation(ANN, "conv_ann")).message_count == 2


async def test_a_reader_who_leaves_leaves_an_incomplete_message(chat: Chat, engine: ScriptedEngine):
    steps = chat.converse(ANN, "tiny", "hello", "conv_cut", SHORT)
    got = [(await anext(steps)).text for _ in range(3)]
    await steps.aclose()
    assert engine.running == 0
    *_, answer = (await chat.conversation(ANN, "conv_cut")).messages
    assert (answer.content, answer.complete, answer.tokens) == ("".join(got), False, 3)


async def test_a_cancelled_request_is_stored_and_aborted(chat: Chat, engine: ScriptedEngine):
    engine.gate = asyncio.Event()
    engine.gate.set()
    seen = asyncio.Event()

    async def read():
        async for _ in chat.converse(ANN, "tiny", "hello", "conv_cancel", SHORT):
            engine.gate.clear()
            seen.set()

    reader = asyncio.create_task(read())
    await seen.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await eventually(lambda: engine.running == 0)
    await eventually(lambda: not chat._storing)
    assert not (await chat.conversation(ANN, "conv_cancel")).messages[-1].complete


async def test_an_engine_that_dies_leaves_what_it_said(chat: Chat, engine: ScriptedEngine):
    engine.failure, engine.fails_after = Unavailable("the engine died"), 2
    with pytest.raises(Unavailable):
        await talk(chat, "hello", "conv_died")
    kept = await chat.conversation(ANN, "conv_died")
    assert [message.complete for message in kept.messages] == [True, False]


async def test_a_failure_before_the_first_token_stores_nothing(chat: Chat, engine: ScriptedEngine):
    engine.failure = Unavailable("the engine died")
    with pytest.raises(Unavailable):
        await talk(chat, "hello", "conv_none")
    with pytest.raises(NotFound):
        await chat.conversation(ANN, "conv_none")


async def test_the_default_model_in_training_says_how_far_it_is(chat: Chat):
    with pytest.raises(ModelNotReady) as error:
        await chat.model(ANN)
    assert error.value.details["progress"] == 0.4
    with pytest.raises(NotFound):
        await chat.model(ANN, "model_none")


async def test_a_configured_model_is_the_default_one(chat: Chat):
    chat.configured = ModelRef("model_own", "own", "/models/own")
    assert [(await chat.model(ANN, name)).model_id for name in ("", "own", "model_own", "tiny")] == [
        "model_own", "model_own", "model_own", "model_1",
    ]  # fmt: skip
    assert [model.model_id for model in await chat.listed(ANN)] == ["model_own", "model_1"]
