"""Templates over a real Redis: what goes over what, and that each use is counted with its task."""

import asyncio
from typing import Any

import pytest
from dying import Dying
from hypothesis import given
from hypothesis import strategies as st
from workflow_harness import ANN, BEN

from cluster.errors import Conflict, DependencyNotFound, Forbidden, TemplateNotFound, UnknownStrategy
from cluster.identity.model import SYSTEM, Principal
from cluster.store import Store
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks
from cluster.workflows.templates import service as serving
from cluster.workflows.templates.model import Template, merged
from cluster.workflows.templates.service import Templates

DEFAULTS = {"algorithm": "random_forest", "hyperparameters": {"n_estimators": 100, "max_depth": 10}, "tags": [1, 2]}


@pytest.fixture
def templates(store: Store) -> Templates:
    return Templates(store, Tasks(store))


async def made(templates: Templates, who: Principal = ANN, **own) -> Template:
    known = {
        "client_id": who.client_id or "c", "name": "training", "task_type": "train", "capability_required": "ml:v2",
        "default_input_data": DEFAULTS, "default_priority": 6, "default_timeout": 3600, "default_max_retries": 2,
        "default_metadata": {"team": "a"},
        "default_heartbeat_seconds": 30,
    }  # fmt: skip
    return await templates.create(who, **known | own)


