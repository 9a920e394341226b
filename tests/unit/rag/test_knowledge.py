"""What the knowledge service promises: over real Redis, LanceDB and MiniLM."""

import asyncio
import pickle
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from killed import NEW, OLD

from cluster.errors import AlreadyExists, Forbidden, Invalid, NotFound
from cluster.identity.model import SYSTEM
from cluster.settings import ROOT, Settings
from cluster.store import Store
from rag.answer import UNSURE
from rag.index import Scope
from rag.model import AnswerMode, DocumentRecord, Writer
from rag.service import Knowledge

NOW = timedelta(0)
TEXT = """# Transport Manager
The P2P network has three transports: BitChat, BetaNet and QUIC. The Transport Manager selects a protocol.
BitChat is a Bluetooth mesh for phones that are offline. QUIC gives the highest throughput between desktops.
"""
ABOUT = {"title": "Transports", "document_type": "architecture", "tags": ["p2p"], "category": "networks", "pages": 3}


async def rows(knowledge: Knowledge) -> int:
    return len(await knowledge.index.matching("transport gate", Scope(None), 100))


async def test_a_question_is_answered_from_its_source(knowledge, person):
    ann = person("ann")
    added = await knowledge.add(ann, TEXT, ABOUT)
    answer = await knowledge.query(ann, "Which transport gives the highest throughput?")
    assert answer.answer == "QUIC gives the highest throughput between desktops. [1]"
    (source,) = answer.sources
    assert (source.document_id, source.title) == (added.document_id, "Transports")
    assert source.excerpt == TEXT[source.start : source.end]
    assert source.metadata["pages"] == 3 and source.metadata["document_type"] == "architecture"
    assert 0.2 < source.relevance_score < 1 and 0.2 < answer.confidence < 1
    assert answer.answer_mode is AnswerMode.EXTRACTIVE


async def test_the_counts_are_of_what_was_written(knowledge, person):
    ann = person("ann")
    added = await knowledge.add(ann, TEXT, ABOUT, "sentence")
    hits = await knowledge.index.matching("transport", Scope(None), 100)
    assert added.chunks_created == added.embeddings_generated == len(hits) == 1
    assert added.nodes_added == len(hits[0].entities) > 3 and added.relationships_added > 0
    again = await knowledge.add(ann, TEXT + "There Zebra met QUIC.", ABOUT, "sentence")
    assert (again.nodes_added, again.relationships_added) == (1, 1)


async def test_what_is_not_wanted_is_not_done(knowledge, person):
    ann = person("ann")
    added = await knowledge.add(ann, TEXT, ABOUT, "heading", generate_embeddings=False, update_knowledge_graph=False)
    assert (added.embeddings_generated, added.nodes_added, added.relationships_added) == (0, 0, 0)
    assert (await knowledge.query(ann, "highest throughput", mode="fast")).sources == ()
    assert (await knowledge.query(ann, "highest throughput", mode="keyword")).sources
    assert (await knowledge.query(ann, "highest throughput")).sources


async def test_paths_join_what_the_sources_name_together(knowledge, person):
    ann = person("ann")
    await knowledge.add(ann, TEXT, ABOUT)
    paths = (await knowledge.query(ann, "What does BitChat run on?")).knowledge_graph_paths
    assert ("BitChat", "Bluetooth") in {path.nodes for path in paths}
    assert all(0 < path.strength < 1 for path in paths)


async def test_users_see_their_own_and_public_documents_and_admins_all(knowledge, person):
    ann, bob, admin = person("ann"), person("bob"), person("root", "admin")
    private = (await knowledge.add(ann, TEXT)).document_id
    public = (await knowledge.add(admin, "Everybody may know the transport rules.", {"public": True})).document_id
    seen = {
        who: {s.document_id for s in (await knowledge.query(who, "transport")).sources} for who in (ann, bob, admin)
    }
    assert seen == {ann: {private, public}, bob: {public}, admin: {private, public}}
    assert (await knowledge.get(bob, public)).content.startswith("Everybody")
    assert [d.document_id for d in (await knowledge.documents(ann)).items] == [private]
    assert (await knowledge.documents(admin)).total == 2
    for call in (knowledge.get, knowledge.delete):
        with pytest.raises(NotFound):
            await call(bob, private)
    with pytest.raises(Forbidden):
        await knowledge.delete(bob, public)
    with pytest.raises(Forbidden):
        await knowledge.add(bob, "mine", {"public": True})
    with pytest.raises(AlreadyExists):
        await knowledge.add(bob, "mine", document_id=private)


