"""Sessions: a sign-in and the tokens that descend from it; renewing and revoking them, rotating what signs them."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cluster.clock import iso
from cluster.errors import NotFound, Unauthenticated
from cluster.events.model import Event
from cluster.identity import keys, signing, tokens
from cluster.identity.admission import lives, new_signing_key
from cluster.identity.apikeys import ApiKeys
from cluster.identity.generation import Decided
from cluster.identity.model import Principal
from cluster.identity.records import ApiKey, RevokedToken, Session, User
from cluster.identity.signing import SigningKeys
from cluster.identity.users import Users, told
from cluster.ids import new_id
from cluster.origin import Origin, current

MOST_SESSIONS = 100  # of one user; a sign-in beyond it ends the one that was used least recently


@dataclass(frozen=True)
class TokenPair:
    """What a sign-in gives; `expires_in` is the access token's life in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    scopes: list[str]


class Sessions(Users, ApiKeys):
    """Tokens after the sign-in."""

    async def refresh(self, refresh_token: str) -> TokenPair:
        """A new pair for an unused refresh token. Raises `Unauthenticated`.

        One that was used is a theft on one side or the other: it ends whatever came of the session's refresh tokens,
        access tokens included. The access token of the sign-in itself, which took a password, lives out its hour.
        """
        at, following, caller = self.clock(), new_id("jti"), current() or Origin()
        claims = await self._read(refresh_token, "refresh", at)
        renewed = {"current": following, "last_used_at": at, "address": caller.address, "user_agent": caller.user_agent}

        def plan(user: User | None, session: Session | None) -> list[Decided] | None:
            if session is None or not lives(session, user, at) or session.current != claims["jti"]:
                return None
            return [(user, None), (session.model_copy(update=renewed), None)]

        [user, session] = await self._deciding([(User, claims["sub"]), (Session, claims["sid"])], plan)
        if session is not None and session.current == following:
            return await self._pair(user, session, at)
        if session is not None:
            await self._contain(session.session_id, at)
        raise Unauthenticated("the refresh token was used, revoked or has expired")

    async def _contain(self, session_id: str, at: datetime) -> None:
        until = at + timedelta(seconds=tokens.ACCESS_SECONDS)

        def plan(session: Session | None) -> list[Decided] | None:
            if session is None or session.stolen:
                return None
            ended = {"stolen": True, "current": "", "expires_at": min(until, session.expires_at)}
            return [(session.model_copy(update=ended), ended_event(session, "refresh_token_reused", at))]

        await self._revoking([(Session, session_id)], plan)

    async def revoke(self, token: str) -> None:
        """Take back what is presented (RFC 7009): whoever holds it may. What is not good already needs nothing.

        A refresh token takes its whole session along, an access token or an API key only itself.
        """
        if token.startswith(keys.PREFIX):
            digest = keys.digest(token)
            key = await self.store.find(ApiKey, keys.key_id(digest))
            if key is not None and keys.same(key, digest):
                await self._close_key(key.key_id, "presented")
            return
        at = self.clock()
        with suppress(Unauthenticated):
            claims = await self._read(token, "refresh", at)
            await self._end(claims["sid"], "requested")
            return
        with suppress(Unauthenticated):
            await self._revoke_access(await self._read(token, "access", at), at)

    async def _revoke_access(self, claims: dict[str, Any], at: datetime) -> None:
        revoked = RevokedToken(revoked_id=claims["jti"], expires_at=datetime.fromtimestamp(claims["exp"], UTC))
        event = Event(
            kind="token.revoked", subject=claims["jti"], owner=claims["sub"], at=at,
            data={"username": claims["name"], "session_id": claims["sid"]},
        )  # fmt: skip
        await self._revoking([(RevokedToken, revoked.id)], lambda before: None if before else [(revoked, event)])
        await self._sweep(RevokedToken, at)

    async def sessions(self, who: Principal) -> list[Session]:
        """The user's live sessions, the one used last first. Raises `Forbidden` for an API key."""
        user, at = await self.themselves(who), self.clock()
        page = await self.store.page(Session, "user", user.user_id, limit=-1)
        return [session for session in page.items if lives(session, user, at)]

    async def end_session(self, who: Principal, session_id: str) -> None:
        """Sign out there. Raises `NotFound`."""
        session = await self.store.find(Session, session_id)
        if session is None or not who.sees(session.user_id):
            raise NotFound(f"no session {session_id}", id=session_id)
        await self._end(session_id, "requested")

    async def end_sessions(self, who: Principal) -> None:
        """Sign out everywhere, here too. Raises `Forbidden` for an API key."""
        user, at = await self.themselves(who), self.clock()
        changed = await self._change(
            user.user_id, lambda u: u.model_copy(update={"era": u.era + 1}),
            lambda _, after: told("user.signed_out", after, at),
        )  # fmt: skip
        await self._clear_sessions(changed)

    async def _end(self, session_id: str, reason: str) -> None:
        at = self.clock()

        def plan(session: Session | None) -> list[Decided] | None:
            if session is None:
                return None
            return [(None, ended_event(session, reason, at))]

        await self._revoking([(Session, session_id)], plan)

    async def _too_many(self, user: User) -> None:
        """End the sessions beyond `MOST_SESSIONS`, those used least recently first."""
        beyond = await self.store.count(Session, "user", user.user_id) - MOST_SESSIONS
        for session_id in await self.store.ids(Session, "user", user.user_id, limit=beyond) if beyond > 0 else ():
            await self._end(session_id, "too_many_sessions")

    async def rotate_signing(self, who: Principal, at_once: bool = False) -> SigningKeys:
        """Sign with a new secret. The old one is believed until what it signed has expired, or not at all any more."""
        at = self.clock()
        fresh = new_signing_key(at)
        await self._read_signing()

        def plan(before: SigningKeys) -> list[Decided]:
            after = signing.rotated(before, fresh, at if at_once else at + tokens.REFRESH)
            data = {"kid": fresh.kid, "good": [key.kid for key in after.keys], "at_once": at_once, "by": who.username}
            event = Event(kind="signing_key.rotated", subject=fresh.kid, owner=who.owner, at=at, data=data)
            return [(after, event)]

        [signers] = await self._revoking([(SigningKeys, signing.ID)], plan)
        self._signing = signers
        return signers

    async def _read(self, token: str, kind: str, at: datetime) -> dict[str, Any]:
        # The secrets as they are now: here nothing is remembered that a generation would correct.
        signers = await self._read_signing()
        return tokens.read(token, kind, signers.named(tokens.named_key(token), at), at)

    async def _pair(self, user: User, session: Session, at: datetime, token_id: str = "") -> TokenPair:
        signer = (await self._read_signing()).current
        access, seconds = tokens.access_token(user, session, signer, at, token_id or new_id("jti"))
        return TokenPair(access, tokens.refresh_token(session, signer, at), seconds, sorted(user.scopes))


def ended_event(session: Session, reason: str, at: datetime) -> Event:
    """That a session is over."""
    data = {"user_id": session.user_id, "reason": reason, "signed_in_at": iso(session.created_at)}
    return Event(kind="session.revoked", subject=session.session_id, owner=session.user_id, at=at, data=data)
