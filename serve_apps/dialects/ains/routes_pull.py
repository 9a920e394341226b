"""DukeNet AINS, pull delivery: agents that take their tasks themselves."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from cluster.tasks.delivery import message
from cluster.workers.pulling import Poll
from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.waits import LONGEST_SECONDS

router = APIRouter(prefix="/ains/agents/{agent_id}/tasks")
MOST = 100
NOTHING: dict[int | str, dict[str, Any]] = {204: {"description": "No task came in time"}, 409: {}}


@router.get("/next", responses=NOTHING, response_model=None)
async def next_task(
    agent_id: str, request: Request, who: SignedIn, core: FromCore,
    wait: Annotated[int, Query(ge=0, le=LONGEST_SECONDS, description="Seconds to wait for a task")] = 30,
    most: Annotated[int, Query(ge=1, le=MOST, alias="max", description="Tasks; above 1 they come as `tasks`")] = 1,
) -> dict[str, Any] | Response:  # fmt: skip
    """Take the agent's next task, waiting for one: what an agent would be sent, and its `deadline`.

    From the answer on the agent has it, and reports as after a 202. Its polls are its signs of life.
    """
    seconds = core.waits.seconds(wait)
    poll = Poll(await core.workers.polled(who, agent_id, seconds), most)
    async with core.waits.watched(request, poll.leave):
        tasks = await core.waits.pulling.next(poll, seconds)
    if not tasks:
        return Response(status_code=204)
    sent = [message(task, core.settings.url) for task in tasks]
    return {"tasks": sent} if most > 1 else sent[0]
