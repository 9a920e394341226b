"""The index gives back what was written, to those who may see it."""

from datetime import UTC, datetime

import numpy as np
import pytest

from rag.index import ChunkIndex, Revision, Row, Scope, predicate, quoted
from rag.model import Filters

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def revision(document_id, **fields):
    given = {
        "revision": "r1", "title": "", "owner": "user_ann", "public": False, "document_type": "", "category": "",
        "tags": (), "written_at": NOON,
    }  # fmt: skip
    return Revision(document_id, **given | fields)


def unit(place):
    return np.eye(384, dtype=np.float32)[[place]]


async def fill(index: ChunkIndex) -> None:
    rows = [
        ("doc_a", "blue whales sing", {"document_type": "paper", "tags": ("sea",)}),
        ("doc_b", "red foxes run", {"owner": "user_o'neil", "tags": ("land", "it's")}),
        ("doc_c", "whales are mammals", {"public": True, "category": "zoo", "owner": "user_admin"}),
    ]
    for place, (name, text, fields) in enumerate(rows):
        await index.write(
            revision(name, **fields), text, [Row(0, len(text), "", text, (text.split()[0],))], unit(place)
        )


async def names(index: ChunkIndex, owner, word=None, place=0, **filters):
    scope = Scope(owner, Filters(**filters))
    hits = await (index.matching(word, scope, 9) if word else index.near(unit(place)[0], scope, 9))
    return [hit.document_id for hit in hits]


async def test_what_is_written_is_found_by_vector_and_by_word(index):
    await fill(index)
    hits = await index.near(unit(1)[0], Scope(None), 3)
    assert hits[0].document_id == "doc_b" and hits[0].score == pytest.approx(1)
    assert (hits[0].text, hits[0].entities) == ("red foxes run", ("red",))
    assert np.array_equal(hits[0].vector, unit(1)[0])
    assert set(await names(index, None, "whale")) == {"doc_a", "doc_c"}
    assert await index.text("doc_a", "r1") == "blue whales sing"
    assert await index.text("doc_a", "r2") is None


async def test_a_user_sees_own_and_public_rows_only(index):
    await fill(index)
    assert set(await names(index, "user_ann")) == {"doc_a", "doc_c"}
    assert set(await names(index, "user_o'neil")) == {"doc_b", "doc_c"}
    assert await names(index, "user_o'neil", "whales") == ["doc_c"]
    assert len(await names(index, None)) == 3


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"document_types": ["paper", "x"]}, {"doc_a"}),
        ({"tags": ["it's", "none"]}, {"doc_b"}),
        ({"categories": ["zoo"]}, {"doc_c"}),
        ({"document_ids": ["doc_a", "doc_c"]}, {"doc_a", "doc_c"}),
        ({"tags": ["sea"], "categories": ["zoo"]}, set()),
        ({"tags": ["') OR true --"]}, set()),
    ],
)
async def test_filters_hold_for_vectors_and_words(index, filters, left):
    await fill(index)
    assert set(await names(index, None, **filters)) == left
    assert set(await names(index, None, "blue red whales", **filters)) == left


async def test_chunks_without_vectors_are_found_by_words_alone(index):
    await index.write(revision("doc_a"), "plain words", [Row(0, 11, "", "plain words", ())], None)
    assert await names(index, None) == []
    assert (await index.matching("plain", Scope(None), 9))[0].vector is None


async def test_removing_a_revision_leaves_the_other(index):
    for number, text in enumerate(["old words", "new words"]):
        row = Row(0, len(text), "", text, ())
        await index.write(revision("doc_a", revision=f"r{number}"), text, [row], unit(number))
    await index.remove("doc_a", "r0")
    assert set(await index.revisions()) == {("doc_a", "r1")}
    assert [hit.text for hit in await index.matching("words", Scope(None), 9)] == ["new words"]


async def test_the_title_and_heading_are_searched_but_are_no_part_of_the_text(index):
    row = Row(5, 16, "Heading", "plain words", ())
    await index.write(revision("doc_a", title="Zebra"), "....\nplain words", [row], unit(0))
    assert [hit.text for hit in await index.matching("zebra", Scope(None), 9)] == ["plain words"]


async def test_upkeep_loses_nothing_and_another_process_would_read_the_same(index, tmp_path):
    await fill(index)
    assert await index.upkeep(force=True)
    assert not await index.upkeep()
    again = await ChunkIndex.open(tmp_path / "lance", 384)
    assert set(await names(again, None, "whales")) == {"doc_a", "doc_c"}
    assert (await names(again, None))[0] == "doc_a"


def test_a_scope_without_limits_has_no_filter():
    assert predicate(Scope(None)) == ""
    assert quoted("o'neil") == "'o''neil'"
