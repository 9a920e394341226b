from datetime import timedelta

import pytest
from receiver import Receiver
from test_egress import PRIVATE, Names

from cluster.clock import utc_now
from cluster.egress import Egress
from cluster.errors import AgentNotFound, Conflict, Forbidden, Invalid, NotFound
from cluster.identity.model import SYSTEM, Principal
from cluster.store import Store
from cluster.webhooks import service as serving
from cluster.webhooks.model import Delivery, Webhook
from cluster.webhooks.service import Webhooks
from cluster.workers.model import Agent

ANN = Principal(principal_id="key_ann", owner="client_ann", username="ann", scopes=frozenset({"read", "write"}))
BEN = Principal(principal_id="key_ben", owner="client_ben", username="ben", scopes=frozenset({"read", "write"}))
URL, SECRET = "http://127.0.0.1:1/hook?token=hidden", "webhook-secret"


@pytest.fixture
def webhooks(store: Store) -> Webhooks:
    return Webhooks(store, Egress(public_only=False))


async def made(webhooks: Webhooks, who: Principal = ANN, **fields) -> Webhook:
    hook, _ = await webhooks.create(who, **{"url": URL, "filters": ["*"], "secret": SECRET} | fields)
    return hook


async def agent(store: Store, name: str) -> None:
    at = utc_now()
    await store.create(
        Agent(
            agent_id=name, owner="client_ann", display_name=name, public_key="", endpoint="http://x/", tags=(),
            created_at=at, last_seen_at=at,
        )
    )  # fmt: skip


async def test_anothers_webhook_does_not_exist_and_an_admin_sees_all(webhooks: Webhooks):
    hook = await made(webhooks)
    span = utc_now(), utc_now() + timedelta(seconds=1)
    for ask in (
        lambda: webhooks.get(BEN, hook.webhook_id),
        lambda: webhooks.update(BEN, hook.webhook_id, active=False),
        lambda: webhooks.delete(BEN, hook.webhook_id),
        lambda: webhooks.rotate(BEN, hook.webhook_id),
        lambda: webhooks.test(BEN, hook.webhook_id),
        lambda: webhooks.deliveries(BEN, hook.webhook_id),
        lambda: webhooks.delivery(BEN, hook.webhook_id, "dlv_1"),
        lambda: webhooks.replay(BEN, hook.webhook_id, "dlv_1"),
        lambda: webhooks.replay_range(BEN, hook.webhook_id, *span),
        lambda: webhooks.get(ANN, "wh_none"),
        lambda: webhooks.delivery(ANN, hook.webhook_id, "dlv_none"),
    ):
        with pytest.raises(NotFound):
            await ask()
    assert (await webhooks.get(SYSTEM, hook.webhook_id)) == hook
    assert [(await webhooks.page(who)).total for who in (ANN, BEN, SYSTEM)] == [1, 0, 1]


async def test_a_delivery_of_another_webhook_is_not_shown_under_ones_own(webhooks: Webhooks, store: Store):
    mine, bens = await made(webhooks), await made(webhooks, BEN)
    theirs = Delivery(
        delivery_id="dlv_1", webhook_id=bens.webhook_id, event="task.created", event_id="e", created_at=utc_now()
    )
    await store.create(theirs)
    for ask in (webhooks.delivery, webhooks.replay):
        with pytest.raises(NotFound):
            await ask(ANN, mine.webhook_id, "dlv_1")


async def test_every_change_is_an_event_without_secret_and_without_the_path(webhooks: Webhooks, store: Store):
    hook = await made(webhooks)
    await webhooks.update(ANN, hook.webhook_id, active=False)
    await webhooks.update(ANN, hook.webhook_id, active=False)  # changes nothing, so it tells nothing
    await webhooks.rotate(ANN, hook.webhook_id, "another secret")
    await webhooks.delete(ANN, hook.webhook_id)
    events = [e for e in await store.events() if e.subject == hook.webhook_id]
    assert [e.kind for e in events] == [
        "webhook.created", "webhook.updated", "webhook.secret_rotated", "webhook.deleted"
    ]  # fmt: skip
    text = "".join(event.model_dump_json() for event in events)
    assert {e.owner for e in events} == {"client_ann"} and events[0].data["host"] == "127.0.0.1"
    assert not any(secret in text for secret in (SECRET, "another secret", "hidden", "/hook"))


async def test_a_secret_is_made_where_none_is_given(webhooks: Webhooks):
    hook, secret = await webhooks.create(ANN, url=URL, filters=["*"])
    assert secret.startswith("whsec_") and [s.value for s in hook.secrets] == [secret]
    _, given = await webhooks.create(ANN, url=URL, filters=["*"], secret=SECRET)
    assert given == ""


