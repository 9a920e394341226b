"""DukeNet AINS, task chains: parse, call the core, render."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cluster.clock import iso
from cluster.routing.strategies import DEFAULT
from cluster.tasks.model import TaskState
from cluster.workflows.chains.model import MOST_STEPS, Chain, ChainState, Step
from cluster.workflows.chains.service import View
from serve_apps.core import FromCore
from serve_apps.dialects.ains.fields import (
    ClientFilter,
    Data,
    Name,
    Priority,
    Retries,
    Silence,
    Strategy,
    Text,
    Timeout,
    TrustMin,
    paged,
    stamp,
)
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.pagination import Limit50, Offset

router = APIRouter(prefix="/ains/task-chains")


class ChainStep(BaseModel):
    """One task of a chain. With `use_previous_output` it finds the last result in its input, as `previous_output`."""

    name: Name
    task_type: Name
    capability_required: Name
    input_data: Data = {}
    use_previous_output: bool = False
    priority: Priority = 5
    timeout_seconds: Timeout = 300
    max_retries: Retries = 3
    routing_strategy: Strategy = DEFAULT
    trust_min: TrustMin = 0.0
    heartbeat_seconds: Silence = 0
    metadata: Data = {}


class ChainRequest(BaseModel):
    """Up to 100 steps, of which each begins when the one before it has completed."""

    name: Name
    client_id: Name
    description: Text = ""
    steps: Annotated[list[ChainStep], Field(min_length=1, max_length=MOST_STEPS)]


class ChainCancellation(BaseModel):
    """Why."""

    reason: Text = ""


def summary(chain: Chain) -> dict[str, Any]:
    """A chain without its steps."""
    return {
        "chain_id": chain.chain_id, "name": chain.name, "client_id": chain.client_id,
        "description": chain.description, "status": chain.state, "current_step": chain.current_step,
        "total_steps": chain.total_steps,
        "progress_percentage": round(100 * chain.completed_steps / chain.total_steps, 1),
        "reason": chain.reason or None, "retries": chain.retries, "created_at": iso(chain.created_at),
        "updated_at": iso(chain.updated_at), "completed_at": stamp(chain.completed_at),
    }  # fmt: skip


def begun(chain: Chain, expected: datetime | None) -> dict[str, Any]:
    """A chain that has just been started, or started again."""
    return summary(chain) | {"estimated_completion": stamp(expected)}


def in_full(view: View) -> dict[str, Any]:
    """A chain with every step, and the results that there are. A step that has not begun has no task."""
    steps: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for index, step in enumerate(view.steps):
        done = view.chain.begun[index] if index < len(view.chain.begun) else None
        task = view.tasks.get(done.task_id) if done else None
        state = (task.state if task else done.state) if done else None
        steps.append(
            {
                "step_index": index, "name": step.name, "status": state or TaskState.PENDING,
                "task_id": done.task_id if done else None, "task_type": step.task_type,
                "capability_required": step.capability_required,
            }
        )  # fmt: skip
        if done and done.state is not None:
            results[str(index)] = {
                "status": done.state, "data": task.result_data if task else None, "error": done.error or None,
                "completed_at": stamp(done.completed_at),
            }  # fmt: skip
    first = view.tasks.get(view.chain.begun[0].task_id)
    return begun(view.chain, view.expected) | {
        "steps": steps, "step_results": results, "started_at": stamp(first.started_at if first else None)
    }  # fmt: skip


@router.post("", status_code=201)
async def create_chain(body: ChainRequest, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Start a chain of tasks."""
    steps = [Step(**dict(step)) for step in body.steps]
    chain, expected = await core.chains.create(
        who, client_id=body.client_id, name=body.name, description=body.description, steps=steps
    )
    return begun(chain, expected)


@router.get("")
async def list_chains(
    who: SignedIn, core: FromCore, client_id: ClientFilter = "", status: ChainState | None = None,
    limit: Limit50 = 50, offset: Offset = 0,
) -> dict[str, Any]:  # fmt: skip
    """Chains, newest first."""
    page = await core.chains.page(who, client_id=client_id, state=status, offset=offset, limit=limit)
    return paged([summary(chain) for chain in page.items], page.total, limit, offset)


@router.get("/{chain_id}")
async def get_chain(chain_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """A chain with its steps and results."""
    return in_full(await core.chains.view(who, chain_id))


@router.post("/{chain_id}/cancel")
async def cancel_chain(
    chain_id: str, who: SignedIn, core: FromCore, body: ChainCancellation | None = None
) -> dict[str, Any]:
    """Cancel a chain that has not ended, and the task that runs for it."""
    chain = await core.chains.cancel(who, chain_id, body.reason if body else "")
    return {
        "chain_id": chain.chain_id, "status": chain.state, "cancelled_at": stamp(chain.completed_at),
        "reason": chain.reason,
    }  # fmt: skip


@router.post("/{chain_id}/retry")
async def retry_chain(chain_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Go on with a failed or cancelled chain, from the step that did not complete."""
    return summary(await core.chains.retry(who, chain_id))


@router.delete("/{chain_id}")
async def delete_chain(chain_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Forget a chain that has ended; its tasks stay."""
    chain = await core.chains.delete(who, chain_id)
    return {"chain_id": chain.chain_id, "deleted_at": iso(core.clock()), "message": "Task chain deleted successfully"}
