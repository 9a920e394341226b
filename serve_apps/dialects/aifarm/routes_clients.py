"""AI Farm, clients: who they are, what they have, what they work on."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from cluster.clock import iso
from cluster.farm.fleet import Held
from cluster.farm.model import Client
from serve_apps.core import Core, FromCore
from serve_apps.dialects.aifarm import pages
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/api/clients")

ClientId = Annotated[str, Path(description="A farm client, by its Client-ID")]


class ResourcesAnswer(BaseModel):
    """As the client told; empty objects where it told nothing. Memory in MB."""

    cpu: dict[str, Any]
    ram: dict[str, Any]
    gpu: list[dict[str, Any]] | dict[str, Any]


class ClientGlance(BaseModel):
    """A client in a list; inactive once it was not heard of for 60 s."""

    id: str
    status: Literal["active", "inactive"]
    resources: ResourcesAnswer
    last_seen: str


class ClientList(BaseModel):
    """A page of clients, newest first."""

    clients: list[ClientGlance]
    total: int
    page: int


class ClientTask(BaseModel):
    """A rank that the client holds, or held."""

    id: str
    status: str
    progress: float
    round: int
    rank: int
    attempt: int


class Performance(BaseModel):
    """Of what it has ended; `average_time` in seconds. Both means are 0 while `ended_tasks` is."""

    completed_tasks: int
    ended_tasks: int
    average_time: float
    success_rate: float


class ClientAnswer(ClientGlance):
    """A client in full; the rank that it holds first, then the last ones that it held."""

    connected: bool
    tasks: list[ClientTask]
    performance: Performance
    trust_score: float


def glance(core: Core, client: Client) -> dict[str, Any]:
    """The document's shape."""
    told = client.resources
    return {
        "id": client.client_id, "status": "active" if core.farm.fleet.is_active(client) else "inactive",
        "resources": {
            "cpu": told.cpu.model_dump() if told and told.cpu else {},
            "ram": told.ram.model_dump() if told and told.ram else {},
            "gpu": [gpu.model_dump() for gpu in told.gpu] if told else {},
        },
        "last_seen": iso(client.last_seen),
    }  # fmt: skip


def tasks_of(held: Held) -> list[ClientTask]:
    """What it holds, then what it held, newest first."""
    found = []
    if held.rank is not None:
        rank = held.rank
        found.append(
            ClientTask(
                id=rank.task_id, status=held.task.state.value if held.task else "cancelled", progress=rank.progress,
                round=rank.round, rank=rank.rank, attempt=rank.attempt,
            )
        )  # fmt: skip
    return found + [
        ClientTask(
            id=past.task_id, status=past.state.value, progress=past.progress, round=past.round, rank=past.rank,
            attempt=past.attempt,
        )
        for past in reversed(held.client.recent)
    ]  # fmt: skip


def performance(client: Client) -> Performance:
    """From what was recorded."""
    ended = client.completed + client.failed
    return Performance(
        completed_tasks=client.completed, ended_tasks=ended,
        average_time=client.busy_seconds / client.completed if client.completed else 0.0,
        success_rate=client.completed / ended if ended else 0.0,
    )  # fmt: skip


@router.get("", responses={200: {"headers": pages.HEADERS}})
async def list_clients(
    who: SignedIn, core: FromCore, request: Request, response: Response, page: pages.Page = 1, limit: pages.Limit = 10,
    status: Annotated[Literal["active", "inactive"] | None, Query(description="Only those that are this")] = None,
) -> ClientList:  # fmt: skip
    """The caller's clients, an admin's everybody's."""
    active = None if status is None else status == "active"
    found = await core.farm.fleet.page(who, active, (page - 1) * limit, limit)
    pages.say(request, response, page, limit, found.total)
    shown = [ClientGlance(**glance(core, client)) for client in found.items]
    return ClientList(clients=shown, total=found.total, page=page)


@router.get("/{client_id}")
async def get_client(client_id: ClientId, who: SignedIn, core: FromCore) -> ClientAnswer:
    """A client, what it works on and how well."""
    held = await core.farm.fleet.get(who, client_id)
    return ClientAnswer(
        **glance(core, held.client), connected=bool(held.client.connection), tasks=tasks_of(held),
        performance=performance(held.client), trust_score=await core.farm.fleet.score(held.client),
    )  # fmt: skip