async def test_only_an_admin_gets_everybodys_events_and_only_for_itself(webhooks: Webhooks):
    hook = await made(webhooks)
    with pytest.raises(Forbidden):
        await made(webhooks, all_owners=True)
    for who in (ANN, SYSTEM):
        with pytest.raises(Forbidden):
            await webhooks.update(who, hook.webhook_id, all_owners=True)
    assert (await made(webhooks, SYSTEM, all_owners=True)).all_owners


async def test_an_agent_must_exist_and_lists_are_by_agent(webhooks: Webhooks, store: Store):
    await agent(store, "ada")
    with pytest.raises(AgentNotFound):
        await made(webhooks, agent_id="nobody")
    adas, _ = await made(webhooks, agent_id="ada"), await made(webhooks)
    await made(webhooks, BEN, agent_id="ada")
    assert [h.webhook_id for h in (await webhooks.page(ANN, "ada")).items] == [adas.webhook_id]
    assert [(await webhooks.page(ANN, "bob")).total, (await webhooks.page(SYSTEM, "ada")).total] == [0, 2]
    assert (await webhooks.update(ANN, adas.webhook_id, agent_id="")).agent_id == ""
    assert (await webhooks.page(ANN, "ada")).total == 0 and (await webhooks.page(ANN)).total == 2


async def test_an_owner_has_a_bounded_number_of_webhooks(webhooks: Webhooks, monkeypatch):
    monkeypatch.setattr(serving, "MAX_PER_OWNER", 2)
    first = await made(webhooks)
    await made(webhooks)
    with pytest.raises(Conflict) as refusal:
        await made(webhooks)
    assert refusal.value.details == {"limit": 2}
    await made(webhooks, BEN)
    await webhooks.delete(ANN, first.webhook_id)
    await made(webhooks)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": "http://user:pw@host/"}, "url"), ({"url": "http://host/#x"}, "url"), ({"url": "ftp://host/"}, "url"),
        ({"url": "http://host/\r\nX-Evil: 1"}, "url"), ({"filters": ["task.nonsense"]}, "events"),
        ({"filters": []}, "events"), ({"secret": "short"}, "secret"),
    ],
)  # fmt: skip
async def test_a_bad_webhook_is_refused_by_field_when_made_and_when_changed(webhooks: Webhooks, fields, field):
    hook = await made(webhooks)
    for ask in (lambda: made(webhooks, **fields), lambda: webhooks.update(ANN, hook.webhook_id, **fields)):
        with pytest.raises(Invalid) as refusal:
            await ask()
        assert refusal.value.details["field"] == field
    assert await webhooks.get(ANN, hook.webhook_id) == hook


@pytest.mark.parametrize("address", [address for address in PRIVATE if "%" not in address])
async def test_in_production_a_private_address_is_refused_as_a_literal_and_behind_a_name(store: Store, address):
    written = f"[{address}]" if ":" in address else address
    literal = Webhooks(store, Egress(public_only=True))
    named = Webhooks(store, Egress(public_only=True, resolver=Names([address])))
    for webhooks, host in ((literal, written), (named, "inside.example")):
        with pytest.raises(Invalid) as refusal:
            await made(webhooks, url=f"http://{host}/latest/meta-data")
        assert refusal.value.details["field"] == "url" and address not in refusal.value.message
    hook = await made(Webhooks(store, Egress(public_only=True, resolver=Names(["93.184.215.14"]))), url="http://x.y/")
    with pytest.raises(Invalid):
        await literal.update(ANN, hook.webhook_id, url=f"http://{written}/")


async def test_a_secret_in_an_update_is_a_rotation(webhooks: Webhooks):
    hook = await made(webhooks)
    after = await webhooks.update(ANN, hook.webhook_id, secret="another secret")
    assert [s.value for s in after.secrets] == ["another secret", SECRET] and after.secrets[1].until is not None


async def test_a_replay_needs_a_webhook_that_is_on_and_a_span_that_ends_after_it_begins(webhooks: Webhooks):
    async with Receiver() as receiver:
        hook = await made(webhooks, url=receiver.url)
        sent = await webhooks.test(ANN, hook.webhook_id)
    now = utc_now()
    with pytest.raises(Invalid) as refusal:
        await webhooks.replay_range(ANN, hook.webhook_id, now, now - timedelta(seconds=1))
    assert refusal.value.details["field"] == "end"
    again = await webhooks.replay(ANN, hook.webhook_id, sent.delivery_id)
    assert again.state == "pending" and again.next_at is not None
    await webhooks.update(ANN, hook.webhook_id, active=False)
    for ask in (
        lambda: webhooks.replay(ANN, hook.webhook_id, sent.delivery_id),
        lambda: webhooks.replay_range(ANN, hook.webhook_id, now, now),
    ):
        with pytest.raises(Conflict):
            await ask()
    await webhooks.close()
