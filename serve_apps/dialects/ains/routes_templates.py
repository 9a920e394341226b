"""DukeNet AINS, task templates: parse, call the core, render."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cluster.clock import iso
from cluster.routing.strategies import DEFAULT
from cluster.workflows.templates.model import Template
from serve_apps.core import FromCore
from serve_apps.dialects.ains.fields import (
    ClientFilter,
    Data,
    LongTimeout,
    Name,
    Priority,
    Retries,
    Silence,
    Strategy,
    Text,
    TrustMin,
    paged,
    stamp,
)
from serve_apps.dialects.ains.routes_tasks import submitted
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.pagination import Limit50, Offset

router = APIRouter(prefix="/ains/task-templates")
from_template = APIRouter(prefix="/ains/tasks/from-template")


class TemplateRequest(BaseModel):
    """A task with defaults."""

    name: Name
    client_id: Name
    description: Text = ""
    task_type: Name
    capability_required: Name
    default_input_data: Data = {}
    default_priority: Priority = 5
    default_timeout: LongTimeout = 300
    default_max_retries: Retries = 3
    default_routing_strategy: Strategy = DEFAULT
    default_trust_min: TrustMin = 0.0
    default_heartbeat_seconds: Silence = 0
    default_metadata: Data = {}


class TemplateChange(BaseModel):
    """What is given changes."""

    name: Name | None = None
    description: Text | None = None
    task_type: Name | None = None
    capability_required: Name | None = None
    default_input_data: Data | None = None
    default_priority: Priority | None = None
    default_timeout: LongTimeout | None = None
    default_max_retries: Retries | None = None
    default_routing_strategy: Strategy | None = None
    default_trust_min: TrustMin | None = None
    default_heartbeat_seconds: Silence | None = None
    default_metadata: Data | None = None


class FromTemplate(BaseModel):
    """A task of a template: what is given goes over the defaults, `input_data` and `metadata` key by key."""

    template_id: Annotated[str, Field(min_length=1, max_length=200)]
    input_data: Data = {}
    client_id: Name | None = None
    priority: Priority | None = None
    timeout_seconds: LongTimeout | None = None
    max_retries: Retries | None = None
    depends_on: Annotated[tuple[str, ...] | None, Field(max_length=1000)] = None
    routing_strategy: Strategy | None = None
    trust_min: TrustMin | None = None
    heartbeat_seconds: Silence | None = None
    metadata: Data | None = None


def shown(template: Template) -> dict[str, Any]:
    """A template."""
    return {
        "template_id": template.template_id, "name": template.name, "client_id": template.client_id,
        "description": template.description, "task_type": template.task_type,
        "capability_required": template.capability_required, "default_input_data": template.default_input_data,
        "default_priority": template.default_priority, "default_timeout": template.default_timeout,
        "default_max_retries": template.default_max_retries,
        "default_routing_strategy": template.default_routing_strategy,
        "default_trust_min": template.default_trust_min,
        "default_heartbeat_seconds": template.default_heartbeat_seconds, "default_metadata": template.default_metadata,
        "times_used": template.times_used, "last_used_at": stamp(template.last_used_at),
        "created_at": iso(template.created_at), "updated_at": iso(template.updated_at),
    }  # fmt: skip


def given(body: BaseModel) -> dict[str, Any]:
    """The fields that are not null."""
    return {name: value for name, value in dict(body).items() if value is not None}


@router.post("", status_code=201)
async def create_template(body: TemplateRequest, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Keep a task with defaults, to make others of."""
    return shown(await core.templates.create(who, **dict(body)))


@router.get("")
async def list_templates(
    who: SignedIn, core: FromCore, client_id: ClientFilter = "", limit: Limit50 = 50, offset: Offset = 0
) -> dict[str, Any]:
    """Templates, newest first."""
    page = await core.templates.page(who, client_id=client_id, offset=offset, limit=limit)
    return paged([shown(template) for template in page.items], page.total, limit, offset)


@router.get("/{template_id}")
async def get_template(template_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """A template, and how often it was used."""
    return shown(await core.templates.get(who, template_id))


@router.patch("/{template_id}")
async def update_template(template_id: str, body: TemplateChange, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Change a template, for the tasks that are made of it from now on."""
    return shown(await core.templates.update(who, template_id, **given(body)))


@router.delete("/{template_id}")
async def delete_template(template_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Remove a template; tasks that were made of it stay."""
    template = await core.templates.delete(who, template_id)
    return {
        "template_id": template.template_id, "deleted_at": iso(core.clock()),
        "message": "Task template deleted successfully",
    }  # fmt: skip


@from_template.post("", status_code=201, responses={404: {}})
async def create_from_template(body: FromTemplate, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Submit a task of a template: what is given goes over the template's defaults."""
    own = given(body)
    template_id, data = own.pop("template_id"), own.pop("input_data")
    task, template = await core.templates.create_task(who, template_id, data, **own)
    return submitted(task) | {
        "template_id": template.template_id, "task_type": task.task_type, "timeout_seconds": task.timeout_seconds,
        "max_retries": task.max_retries, "input_data": task.input_data,
    }  # fmt: skip