async def test_a_deleted_document_is_gone_and_says_so_once(knowledge, person, store):
    ann = person("ann")
    name = (await knowledge.add(ann, TEXT)).document_id
    await knowledge.delete(ann, name)
    with pytest.raises(NotFound):
        await knowledge.delete(ann, name)
    assert (await knowledge.query(ann, "transport")).sources == () and await rows(knowledge) == 0
    assert [event.kind for event in await store.events()] == ["knowledge.added", "knowledge.deleted"]


async def test_a_repeated_request_changes_nothing(knowledge, person, store):
    ann = person("ann")
    first = await knowledge.add(ann, TEXT, ABOUT, document_id="doc_mine")
    record = await store.get(DocumentRecord, "doc_mine")
    second = await knowledge.add(ann, TEXT, ABOUT, document_id="doc_mine")
    assert await store.get(DocumentRecord, "doc_mine") == record
    assert (first.chunks_created, first.nodes_added) == (second.chunks_created, second.nodes_added)
    assert len(await store.events()) == 1


async def test_a_new_text_replaces_the_old_one(knowledge, person):
    ann = person("ann")
    await knowledge.add(ann, OLD, document_id="doc_gate")
    created = (await knowledge.get(ann, "doc_gate")).record.created_at
    await knowledge.add(ann, NEW, document_id="doc_gate")
    assert [s.excerpt for s in (await knowledge.query(ann, "when does the gate open")).sources] == [NEW]
    assert (await knowledge.get(ann, "doc_gate")).record.created_at == created
    assert await rows(knowledge) == 1


async def test_writers_of_one_document_leave_one_of_their_texts_whole(knowledge, person):
    ann = person("ann")
    texts = [f"The gate opens at {hour}." for hour in range(6)]
    await asyncio.gather(*(knowledge.add(ann, text, document_id="doc_gate") for text in texts))
    held = (await knowledge.get(ann, "doc_gate")).content
    assert held in texts
    assert [s.excerpt for s in (await knowledge.query(ann, "gate")).sources] == [held]
    assert await rows(knowledge) == 1


async def test_many_writers_of_many_documents_lose_none(knowledge, person):
    ann = person("ann")
    await asyncio.gather(*(knowledge.add(ann, f"Gate number {n} opens.", document_id=f"doc_{n}") for n in range(40)))
    assert (await knowledge.documents(ann)).total == 40 == await rows(knowledge)
    assert (await knowledge.reconcile(NOW)).removed == 0


