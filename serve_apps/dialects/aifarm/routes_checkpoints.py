"""AI Farm, checkpoints: ranks upload theirs, and download the average that a round begins with."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel

from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/api/tasks/{task_id}")

UPLOAD = "/api/tasks/{task_id}/checkpoints/{rank}"
BINARY = "application/octet-stream"
FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A safetensors file", "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
}
BODY = {"requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}}
Number = Annotated[str, Path(description="The rank, from 0 on")]
Round = Annotated[int | None, Query(ge=0, le=100_000, description="The round, from 0 on; without it the present one")]
ClientId = Annotated[str, Header(max_length=128, description="The farm client that works on it")]


def number(rank: str) -> int:
    """The rank; -1, which nobody holds, for what is no number: that is not found, like any other that is not there."""
    return int(rank) if rank.isascii() and rank.isdecimal() and len(rank) < 4 else -1


class Uploaded(BaseModel):
    """What was taken."""

    task_id: str
    round: int
    rank: int
    bytes: int


@router.put("/checkpoints/{rank}", openapi_extra=BODY, responses={409: {}})
async def upload_checkpoint(
    task_id: str, rank: Number, who: SignedIn, core: FromCore, request: Request, round: Round = None,
    client_id: ClientId = "",
) -> Uploaded:  # fmt: skip
    """Upload a rank's checkpoint (safetensors), by the client that holds the rank; the last one counts."""
    length = request.headers.get("content-length", "")
    told = int(length) if length.isdecimal() else None
    taken = await core.farm.checkpoints.upload(who, task_id, number(rank), round, client_id, told, request.stream())
    return Uploaded(task_id=task_id, round=taken.round, rank=taken.rank, bytes=taken.upload_bytes)


@router.get("/checkpoints/{rank}", response_class=FileResponse, responses=FILE)
async def download_upload(
    task_id: str, rank: Number, who: SignedIn, core: FromCore, round: Round = None,
    client_id: ClientId = "",
) -> FileResponse:  # fmt: skip
    """What a rank has uploaded; kept for two rounds."""
    path = await core.farm.checkpoints.of_rank(who, task_id, number(rank), round, client_id)
    return FileResponse(path, media_type=BINARY, filename=f"{task_id}-{path.name}")


@router.get("/checkpoint", response_class=FileResponse, responses=FILE)
async def download_average(
    task_id: str, who: SignedIn, core: FromCore, round: Round = None, client_id: ClientId = ""
) -> FileResponse:  # fmt: skip
    """The model that a round begins with, the average of those before; without `round` the newest."""
    path, number = await core.farm.checkpoints.average(who, task_id, round, client_id)
    return FileResponse(path, media_type=BINARY, filename=f"{task_id}-average-{number}.safetensors")
