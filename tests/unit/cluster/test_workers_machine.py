"""What happens to an agent: a table of silence, signs of life, goodbyes, and signed changes."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import AgentExists, BadSignature, Conflict, Invalid
from cluster.workers import machine
from cluster.workers.model import PULL, Agent
from cluster.workers.signature import same_key, signed_bytes

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Key:
    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.pem = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, agent: Agent) -> str:
        said = signed_bytes(agent.agent_id, agent.display_name, agent.public_key, agent.endpoint, agent.tags)
        return base64.b64encode(self.key.sign(said)).decode()


OLD, NEW = Key(), Key()


def an_agent(**fields) -> Agent:
    wanted = {
        "agent_id": "ada", "owner": "user_ann", "display_name": "Ada", "public_key": OLD.pem, "tags": ("sums:v1",),
        "endpoint": "https://ada.example/", "created_at": NOON, "last_seen_at": NOON,
    }  # fmt: skip
    return Agent(**wanted | fields)


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def beaten(**fields) -> Agent:
    return machine.heartbeat(an_agent(**fields), NOON, "ACTIVE", None, None)


def test_who_never_sent_a_heartbeat_is_not_taken_for_gone():
    agent = machine.seen(an_agent(), later(60))
    assert agent.expires_at is None and agent.last_seen_at == later(60)
    assert machine.lapse(agent, later(10**6), NOON) is agent


@given(st.integers(10, 86_400), st.floats(0, 200_000))
def test_silence_for_the_time_to_live_ends_it_and_not_a_moment_less(ttl, silence):
    agent = beaten(ttl_seconds=ttl)
    gone = machine.lapse(agent, later(silence), since=later(-ttl))
    assert (gone.status == "inactive") == (later(silence) >= later(ttl))
    assert gone is agent or (gone.reason == machine.SILENT and not gone.retired)


def test_nobody_is_blamed_for_silence_while_the_village_was_away():
    agent = beaten(ttl_seconds=60)
    back = later(3600)
    assert machine.lapse(agent, back, since=back) is agent
    assert machine.lapse(agent, back + timedelta(seconds=31), since=back).status == "inactive"  # a beat and a half


@pytest.mark.parametrize("sign", ["heartbeat", "poll"])
def test_a_sign_of_life_brings_it_back(sign):
    gone = machine.lapse(beaten(), later(601), NOON)
    at = later(700)
    back = machine.seen(gone, at) if sign == "poll" else machine.heartbeat(gone, at, "ACTIVE", None, None)
    assert (back.status, back.reason, back.last_seen_at) == ("active", "", at)
    assert back.expires_at == at + timedelta(seconds=600)
    event = machine.changed(gone, back, at)
    assert event is not None and event.kind == "agent.updated" and event.data["changed"] == ["status"]


def test_of_most_signs_of_life_nothing_is_written():
    agent = beaten()
    assert machine.seen(agent, later(29)) is agent and machine.seen(agent, later(31)).last_seen_at == later(31)
    assert machine.seen(beaten(ttl_seconds=10), later(2)).last_seen_at == later(2)
    assert machine.changed(agent, machine.seen(agent, later(31)), later(31)) is None


def test_the_first_poll_of_a_pulling_agent_makes_its_silence_count():
    assert machine.seen(an_agent(endpoint=PULL), later(1)).expires_at == later(601)


def test_a_poll_is_a_sign_of_life_for_as_long_as_it_waits():
    # The bug: an agent with a short time to live was taken for gone while it waited for a task.
    agent = machine.seen(an_agent(endpoint=PULL, ttl_seconds=10), NOON)
    agent = machine.seen(agent, later(0.5), waits=60)
    assert machine.lapse(agent, later(60), NOON) is agent and agent.expires_at == later(70.5)
    assert machine.seen(agent, later(1), waits=60) is agent


def test_offline_is_a_goodbye_until_the_next_heartbeat():
    agent = machine.heartbeat(an_agent(), NOON, "OFFLINE", {"cpu": 0.5}, None)
    event = machine.changed(an_agent(), agent, NOON)
    assert agent.status == "inactive" and not agent.expires and event is not None
    assert event.kind == "agent.deactivated" and event.data["reason"] == "it says that it is offline"
    back = machine.heartbeat(agent, later(5), "DEGRADED", None, {"gpus": 1})
    assert (back.status, back.health) == ("active", "DEGRADED")
    assert (back.metrics, back.resources) == ({"cpu": 0.5}, {"gpus": 1})


def test_who_was_taken_out_comes_back_by_registering_only():
    agent = machine.retire(beaten(), "moved")
    event = machine.changed(beaten(), agent, NOON)
    assert event is not None and (event.kind, event.data["reason"]) == ("agent.deactivated", "moved")
    assert machine.retire(agent, "again") is agent and not agent.expires
    for act in (
        lambda: machine.seen(agent, later(60)),
        lambda: machine.heartbeat(agent, later(60), "ACTIVE", None, None),
        lambda: machine.update(agent, {"display_name": "x"}, "", "", True),
    ):
        with pytest.raises(Conflict):
            act()
    new = an_agent(endpoint="https://elsewhere.example/", created_at=later(60), owner="user_admin")
    back = machine.again(agent, new, admin=True)
    assert (back.status, back.owner, back.created_at) == ("active", "user_ann", NOON)
    assert back.endpoint == "https://elsewhere.example/" and not back.retired


@pytest.mark.parametrize(
    ("former", "new", "admin"),
    [
        ({}, {}, True), ({"status": "inactive"}, {"public_key": NEW.pem}, True),
        ({"status": "inactive"}, {"owner": "user_ben"}, False),
    ],
)  # fmt: skip
def test_an_id_is_taken_while_it_is_active_or_anothers(former, new, admin):
    with pytest.raises(AgentExists):
        machine.again(an_agent(**former), an_agent(**new), admin)


def test_a_name_or_tags_need_no_signature_and_an_endpoint_does():
    agent = an_agent()
    assert machine.update(agent, {"tags": ("a:v1", "a:v1"), "display_name": "x"}, "", "", False).tags == ("a:v1",)
    moved = {"endpoint": "https://new.example/"}
    for signed, error in (("", Invalid), (NEW.sign(agent.model_copy(update=moved)), BadSignature)):
        for admin in (False, True):
            with pytest.raises(error):
                machine.update(agent, moved, signed, "", admin)
    with pytest.raises(BadSignature):  # of the old particulars
        machine.update(agent, moved, OLD.sign(agent), "", False)
    after = agent.model_copy(update=moved)
    assert machine.update(agent, moved, OLD.sign(after), "", False) == after


def test_a_new_key_is_signed_by_both_and_a_lost_one_replaced_by_an_admin():
    agent = an_agent()
    change = {"public_key": NEW.pem}
    after = agent.model_copy(update=change)
    old, new = OLD.sign(after), NEW.sign(after)
    assert machine.update(agent, change, old, new, False) == after == machine.update(agent, change, "", new, True)
    for signed, by_new, admin in (("", new, False), (old, "", True), (new, new, True), (old, old, True)):
        with pytest.raises(Invalid):  # of which BadSignature is one
            machine.update(agent, change, signed, by_new, admin)


def test_a_key_is_the_same_however_its_text_is_wrapped():
    assert same_key(OLD.pem, OLD.pem.replace("\n", "\r\n")) and not same_key(OLD.pem, NEW.pem)
    assert not same_key("", OLD.pem)