@pytest.mark.parametrize("point", ["before-record", "before-removal"])
async def test_a_kill_loses_nothing_that_was_acknowledged_and_doubles_nothing(point, store: Store, tmp_path: Path):
    """SIGKILL between the rows and the record, and between the record and the removal of what it replaced."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("killed.py")), store.url, str(tmp_path), point, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
    knowledge = await Knowledge.open(Settings(home=tmp_path), store)
    counted = OLD if point == "before-record" else NEW
    assert await rows(knowledge) == 2  # both revisions lie there, younger than the grace that `open` gives
    assert [s.excerpt for s in (await knowledge.query(SYSTEM, "gate opens")).sources] == [counted]
    assert (await knowledge.reconcile(NOW)).removed == 1
    assert await rows(knowledge) == 1
    assert (await knowledge.get(SYSTEM, "doc_gate")).content == counted
    await knowledge.add(SYSTEM, NEW, {"title": "Gate"}, document_id="doc_gate")
    assert [s.excerpt for s in (await knowledge.query(SYSTEM, "gate opens")).sources] == [NEW]
    await knowledge.close()


async def test_records_whose_rows_are_gone_are_named(knowledge, person):
    name = (await knowledge.add(person("ann"), TEXT)).document_id
    record = await knowledge.store.get(DocumentRecord, name)
    await knowledge.index.remove(name, record.revision)
    assert (await knowledge.reconcile(NOW)).missing == (name,)


async def test_filters_and_the_threshold_choose_the_sources(knowledge, person):
    ann = person("ann")
    await knowledge.add(ann, TEXT, ABOUT)
    question = "Which transport gives the highest throughput?"
    for filters in ({"document_types": ["architecture"]}, {"tags": ["p2p"]}, {"confidence_threshold": 0.2}):
        assert len((await knowledge.query(ann, question, filters=filters)).sources) == 1, filters
    for filters in ({"document_types": ["x"]}, {"tags": ["x"]}, {"confidence_threshold": 1.0}):
        answer = await knowledge.query(ann, question, filters=filters)
        assert answer.sources == () and answer.confidence < 0.1, filters


async def test_a_question_far_from_every_document_has_little_confidence(knowledge, person):
    ann = person("ann")
    await knowledge.add(ann, TEXT, ABOUT)
    near = await knowledge.query(ann, "Which transport gives the highest throughput?")
    far = await knowledge.query(ann, "How do I bake sourdough bread?")
    assert far.confidence < knowledge.config.min_confidence < 0.2 < near.confidence
    assert far.answer == UNSURE and len(far.sources) == 1


async def test_sources_may_be_left_out_and_are_bounded(knowledge, person):
    ann = person("ann")
    for number in range(4):
        await knowledge.add(ann, f"Gate {number} opens at {number} o'clock.")
    assert len((await knowledge.query(ann, "gate", max_results=2)).sources) == 2
    answer = await knowledge.query(ann, "gate", include_sources=False)
    assert answer.sources == () and "Gate" in answer.answer and "[" not in answer.answer


async def test_a_good_model_gets_a_prompt_and_a_small_one_does_not(knowledge, person):
    ann = person("ann")
    await knowledge.add(ann, TEXT, ABOUT)
    context = {"user_level": "technical"}
    large = await knowledge.query(ann, "throughput?", context=context, writer=Writer("large", 8_000_000_000))
    assert large.answer_mode is AnswerMode.GENERATIVE
    assert "QUIC" in large.prompt and "technical" in large.prompt and "throughput?" in large.prompt
    small = await knowledge.query(ann, "throughput?", writer=Writer("seedling", 5_800_000, 4.2))
    assert small.answer_mode is AnswerMode.EXTRACTIVE and not small.prompt and "seedling" in small.answer_mode_reason
    nothing = await knowledge.query(person("bob"), "throughput?", writer=Writer("large", 8_000_000_000))
    assert nothing.answer_mode is AnswerMode.EXTRACTIVE and not nothing.prompt


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"content": ""}, "content"),
        ({"content": " \n\t"}, "content"),
        ({"content": "x" * 1_000_001}, "content"),
        ({"content": "x", "chunk_strategy": "magic"}, "chunk_strategy"),
        ({"content": "x", "document_id": "../etc"}, "document_id"),
        ({"content": "x", "metadata": {"tags": "one"}}, "metadata.tags"),
        ({"content": "x", "metadata": {"note": "y" * 20_000}}, "metadata"),
        ({"query": " "}, "query"),
        ({"query": "x" * 2_001}, "query"),
        ({"query": "x", "max_results": 0}, "max_results"),
        ({"query": "x", "max_results": 51}, "max_results"),
        ({"query": "x", "mode": "psychic"}, "mode"),
        ({"query": "x", "filters": {"confidence_threshold": 2}}, "filters.confidence_threshold"),
    ],
)
async def test_what_breaks_a_rule_is_refused_by_its_field(knowledge, person, arguments, field):
    call = knowledge.add if "content" in arguments else knowledge.query
    with pytest.raises(Invalid) as refused:
        await call(person("ann"), **arguments)
    assert refused.value.details["field"] == field
    assert (await knowledge.documents(person("ann"))).total == 0


@pytest.mark.parametrize(
    "query", ['"', "AND OR NOT", "a:b (c", "'; DROP TABLE chunks", "the of a", "日本語", "\ud800x", "🚀"]
)
async def test_any_text_is_a_question(knowledge, person, query):
    ann = person("ann")
    await knowledge.add(ann, TEXT + query, ABOUT)
    for mode in ("comprehensive", "fast", "keyword"):
        await knowledge.query(ann, query, mode=mode)


async def test_what_goes_in_and_out_crosses_a_process(knowledge, person):
    ann = person("ann")
    added = await knowledge.add(ann, TEXT, ABOUT)
    for thing in (added, await knowledge.query(ann, "transport"), await knowledge.get(ann, added.document_id)):
        assert pickle.loads(pickle.dumps(thing)) == thing


async def test_the_loop_stays_free_while_a_document_is_embedded(knowledge, person):
    ann = person("ann")
    await knowledge.warm_up()
    text = " ".join(f"Sentence number {n} speaks of gates and transports." for n in range(400))
    adding = asyncio.create_task(knowledge.add(ann, text, chunk_strategy="sentence"))
    turns = 0
    while not adding.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert (await adding).chunks_created > 15
    assert turns > 20
