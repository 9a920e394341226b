"""AIVillage, users: what an admin does with them, and they with themselves. Parse, call identity, render."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from cluster.clock import iso
from cluster.identity.model import Tier
from cluster.identity.passwords import LONGEST, SHORTEST
from cluster.identity.records import User
from serve_apps.core import FromCore
from serve_apps.dialects.aivillage.envelope import VillageRoute
from serve_apps.kit.auth import SignedIn
from serve_apps.kit.pagination import Limit50, Offset

router = APIRouter(prefix="/v1/users", route_class=VillageRoute)

NewPassword = Annotated[str, Field(min_length=SHORTEST, max_length=LONGEST, examples=["correct horse battery"])]
Scopes = Annotated[frozenset[str], Field(max_length=50, examples=[["read", "write"]])]


class Strict(BaseModel):
    """A field that is not meant to be set is an error, not silence."""

    model_config = ConfigDict(extra="forbid")


class UserRequest(Strict):
    """A new user."""

    username: str = Field(min_length=1, max_length=256, examples=["user@example.com"])
    password: NewPassword
    tier: Tier = "standard"
    scopes: Scopes = frozenset({"read", "write"})


class UserChange(Strict):
    """What is left out stays."""

    tier: Tier | None = None
    scopes: Scopes | None = None
    disabled: bool | None = None


class PasswordRequest(Strict):
    """An admin sets it without the old one."""

    new_password: NewPassword


class OwnPasswordRequest(PasswordRequest):
    """The user proves the old one."""

    old_password: str = Field(min_length=1, max_length=LONGEST)


class UserAnswer(BaseModel):
    """A user without any secret."""

    user_id: str
    username: str
    tier: Tier
    scopes: list[str]
    status: Literal["active", "disabled"]
    mfa_enabled: bool
    created_at: str
    password_changed_at: str | None


class UserList(BaseModel):
    """A page, newest first. `total` counts those that the filters leave."""

    users: list[UserAnswer]
    total: int
    limit: int
    offset: int


class DeletedUser(BaseModel):
    """`active_api_keys`: of the user's clients. They live on, because programs outlast people."""

    user_id: str
    deleted_at: str
    active_api_keys: int


class RevokedKeys(BaseModel):
    """The keys that this ended."""

    user_id: str
    key_ids: list[str]


def rendered(user: User) -> UserAnswer:
    """A record in the dialect's words."""
    return UserAnswer(
        user_id=user.user_id,
        username=user.username,
        tier=user.tier,
        scopes=sorted(user.scopes),
        status="disabled" if user.disabled else "active",
        mfa_enabled=user.mfa,
        created_at=iso(user.created_at),
        password_changed_at=iso(user.password_changed_at) if user.password_changed_at else None,
    )


@router.post("", status_code=201, response_description="User created")
async def create_user(body: UserRequest, core: FromCore) -> UserAnswer:
    """Make a user."""
    return rendered(await core.identity.create_user(body.username, body.password, body.scopes, body.tier))


@router.get("", response_description="Users listed")
async def list_users(
    core: FromCore, status: Literal["active", "disabled", "all"] = "all",
    tier: Literal["standard", "premium", "enterprise", "all"] = "all",
    username: Annotated[str, Query(max_length=256, description="The whole name")] = "",
    limit: Limit50 = 50, offset: Offset = 0,
) -> UserList:  # fmt: skip
    """Users, newest first."""
    page = await core.identity.list_users(status, tier, username, offset, limit)
    return UserList(users=[rendered(user) for user in page.items], total=page.total, limit=limit, offset=offset)


@router.get("/me", response_description="User found", responses={403: {}})
async def me(who: SignedIn, core: FromCore) -> UserAnswer:
    """The caller."""
    return rendered(await core.identity.themselves(who))


@router.post("/me/password", response_description="Password changed", responses={403: {}})
async def change_own_password(body: OwnPasswordRequest, who: SignedIn, core: FromCore) -> UserAnswer:
    """Change the caller's password; their other sessions end."""
    return rendered(await core.identity.change_password(who, body.old_password, body.new_password))


@router.get("/{user_id}", response_description="User found")
async def get_user(user_id: str, core: FromCore) -> UserAnswer:
    """One user."""
    return rendered(await core.identity.get_user(user_id))


@router.patch("/{user_id}", response_description="User changed")
async def change_user(user_id: str, body: UserChange, who: SignedIn, core: FromCore) -> UserAnswer:
    """Change tier, scopes or whether the user may come in; it acts at the user's next request."""
    return rendered(await core.identity.change_user(who, user_id, body.tier, body.scopes, body.disabled))


@router.post("/{user_id}/password", response_description="Password changed")
async def set_password(user_id: str, body: PasswordRequest, core: FromCore) -> UserAnswer:
    """Set a user's password; all of their sessions end."""
    user = await core.identity.get_user(user_id)
    return rendered(await core.identity.set_password(user.username, body.new_password))


@router.delete("/{user_id}/mfa", response_description="Second factor removed")
async def remove_factor(user_id: str, core: FromCore) -> UserAnswer:
    """For who lost the app and the backup codes: signing in takes the password alone again."""
    return rendered(await core.identity.remove_factor(user_id))


@router.post("/{user_id}/revoke-keys", response_description="API keys revoked")
async def revoke_keys(user_id: str, core: FromCore) -> RevokedKeys:
    """End every API key that a user made, and every key of their clients; also after the user was deleted."""
    ended = await core.identity.revoke_keys_of(user_id)
    return RevokedKeys(user_id=user_id, key_ids=[key.key_id for key in ended])


@router.delete("/{user_id}", response_description="User deleted")
async def delete_user(user_id: str, who: SignedIn, core: FromCore) -> DeletedUser:
    """End a user for good. The name stays taken, and the API keys of their clients live on (see `revoke-keys`)."""
    user = await core.identity.delete_user(who, user_id)
    assert user.deleted_at is not None
    left = await core.identity.keys_of(user_id)
    return DeletedUser(user_id=user_id, deleted_at=iso(user.deleted_at), active_api_keys=len(left))
