"""Knowledge over HTTP, against the document's own examples."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from http_harness import Client
from scripted_engine import ScriptedEngine

from rag.calibration import load
from rag.embedding import MiniLM
from rag.index import ChunkIndex
from rag.service import Knowledge
from serve_apps.chat.service import Chat
from serve_apps.core import Core
from tests.contract.shapes import mismatches
from tests.unit.http.test_http_surface import EXAMPLES
from train.models import Models
from train.registry import Model, ModelState

ADD, QUERY = EXAMPLES["aivillage POST /v1/knowledge"], EXAMPLES["aivillage POST /v1/query"]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


@pytest.fixture
async def headers(core: Core, tmp_path: Path, minilm: MiniLM, user) -> AsyncIterator[dict[str, str]]:
    index = await ChunkIndex.open(tmp_path / "lance", MiniLM.size)
    core.knowledge = Knowledge(core.store, index, minilm, load())
    yield await user("ann")
    await core.knowledge.close()


async def test_the_documents_examples_are_answered_in_their_shape(client: Client, headers):
    added = await client.post("/v1/knowledge", json=ADD["request"], headers=headers)
    assert added.status_code == 200 and not mismatches(ADD["response"], added.json()), added.text
    body = QUERY["request"] | {"query": "What secures P2P communications?", "filters": {"confidence_threshold": 0.1}}
    answer = await client.post("/v1/query", json=body, headers=headers)
    assert answer.status_code == 200 and not mismatches(QUERY["response"], answer.json()), answer.text
    data = answer.json()["data"]
    assert data["sources"][0]["document_id"] == added.json()["data"]["document_id"]
    assert data["metadata"]["answer_mode"] == "extractive" and data["metadata"]["answer_mode_reason"]
    assert answer.json()["message"] == QUERY["response"]["message"]


async def test_a_document_is_listed_read_and_removed_by_its_owner_alone(client: Client, headers, user):
    body = {"content": "The gate opens at nine.", "metadata": {"title": "Gate"}, "document_id": "doc_gate"}
    assert (await client.post("/v1/knowledge", json=body, headers=headers)).status_code == 200
    listed = (await client.get("/v1/knowledge", headers=headers)).json()["data"]
    assert (listed["total"], listed["documents"][0]["title"]) == (1, "Gate")
    assert (await client.get("/v1/knowledge/doc_gate", headers=headers)).json()["data"]["content"] == body["content"]
    other = await user("bob")
    for method in ("GET", "DELETE"):
        refused = await client.request(method, "/v1/knowledge/doc_gate", headers=other)
        assert (refused.status_code, refused.json()["error_code"]) == (404, "RESOURCE_NOT_FOUND")
    gone = await client.delete("/v1/knowledge/doc_gate", headers=headers)
    assert gone.json()["data"]["document_id"] == "doc_gate"
    assert (await client.get("/v1/knowledge/doc_gate", headers=headers)).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/knowledge", {"content": " "}, "content"),
        ("/v1/knowledge", {}, "content"),
        ("/v1/query", {"query": "x", "max_results": 51}, "max_results"),
        ("/v1/query", {"query": "x", "mode": "psychic"}, "mode"),
    ],
)
async def test_what_breaks_a_rule_is_refused_by_its_field(client: Client, headers, path, body, field):
    refused = await client.post(path, json=body, headers=headers)
    assert (refused.status_code, refused.json()["error_code"]) == (400, "VALIDATION_ERROR")
    assert refused.json()["details"]["field"] == field


@pytest.mark.parametrize(("parameters", "mode"), [(8_000_000_000, "generative"), (5_800_000, "extractive")])
async def test_the_served_model_writes_only_if_it_is_good_enough(client: Client, core: Core, headers, parameters, mode):
    served = Model(
        model_id="model_served", name="seedling", owner="user_village", public=True, state=ModelState.COMPLETED,
        path="/models/served", digest="sha256:00", context_length=4096, parameters=parameters,
        metrics={"held_out_loss": 2.5}, created_at=core.clock(),
    )  # fmt: skip
    await core.store.create(served)
    core.chat = Chat(core.store, Models(core.store, core.clock), ScriptedEngine(), core.clock)
    await client.post("/v1/knowledge", json={"content": "The gate opens at nine."}, headers=headers)
    data = (await client.post("/v1/query", json={"query": "When does the gate open?"}, headers=headers)).json()["data"]
    assert data["metadata"]["answer_mode"] == mode and "seedling" in data["metadata"]["answer_mode_reason"]
    assert (data["answer"] == "The gate opens at nine. [1]") is (mode == "extractive")
