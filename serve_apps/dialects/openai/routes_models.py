"""OpenAI, models: what a chat completion may name."""

from typing import Any

from fastapi import APIRouter

from serve_apps.chat.engine import ModelRef
from serve_apps.core import FromCore
from serve_apps.kit.auth import SignedIn

router = APIRouter(prefix="/openai/v1/models")


def shown(model: ModelRef) -> dict[str, Any]:
    """OpenAI's model object; a request may name the model by `id` or by `name`."""
    return {
        "id": model.model_id, "object": "model", "created": int(model.created_at), "owned_by": model.owner,
        "name": model.name, "context_length": model.context_length or None,
    }  # fmt: skip


@router.get("")
async def listed(who: SignedIn, core: FromCore) -> dict[str, Any]:
    """Every model that the caller may chat with, the default one first."""
    return {"object": "list", "data": [shown(model) for model in await core.chat.listed(who)]}


@router.get("/{model_id}", responses={409: {}})
async def one(model_id: str, who: SignedIn, core: FromCore) -> dict[str, Any]:
    """One model, by id or name."""
    return shown(await core.chat.model(who, model_id))
