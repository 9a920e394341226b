import ast
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from audit_harness import happened, person, program
from hypothesis import given
from hypothesis import strategies as st

from cluster.audit.model import Head, Replay, append, log_id, told
from cluster.audit.table import ACTIONS, EVENT_TYPES, TABLE, draft, plain
from cluster.events import Event

ROOT = Path(__file__).resolve().parents[3]
ANN, APP = person("ann"), program("app")
LAYERS = ("cluster", "rag", "train", "agents", "serve_apps")
AUDITED = (
    "user", "key", "signing_key", "token", "session", "login", "access", "webhook", "agent", "model", "knowledge",
    "deployment",
)  # fmt: skip
NOT_AUDITED = {
    "model.created",  # the entry is the training's that made it
    "knowledge.added",
}


def place(event: Event, number: int = 1) -> Event:
    return event.model_copy(update={"event_id": f"evt_1700000000123-{number}"})


def test_an_entry_says_who_did_what_to_whose_thing_from_where():
    event = place(happened("model.deleted", 7, ANN, owner="user_bob", data={"name": "tiny"}))
    _, [entry] = append(Head(), [d for d in [draft(event)] if d])
    assert (entry.event_type, entry.action, entry.success) == ("deletion", "model_deleted", True)
    assert (entry.principal_id, entry.username, entry.actor, entry.owner) == ("user_ann", "ann", "user_ann", "user_bob")
    assert (entry.ip_address, entry.user_agent, entry.request_id) == ("192.0.2.3", "Test/1.0", "req_7")
    assert told(entry) == {"endpoint": "/somewhere", "method": "POST", "name": "tiny", "subject": "thing_7"}
    assert entry.created_at == datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)
    assert entry.log_id == "log_018bcfe5687b00000001" and entry.parties == {"user_ann", "user_bob"}


@pytest.mark.parametrize(
    ("event", "client", "parties"),
    [
        (happened("agent.registered", 1, APP), "app", {"client_app"}),
        (happened("training.failed", 1, owner="client_app"), "app", {"client_app"}),
        (happened("training.failed", 1, owner="user_ann"), "", {"user_ann"}),
        (happened("model.deleted", 1, APP, owner="user_ann"), "app", {"client_app", "user_ann"}),
        (happened("model.deleted", 1, ANN, data={"client_id": "app"}), "app", {"client_app", "user_ann"}),
        (happened("access.refused", 1), "", set()),
    ],
)
def test_a_client_is_a_party_of_what_it_did_and_of_what_was_done_to_it(event: Event, client: str, parties: set[str]):
    _, [entry] = append(Head(), [d for d in [draft(place(event))] if d])
    assert entry.client_id == client and entry.parties == parties


def test_of_the_changes_of_trust_only_a_persons_are_kept():
    data = {"event_type": "task_completed", "trust_score": 0.5}
    assert draft(place(happened("trust.changed", 1, data=data))) is None
    adjusted = draft(place(happened("trust.changed", 1, ANN, data=data | {"event_type": "manual_adjustment"})))
    assert adjusted is not None and adjusted.action == "trust_adjusted"
    assert draft(place(happened("task.created", 1, ANN))) is None


def kinds_told() -> set[str]:
    """Kinds in the source: given as `kind=`, assigned to `kind`, or the first argument of a function called `told`."""
    found: list[ast.expr] = []
    for file in [file for layer in LAYERS for file in (ROOT / layer).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.keyword(arg="kind", value=value) | ast.Assign(targets=[ast.Name("kind")], value=value):
                    found.append(value)
                case ast.Call(func=ast.Name("told" | "_told"), args=[value, *_]):
                    found.append(value)
    texts = {str(n.value) for value in found for n in ast.walk(value) if isinstance(n, ast.Constant)}
    return {text for text in texts if text.partition(".")[0] in AUDITED and not text.endswith(".")}


def test_every_kind_of_event_that_concerns_security_has_its_line_in_the_table():
    assert {"session.started", "user.disabled", "knowledge.deleted", "key.revoked"} <= kinds_told()
    missing = kinds_told() - TABLE.keys() - NOT_AUDITED
    assert not missing, f"cluster/audit/table.py has no line for {sorted(missing)}"


def test_an_action_belongs_to_one_type_and_either_goes_well_or_does_not():
    rules = {rule.action: (rule.event_type, rule.success) for rule in TABLE.values()}
    assert all(rules[rule.action] == (rule.event_type, rule.success) for rule in TABLE.values())
    assert set(rules) == set(ACTIONS) and {t for t, _ in rules.values()} == set(EVENT_TYPES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=600),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=20), inner, max_size=5),
    max_leaves=20,
)


@given(
    st.dictionaries(st.sampled_from(["tags", "name", "client_id", "error", "phase"]), JSON),
    st.sampled_from(sorted(TABLE)),
)
def test_whatever_an_event_carries_becomes_an_entry_of_a_chain_that_holds(data, kind):
    made = draft(place(happened(kind, 1, ANN, data=data)))
    if made is not None:
        head, entries = append(Head(), [made])
        replay = Replay()
        assert replay.take(entries) is None and replay.end(head, more=False) is None
        assert len(entries[0].details) < 100_000


def test_numbers_that_json_readers_disagree_about_are_told_as_text():
    assert plain([2**53, math.nan, -math.inf, 2**53 - 1, True]) == [str(2**53), "nan", "-inf", 2**53 - 1, True]
    assert plain({"a": {"b": {"c": {"d": {"e": 1}}}}})["a"]["b"]["c"]["d"] == "{'e': 1}"


def test_ids_sort_as_the_stream_does():
    ids = [f"evt_{ms}-{n}" for ms in (1, 99, 1_700_000_000_000) for n in (0, 9, 10, 4096)]
    assert sorted(ids, key=log_id) == ids
