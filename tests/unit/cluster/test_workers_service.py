import pytest
from working_agent import registration

from cluster.clock import utc_now
from cluster.errors import AgentExists, AgentNotFound, BadSignature, Invalid
from cluster.identity.model import SYSTEM
from cluster.store import Store
from cluster.tasks.model import Task
from cluster.trust.service import Trust
from cluster.workers.finding import Wanted
from cluster.workers.model import Agent
from cluster.workers.service import Workers


@pytest.fixture
def workers(store: Store) -> Workers:
    return Workers(store, Trust(store))


async def register(
    workers: Workers, name: str = "ada", tags=("sums:v1",), url="http://127.0.0.1:1/x", **metadata
) -> Agent:
    body = registration(name, url, list(tags), **metadata)
    return await workers.register(SYSTEM, signed=body.pop("signature"), **body)


async def test_a_registered_agent_is_known_with_its_event(workers: Workers):
    agent = await register(workers, tags=("sums:v1", "texts:v1", "sums:v1"), max_concurrent_tasks=4, region="eu")
    assert (
        agent == await workers.get("ada") and agent.tags == ("sums:v1", "texts:v1") and agent.max_concurrent_tasks == 4
    )
    [event] = await workers.store.events()
    assert event.kind == "agent.registered" and event.subject == "ada"
    with pytest.raises(AgentExists):
        await register(workers)
    with pytest.raises(AgentNotFound):
        await workers.get("bob")


@pytest.mark.parametrize("field", ["agent_id", "display_name", "endpoint", "tags"])
async def test_a_registration_that_was_altered_is_refused(workers: Workers, field):
    body = registration("ada", "http://127.0.0.1:1/x", ["sums:v1"])
    body[field] = ["more:v1"] if field == "tags" else body[field] + "x"
    with pytest.raises(BadSignature):
        await workers.register(SYSTEM, signed=body.pop("signature"), **body)
    assert (await workers.page())[1] == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "ftp://x/y",
        "http://",
        "http:///x",
        "http://[::1",
        "http://x:99999/",
        "http://x:0/",
        "file:///etc/passwd",
    ],
)
async def test_an_endpoint_is_a_url_that_can_be_called(workers: Workers, url):
    # The bug: an unclosed bracket or a port beyond 65535 was an internal error, or an agent that nobody could reach.
    with pytest.raises(Invalid):
        await register(workers, url=url)


async def test_in_production_endpoints_are_https(store: Store):
    strict = Workers(store, Trust(store), https_only=True)
    with pytest.raises(Invalid):
        await register(strict, url="http://ada.example/x")
    assert (await register(strict, url="https://ada.example/x")).endpoint == "https://ada.example/x"


@pytest.mark.parametrize("room", [0, -1, 10_001, 1.5, "4", True, None])
async def test_room_is_a_whole_number(workers: Workers, room):
    with pytest.raises(Invalid):
        await register(workers, max_concurrent_tasks=room)


async def test_agents_are_found_by_tag_trust_and_status(workers: Workers):
    for name, tags in (("ada", ("sums:v1",)), ("bob", ("sums:v1", "texts:v1")), ("eve", ("texts:v1",))):
        await register(workers, name, tags)
    await workers.store.change(Agent, "bob", lambda a: a.model_copy(update={"status": "inactive"}))
    await workers.trust.adjust(SYSTEM, "bob", 0.2, "")
    await workers.trust.adjust(SYSTEM, "eve", 0.3, "")

    async def found(offset: int = 0, **filters) -> list[str]:
        some, _ = await workers.page(Wanted(**filters), offset)
        assert all(each.standing.standing_id == each.agent.agent_id for each in some)
        return [each.agent.agent_id for each in some]

    assert await found() == ["eve", "bob", "ada"] and await found(tag="sums:v1") == ["bob", "ada"]
    assert await found(status="active") == ["eve", "ada"] and await found(tag="texts:v1", status="active") == ["eve"]
    assert await found(trust_min=0.6) == ["eve", "bob"] and await found(trust_min=0.6, status="active") == ["eve"]
    assert await found(trust_min=0.6, offset=1) == ["bob"] and await found(tag="none:v1") == []
    some, total = await workers.page(Wanted(trust_min=0.6), limit=1)
    assert total == 2 and len(some) == 1
    assert await found(descending=False) == ["ada", "bob", "eve"] and await found(name="A") == ["eve", "bob", "ada"]
    assert await found(name="agent B") == ["bob"] and await found(name="ev", descending=False) == ["eve"]
    assert await found(sort="trust") == ["eve", "bob", "ada"]
    assert await found(sort="trust", descending=False, status="active") == ["ada", "eve"]
    assert await found(owner="user_village", tag="sums:v1") == ["bob", "ada"] and await found(owner="user_ann") == []


async def test_load_counts_what_an_agent_holds(workers: Workers):
    await register(workers)
    at = utc_now()
    for n, state in enumerate(("RUNNING", "ASSIGNED", "PENDING", "COMPLETED")):
        await workers.store.create(
            Task(
                task_id=f"task_{n}", owner="u", client_id="c", task_type="t", capability_required="x", state=state,
                agent_id="ada", created_at=at, updated_at=at,
            )
        )  # fmt: skip
    assert await workers.load("ada") == 2
    await register(workers, "bob", max_concurrent_tasks=1)
    some, _ = await workers.page(Wanted(sort="load", descending=False))
    assert [(each.agent.agent_id, each.load) for each in some] == [("bob", 0), ("ada", 2)]
    assert (await workers.page(Wanted()))[0][1].load == 2
