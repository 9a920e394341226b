import asyncio
from datetime import UTC, datetime

import pytest
from engine_contract import eventually
from scripted_engine import ScriptedEngine

from cluster.errors import ModelNotReady, NotFound, Unavailable
from cluster.identity.model import Principal
from cluster.store import Store
from serve_apps.chat.engine import Delta, ModelRef, Sampling
from serve_apps.chat.model import KEPT
from serve_apps.chat.service import Chat, Reply
from train.models import Models
from train.registry import Model, ModelState
from train.runs import Run, RunState, Stage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ANN = Principal(principal_id="user_ann", owner="user_ann", username="ann", scopes=frozenset({"write"}))
BOB = Principal(principal_id="user_bob", owner="user_bob", username="bob", scopes=frozenset({"write"}))
SHORT = Sampling(0.0, 6)


def model(name: str, **fields) -> Model:
    given: dict = {"owner": "user_ann", "state": ModelState.COMPLETED, "digest": "sha256:0123456789abcdef"} | fields
    return Model(
        model_id=f"model_{name}", name=name, path=f"/models/{name}", context_length=256, created_at=NOON, **given
    )


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def chat(store: Store, engine: ScriptedEngine) -> Chat:
    await store.create(model("tiny", public=True))
    return Chat(store, Models(store, lambda: NOON), engine, lambda: NOON)


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
    engine.gate = gate = asyncio.Event()
    gate.set()
    seen = asyncio.Event()

    async def read():
        async for _ in chat.converse(ANN, "tiny", "hello", "conv_cancel", SHORT):
            gate.clear()
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


async def test_a_model_in_training_says_how_far_it_is(chat: Chat, store: Store):
    run = Run(
        run_id="task_1", owner="user_ann", model_id="model_seedling", model_name="seedling",
        state=RunState.RUNNING, created_at=NOON, updated_at=NOON,
        stages=(Stage(phase="cognate", config={}, step=40, total_steps=100),),
    )  # fmt: skip
    await store.create(run)
    await store.create(model("seedling", state=ModelState.TRAINING))
    for wanted in ("", "seedling", "model_seedling"):
        with pytest.raises(ModelNotReady) as error:
            await chat.model(ANN, wanted)
        assert (error.value.details["progress"], error.value.details["task_id"]) == (0.4, "task_1")


async def test_only_the_default_model_is_waited_for(chat: Chat):
    with pytest.raises(ModelNotReady):
        await chat.model(ANN)
    with pytest.raises(NotFound):
        await chat.model(ANN, "model_none")


async def test_a_configured_model_is_the_default_one(chat: Chat):
    chat.configured = ModelRef("model_own", "own", "/models/own")
    assert [(await chat.model(ANN, name)).model_id for name in ("", "own", "model_own", "tiny")] == [
        "model_own", "model_own", "model_own", "model_tiny",
    ]  # fmt: skip
    assert [model.model_id for model in await chat.listed(ANN)] == ["model_own", "model_tiny"]
