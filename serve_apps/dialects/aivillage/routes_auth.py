"""AIVillage, sign-in: tokens, sessions, the second factor, signing keys. These answers have no envelope."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from cluster.clock import iso
from cluster.identity.passwords import LONGEST as LONGEST_PASSWORD
from cluster.identity.service import TokenPair
from cluster.identity.tokens import LONGEST as LONGEST_TOKEN
from serve_apps.core import FromCore
from serve_apps.kit.auth import SECRET, SignedIn

Password = Annotated[str, Field(min_length=1, max_length=LONGEST_PASSWORD)]
Code = Annotated[
    str, Field(min_length=6, max_length=32, examples=["123456"], description="Of the app, or a backup code")
]

router = APIRouter(prefix="/auth")


class Credentials(BaseModel):
    """A sign-in. `mfa_code` counts for users who have a second factor: six digits, or a backup code."""

    username: str = Field(min_length=1, max_length=256, examples=["user@example.com"])
    password: str = Field(min_length=1, max_length=LONGEST_PASSWORD, examples=["secure_password"])
    mfa_code: str | None = Field(None, max_length=32, examples=["123456"])


class RefreshRequest(BaseModel):
    """A refresh token, which is good once."""

    refresh_token: str = Field(min_length=1, max_length=LONGEST_TOKEN)


class TokenAnswer(BaseModel):
    """`expires_in` is in seconds."""

    access_token: str
    token_type: str = "bearer"
    expires_in: int
    refresh_token: str
    scopes: list[str]


class RevokeRequest(BaseModel):
    """RFC 7009, as JSON: an access token, a refresh token or an API key."""

    token: str = Field(min_length=1, max_length=LONGEST_TOKEN)
    token_type_hint: str | None = Field(None, max_length=64, description="Not needed: a token says what it is")


class Revoked(BaseModel):
    """The same for a token that was never good."""

    revoked: bool = True


class SessionAnswer(BaseModel):
    """A sign-in that is still good. `last_used_at`: when it was begun or last refreshed."""

    session_id: str
    created_at: str
    last_used_at: str
    expires_at: str
    address: str
    user_agent: str
    current: bool


class SessionList(BaseModel):
    """The one used last first."""

    sessions: list[SessionAnswer]
    total: int


class EnrollAnswer(BaseModel):
    """A TOTP secret, which counts once a code of it was verified; `otpauth_uri` is for a QR code."""

    secret: str
    otpauth_uri: str


class VerifyRequest(BaseModel):
    """A code of the authenticator app."""

    model_config = ConfigDict(extra="forbid")

    code: Code


class BackupCodes(BaseModel):
    """Each replaces a code once. They are shown here and never again."""

    mfa_enabled: bool = True
    backup_codes: list[str]


class DisableRequest(BaseModel):
    """Both are needed."""

    model_config = ConfigDict(extra="forbid")

    password: Password
    code: Code


class MfaAnswer(BaseModel):
    """Whether signing in takes a code."""

    mfa_enabled: bool


class RotateRequest(BaseModel):
    """`now` ends every token that was signed before."""

    model_config = ConfigDict(extra="forbid")

    now: bool = False


class SigningKeyAnswer(BaseModel):
    """The name of a secret, never the secret. Without `good_until` it signs."""

    kid: str
    since: str
    good_until: str | None


class RotateAnswer(BaseModel):
    """The one that signs first."""

    keys: list[SigningKeyAnswer]


def rendered(pair: TokenPair) -> TokenAnswer:
    """The document's shape."""
    return TokenAnswer(
        access_token=pair.access_token,
        expires_in=pair.expires_in,
        refresh_token=pair.refresh_token,
        scopes=pair.scopes,
    )


@router.post("/token", dependencies=SECRET, responses={401: {}})
async def token(body: Credentials, core: FromCore) -> TokenAnswer:
    """Sign in. With a second factor: 401 and `mfa_required` in its details until a good code comes along."""
    return rendered(await core.identity.token(body.username, body.password, body.mfa_code))


@router.post("/refresh", dependencies=SECRET, responses={401: {}})
async def refresh(body: RefreshRequest, core: FromCore) -> TokenAnswer:
    """Trade a refresh token for a new pair; presenting it twice ends the session."""
    return rendered(await core.identity.refresh(body.refresh_token))


@router.post("/revoke")
async def revoke(body: RevokeRequest, core: FromCore) -> Revoked:
    """Take back a token; whoever holds it may. A refresh token takes its session along."""
    await core.identity.revoke(body.token)
    return Revoked()


@router.post("/logout-all", responses={403: {}})
async def logout_all(who: SignedIn, core: FromCore) -> Revoked:
    """End every session of the caller, this one too."""
    await core.identity.end_sessions(who)
    return Revoked()


@router.get("/sessions", responses={403: {}})
async def sessions(who: SignedIn, core: FromCore) -> SessionList:
    """Where the caller is signed in."""
    found = [
        SessionAnswer(
            session_id=one.session_id,
            created_at=iso(one.created_at),
            last_used_at=iso(one.last_used_at),
            expires_at=iso(one.expires_at),
            address=one.address,
            user_agent=one.user_agent,
            current=one.session_id == who.session_id,
        )
        for one in await core.identity.sessions(who)
    ]
    return SessionList(sessions=found, total=len(found))


@router.delete("/sessions/{session_id}", responses={403: {}})
async def end_session(session_id: str, who: SignedIn, core: FromCore) -> Revoked:
    """Sign out there."""
    await core.identity.end_session(who, session_id)
    return Revoked()


@router.post("/mfa/enroll", dependencies=SECRET, responses={403: {}})
async def enroll(who: SignedIn, core: FromCore) -> EnrollAnswer:
    """A new secret for an authenticator app. It changes nothing until `/auth/mfa/verify`."""
    made, uri = await core.identity.enroll(who)
    return EnrollAnswer(secret=made, otpauth_uri=uri)


@router.post("/mfa/verify", dependencies=SECRET, responses={403: {}})
async def verify(body: VerifyRequest, who: SignedIn, core: FromCore) -> BackupCodes:
    """Switch the second factor on; the caller's other sessions end."""
    return BackupCodes(backup_codes=await core.identity.verify_factor(who, body.code))


@router.post("/mfa/disable", responses={403: {}})
async def disable(body: DisableRequest, who: SignedIn, core: FromCore) -> MfaAnswer:
    """Switch it off."""
    await core.identity.disable_factor(who, body.password, body.code)
    return MfaAnswer(mfa_enabled=False)


@router.post("/keys/rotate")
async def rotate(body: RotateRequest, who: SignedIn, core: FromCore) -> RotateAnswer:
    """Sign with a new secret; the old one is believed until what it signed has expired, unless `now`."""
    signers = await core.identity.rotate_signing(who, body.now)
    return RotateAnswer(
        keys=[
            SigningKeyAnswer(kid=key.kid, since=iso(key.since), good_until=iso(key.until) if key.until else None)
            for key in signers.keys
        ]
    )