@pytest.mark.parametrize(
    ("default", "own", "expected"),
    [
        ({"a": 1}, {}, {"a": 1}), ({}, {"a": 1}, {"a": 1}), ({"a": 1}, {"a": 2, "b": 3}, {"a": 2, "b": 3}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 9}}}, {"a": {"b": {"c": 9, "d": 2}}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}), ({"a": {"x": 1}}, {"a": 5}, {"a": 5}),
        ({"a": 5}, {"a": {"x": 1}}, {"a": {"x": 1}}), ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": {"x": 1}}, {"a": {}}, {"a": {"x": 1}}),
    ],
)  # fmt: skip
def test_objects_merge_and_all_else_is_replaced(default, own, expected):
    assert merged(default, own) == expected


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """What is at each path that ends in something else than an object with something in it."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {at: leaf for name, inner in value.items() for at, leaf in leaves(inner, (*path, name)).items()}


@given(OBJECTS, OBJECTS)
def test_whatever_is_given_is_there_and_the_default_wherever_nothing_was_given(default: dict, own: dict):
    before = (repr(default), repr(own))
    result = leaves(merged(default, own))
    given_leaves = leaves(own)
    for path, value in given_leaves.items():
        if value != {}:
            assert result[path] == value
    for path, value in result.items():
        assert value == given_leaves.get(path, value) or value == leaves(default).get(path)
    assert merged(default, {}) == default and merged({}, own) == own and merged(own, own) == own
    assert (repr(default), repr(own)) == before


async def test_a_task_has_the_defaults_and_what_was_given_over_them(templates: Templates, store: Store):
    template = await made(templates)
    plain, _ = await templates.create_task(ANN, template.template_id, {})
    assert (plain.priority, plain.timeout_seconds, plain.max_retries) == (6, 3600, 2)
    assert (plain.input_data, plain.owner, plain.client_id, plain.metadata) == (
        DEFAULTS, "client_ann", "ann", {"team": "a"}
    )  # fmt: skip
    own, used = await templates.create_task(
        ANN, template.template_id, {"hyperparameters": {"n_estimators": 200}}, priority=8, timeout_seconds=86_400,
        max_retries=0, depends_on=(plain.task_id,), routing_strategy="least_loaded", metadata={"run": 1}, trust_min=0.7,
    )  # fmt: skip
    assert own.input_data["hyperparameters"] == {"n_estimators": 200, "max_depth": 10}
    assert (own.priority, own.timeout_seconds, own.max_retries, own.routing_strategy) == (8, 86_400, 0, "least_loaded")
    assert (own.trust_min, plain.trust_min, plain.heartbeat_seconds) == (0.7, 0.0, 30)
    assert own.waiting_for == (plain.task_id,) and own.metadata == {"team": "a", "run": 1}
    assert (used.times_used, used.last_used_at is not None) == (2, True)
    assert await templates.get(ANN, template.template_id) == used and await store.get(Task, own.task_id) == own


async def test_a_task_that_is_refused_is_not_counted(templates: Templates, store: Store):
    template = await made(templates)
    for own, error in (
        ({"routing_strategy": "by_dice"}, UnknownStrategy), ({"depends_on": ("task_none",)}, DependencyNotFound),
        ({"client_id": "ben"}, Forbidden),
    ):  # fmt: skip
        with pytest.raises(error):
            await templates.create_task(ANN, template.template_id, {}, **own)
    assert (await templates.get(ANN, template.template_id)).times_used == 0
    assert await store.count(Task, "list", "all") == 0


@pytest.mark.parametrize("after", [False, True])
async def test_a_use_is_counted_with_its_task_or_neither_is_there(templates: Templates, store: Store, after: bool):
    template, dying = await made(templates), Dying(store.url, 1, after)
    with pytest.raises(asyncio.CancelledError):
        await Templates(dying, Tasks(dying)).create_task(ANN, template.template_id, {})
    await dying.close()
    counted = (await templates.get(ANN, template.template_id)).times_used
    assert counted == await store.count(Task, "list", "all") == after


async def test_many_at_once_are_all_counted(templates: Templates, store: Store):
    template, others = await made(templates), [Store(store.url) for _ in range(2)]
    replicas = [templates, *(Templates(other, Tasks(other)) for other in others)]
    await asyncio.gather(
        *(replica.create_task(ANN, template.template_id, {"n": n}) for n in range(40) for replica in replicas)
    )
    for other in others:
        await other.close()
    assert (await templates.get(ANN, template.template_id)).times_used == 120
    assert await store.count(Task, "list", "all") == 120


async def test_anothers_template_does_not_exist(templates: Templates):
    template = await made(templates)
    for ask in (
        lambda: templates.get(BEN, template.template_id), lambda: templates.delete(BEN, template.template_id),
        lambda: templates.update(BEN, template.template_id, name="mine"),
        lambda: templates.create_task(BEN, template.template_id, {}), lambda: templates.get(ANN, "tmpl_none"),
        lambda: templates.create_task(ANN, "tmpl_none", {}),
    ):  # fmt: skip
        with pytest.raises(TemplateNotFound):
            await ask()
    assert await templates.get(SYSTEM, template.template_id) == template
    assert [(await templates.page(who)).total for who in (ANN, BEN, SYSTEM)] == [1, 0, 1]
    assert (await templates.page(SYSTEM, client_id="ben")).total == 0
    with pytest.raises(Forbidden):
        await made(templates, client_id="ben")


async def test_a_change_is_for_tasks_from_then_on_and_an_event_once(templates: Templates, store: Store):
    template = await made(templates)
    changed = await templates.update(ANN, template.template_id, default_priority=2)
    assert await templates.update(ANN, template.template_id, default_priority=2) == changed
    with pytest.raises(UnknownStrategy):
        await templates.update(ANN, template.template_id, default_routing_strategy="by_dice")
    task, _ = await templates.create_task(ANN, template.template_id, {})
    assert task.priority == 2
    await templates.delete(ANN, template.template_id)
    assert (await store.get(Task, task.task_id)).task_id and (await templates.page(ANN)).total == 0
    kinds = [event.kind for event in await store.events() if event.subject == template.template_id]
    assert kinds == ["template.created", "template.updated", "template.deleted"]


async def test_an_owner_has_a_bounded_number_of_templates(templates: Templates, monkeypatch):
    monkeypatch.setattr(serving, "MAX_PER_OWNER", 1)
    await made(templates)
    with pytest.raises(Conflict):
        await made(templates)
    await made(templates, BEN)
