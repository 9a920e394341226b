"""AINS, API keys: parse, call identity, render."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, Field

from cluster.clock import iso
from cluster.identity.apikeys import PER_HOUR, PER_MINUTE
from cluster.identity.records import ApiKey
from serve_apps.core import FromCore
from serve_apps.kit.auth import SECRET, SignedIn
from serve_apps.kit.pagination import Limit50, Offset

router = APIRouter(prefix="/ains/api-keys")

ClientId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._@-]+$")]


class KeyRequest(BaseModel):
    """What the key may do, how often, and until when."""

    client_id: ClientId = Field(examples=["production_application"])
    name: str = Field(min_length=1, max_length=200, examples=["Production API Key"])
    scopes: list[str] | None = Field(None, max_length=50, examples=[["tasks:write", "agents:read", "webhooks:manage"]])
    rate_limit_per_minute: int = Field(PER_MINUTE, ge=1, le=1_000_000)
    rate_limit_per_hour: int = Field(PER_HOUR, ge=1, le=60_000_000)
    expires_at: AwareDatetime | None = None


class KeyAnswer(BaseModel):
    """A key without the key."""

    key_id: str
    client_id: str
    name: str
    scopes: list[str]
    rate_limit_per_minute: int
    rate_limit_per_hour: int
    created_at: str
    expires_at: str | None


class NewKey(KeyAnswer):
    """The only answer that ever shows the key."""

    api_key: str


class ListedKey(KeyAnswer):
    """A key in a list."""

    active: bool
    last_used_at: str | None


class KeyList(BaseModel):
    """`total` counts those that the filter leaves."""

    keys: list[ListedKey]
    total: int


class Revoked(BaseModel):
    """When it was closed."""

    key_id: str
    revoked_at: str
    message: str = "API key revoked successfully"


def _stamp(at: datetime | None) -> str | None:
    return None if at is None else iso(at)


def _fields(key: ApiKey) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "client_id": key.client_id,
        "name": key.name,
        "scopes": list(key.scopes),
        "rate_limit_per_minute": key.rate_limit_per_minute,
        "rate_limit_per_hour": key.rate_limit_per_hour,
        "created_at": iso(key.created_at),
        "expires_at": _stamp(key.expires_at),
    }


def _listed(key: ApiKey, at: datetime) -> ListedKey:
    return ListedKey.model_validate(_fields(key) | {"active": key.active(at), "last_used_at": _stamp(key.last_used_at)})


@router.post("", status_code=201, dependencies=SECRET)
async def create_api_key(body: KeyRequest, who: SignedIn, core: FromCore) -> NewKey:
    """Make a key. Its value is shown here and never again."""
    record, key = await core.identity.create_key(
        who,
        body.client_id,
        body.name,
        body.scopes,
        body.rate_limit_per_minute,
        body.rate_limit_per_hour,
        body.expires_at,
    )
    return NewKey.model_validate(_fields(record) | {"api_key": key})


@router.get("")
async def list_api_keys(
    who: SignedIn, core: FromCore, client_id: Annotated[str, Query(max_length=128)] = "", active_only: bool = False,
    limit: Limit50 = 50, offset: Offset = 0,
) -> KeyList:  # fmt: skip
    """Keys, newest first."""
    page = await core.identity.list_keys(who, client_id, active_only, offset, limit)
    at = core.clock()
    return KeyList(keys=[_listed(key, at) for key in page.items], total=page.total)


@router.get("/{key_id}")
async def get_api_key(key_id: str, who: SignedIn, core: FromCore) -> ListedKey:
    """One key."""
    return _listed(await core.identity.get_key(who, key_id), core.clock())


@router.delete("/{key_id}")
async def revoke_api_key(key_id: str, who: SignedIn, core: FromCore) -> Revoked:
    """Close a key for good."""
    key = await core.identity.revoke_key(who, key_id)
    assert key.revoked_at is not None
    return Revoked(key_id=key.key_id, revoked_at=iso(key.revoked_at))
