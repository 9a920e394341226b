"""What a principal may do with templates."""

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from cluster.clock import Clock, utc_now
from cluster.errors import Conflict, TemplateNotFound
from cluster.identity.model import Principal
from cluster.ids import new_id
from cluster.store import Page, Store, Write
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks, TaskSpec
from cluster.workflows.model import Author, shelf
from cluster.workflows.submitting import submission
from cluster.workflows.templates.model import Template, merged, told

MAX_PER_OWNER = 1000
RACES = 100


class Templates:
    """Template use cases. `who` has its own templates, an admin everybody's; another's is a `TemplateNotFound`."""

    def __init__(self, store: Store, tasks: Tasks, clock: Clock = utc_now) -> None:
        self.store, self.tasks, self.clock = store, tasks, clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, who: Principal, **fields: Any) -> Template:
        """`fields` are those of `Template` that its author gives. Raises as `Tasks.submit`, and `Conflict`."""
        at = self.clock()
        template = Template(
            template_id=new_id("tmpl"), author=Author.of(who), created_at=at, updated_at=at, **fields
        )  # fmt: skip
        await self.tasks.prepare(who, [spec_of(template, {}, {})])
        mine = shelf(who.model_copy(update={"scopes": frozenset()}))
        if await self.store.count(Template, "list", *mine) >= MAX_PER_OWNER:
            raise Conflict(f"an owner may have {MAX_PER_OWNER} templates", limit=MAX_PER_OWNER)
        return await self.store.create(template, told(template, "template.created", at))

    async def get(self, who: Principal, template_id: str) -> Template:
        """Raises `TemplateNotFound`."""
        return self._seen(who, await self.store.find(Template, template_id), template_id)

    def _seen(self, who: Principal, template: Template | None, template_id: str) -> Template:
        if template is None or not who.sees(template.author.owner):
            raise TemplateNotFound(f"no template {template_id}", template_id=template_id)
        return template

    async def page(self, who: Principal, *, client_id: str = "", offset: int = 0, limit: int = 50) -> Page[Template]:
        """Newest first."""
        return await self.store.page(Template, "list", *shelf(who, client_id), offset=offset, limit=limit)

    async def update(self, who: Principal, template_id: str, **fields: Any) -> Template:
        """Change what is given, for the tasks that are made from now on. Raises `TemplateNotFound`, as `create`."""
        wanted = (await self.get(who, template_id)).model_copy(update=fields)
        await self.tasks.prepare(wanted.author.acting_for(wanted.client_id), [spec_of(wanted, {}, {})])
        at = self.clock()

        def step(template: Template) -> Template:
            after = template.model_copy(update=fields)
            return template if after == template else after.model_copy(update={"updated_at": at})

        return await self.store.change(
            Template, template_id, step, lambda _, after: told(after, "template.updated", at)
        )  # fmt: skip

    async def delete(self, who: Principal, template_id: str) -> Template:
        """Its tasks stay. Raises `TemplateNotFound`."""
        template = await self.get(who, template_id)
        return await self.store.delete(Template, template_id, told(template, "template.deleted", self.clock()))

    async def create_task(
        self, who: Principal, template_id: str, input_data: Mapping[str, Any], **own: Any
    ) -> tuple[Task, Template]:
        """The task, and the template that has counted it in the same commit. `own` goes over the template's defaults.

        Raises `TemplateNotFound`, and as `Tasks.submit`.
        """
        # One after the other within a process: all of them write the same record, and would only lose races.
        async with self._locks.setdefault(template_id, asyncio.Lock()):
            for _ in range(RACES):
                found, version = await self.store.load(Template, template_id)
                template, at = self._seen(who, found, template_id), self.clock()
                write = await submission(self.tasks, who, spec_of(template, input_data, own), "")
                used = template.model_copy(update={"times_used": template.times_used + 1, "last_used_at": at})
                if await self.store.commit(Write(template, used, version), write):
                    assert isinstance(write.after, Task)
                    return write.after, used
        raise Conflict("the template is used by too many at once", template_id=template_id)


def spec_of(template: Template, input_data: Mapping[str, Any], own: Mapping[str, Any]) -> TaskSpec:
    """The task of a template with somebody's own fields."""
    fields: dict[str, Any] = {
        "client_id": template.client_id, "priority": template.default_priority,
        "timeout_seconds": template.default_timeout, "max_retries": template.default_max_retries,
        "routing_strategy": template.default_routing_strategy, "trust_min": template.default_trust_min,
        "heartbeat_seconds": template.default_heartbeat_seconds,
    }  # fmt: skip
    fields |= own
    fields |= {
        "task_type": template.task_type, "capability_required": template.capability_required,
        "input_data": merged(template.default_input_data, input_data),
        "metadata": merged(template.default_metadata, own.get("metadata", {})),
    }  # fmt: skip
    return TaskSpec(**fields)
