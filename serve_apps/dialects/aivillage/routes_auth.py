"""AIVillage, sign-in: tokens for a password, a new pair for a refresh token. These answers have no envelope."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cluster.identity.service import TokenPair
from serve_apps.core import FromCore

router = APIRouter(prefix="/auth")


class Credentials(BaseModel):
    """A sign-in. `mfa_code` counts for users who have a second factor."""

    username: str = Field(min_length=1, max_length=256, examples=["user@example.com"])
    password: str = Field(min_length=1, max_length=1024, examples=["secure_password"])
    mfa_code: str | None = Field(None, max_length=16, examples=["123456"])


class RefreshRequest(BaseModel):
    """A refresh token, which is good once."""

    refresh_token: str = Field(min_length=1, max_length=4096)


class TokenAnswer(BaseModel):
    """`expires_in` is in seconds."""

    access_token: str
    token_type: str = "bearer"
    expires_in: int
    refresh_token: str
    scopes: list[str]


def rendered(pair: TokenPair) -> TokenAnswer:
    """The document's shape."""
    return TokenAnswer(
        access_token=pair.access_token,
        expires_in=pair.expires_in,
        refresh_token=pair.refresh_token,
        scopes=pair.scopes,
    )


@router.post("/token")
async def token(body: Credentials, core: FromCore) -> TokenAnswer:
    """Sign in."""
    return rendered(await core.identity.token(body.username, body.password))


@router.post("/refresh")
async def refresh(body: RefreshRequest, core: FromCore) -> TokenAnswer:
    """Trade a refresh token for a new pair; presenting it twice ends the session."""
    return rendered(await core.identity.refresh(body.refresh_token))
