"""Identity: who may come in. Users sign in for tokens, programs bring keys; both become principals."""

import asyncio
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from cluster.clock import Clock, utc_now
from cluster.errors import AlreadyExists, Invalid, Unauthenticated
from cluster.identity import tokens
from cluster.identity.apikeys import ApiKeys
from cluster.identity.model import SCOPES, Principal, Tier
from cluster.identity.passwords import Passwords
from cluster.identity.records import Secret, Session, User, user_id
from cluster.ids import new_id
from cluster.store import Store

STALE_SECONDS = 5.0  # how long a process may go on believing that a user is in good standing
REMEMBERED = 10_000  # users, and tokens, that a process keeps in mind


@dataclass(frozen=True)
class TokenPair:
    """What a sign-in gives."""

    access_token: str
    refresh_token: str
    expires_in: int
    scopes: list[str]


class Identity(ApiKeys):
    """Users and tokens; keys come from `ApiKeys`.

    A Bearer token costs no round trip: its signature and expiry are checked here, and that its user is not disabled
    is looked up at most every `STALE_SECONDS` per user and process. So a disabled user is out within that time
    everywhere, which is the price of not asking Redis once for each request.
    """

    def __init__(self, store: Store, clock: Clock = utc_now, passwords: Passwords | None = None) -> None:
        super().__init__(store, clock)
        self._passwords = passwords or Passwords()
        self._secret = ""
        self._standing: dict[str, tuple[datetime, float]] = {}  # user -> believed until, tokens good from
        self._read: dict[str, tuple[Principal, float, float]] = {}  # good token -> whose, issued, expires

    async def start(self) -> None:
        """Read the signing secret, or make the village's first one."""
        self._secret = await self._signing_secret()

    async def _signing_secret(self) -> str:
        found = await self.store.find(Secret, "jwt")
        if found is None:
            try:
                found = await self.store.create(Secret(secret_id="jwt", value=secrets.token_hex(32)))
            except AlreadyExists:  # another process was faster
                found = await self.store.get(Secret, "jwt")
        return found.value

    async def create_user(
        self,
        username: str,
        password: str,
        scopes: frozenset[str] = frozenset({"read", "write"}),
        tier: Tier = "standard",
    ) -> User:
        """A new user. Raises `AlreadyExists`, and `Invalid` for an unknown scope."""
        if unknown := scopes - SCOPES:
            raise Invalid(f"no such scope: {', '.join(sorted(unknown))}", field="scopes", allowed_values=sorted(SCOPES))
        at = self.clock()
        user = User(
            user_id=user_id(username),
            username=username,
            password_hash=await self._passwords.hash(password),
            tier=tier,
            scopes=scopes,
            tokens_from=at,
            created_at=at,
        )
        return await self.store.create(user)

    async def set_password(self, username: str, password: str) -> User:
        """Change it, and end every session and token of the old one. Raises `NotFound`."""
        kept, at = await self._passwords.hash(password), self.clock()
        user = await self.store.change(
            User, user_id(username), lambda u: u.model_copy(update={"password_hash": kept, "tokens_from": at})
        )
        await self._end_sessions(user.user_id, at)
        return user

    async def disable(self, username: str) -> User:
        """Keep a user out. Raises `NotFound`."""
        user = await self.store.change(User, user_id(username), lambda u: u.model_copy(update={"disabled": True}))
        await self._end_sessions(user.user_id, self.clock())
        return user

    async def _end_sessions(self, of: str, at: datetime) -> None:
        self._standing.pop(of, None)
        for session_id in await self.store.ids(Session, "user", of):
            await self.store.change(
                Session, session_id, lambda s: s.model_copy(update={"revoked_at": s.revoked_at or at})
            )

    async def holds(self, username: str, password: str) -> bool:
        """Whether this is the user's password; takes as long for a name that nobody has."""
        user = await self.store.find(User, user_id(username))
        return await self._passwords.matches(user.password_hash if user else None, password)

    async def token(self, username: str, password: str) -> TokenPair:
        """Sign in. Raises `Unauthenticated`, the same for a wrong password, an unknown and a disabled user."""
        user = await self.store.find(User, user_id(username))
        good = await self._passwords.matches(user.password_hash if user else None, password)
        if not good or user is None or user.disabled:
            raise Unauthenticated("wrong username or password")
        at, first = self.clock(), new_id("jti")
        session = Session(
            session_id=new_id("session"), user_id=user.user_id, current=first, created_at=at,
            expires_at=at + tokens.REFRESH,
        )  # fmt: skip
        await self.store.create(session)
        await self._forget_expired(at)
        return await self._pair(user, session, at)

    async def refresh(self, refresh_token: str) -> TokenPair:
        """A new pair for an unused refresh token. A used one is a theft on one side: it ends the whole session."""
        at = self.clock()
        claims = tokens.read(refresh_token, "refresh", await self._key(), at)
        presented, following = claims["jti"], new_id("jti")

        def rotate(session: Session) -> Session:
            if session.revoked_at is not None:
                return session
            if session.current != presented:
                return session.model_copy(update={"revoked_at": at})
            return session.model_copy(update={"current": following})

        session = await self.store.find(Session, claims["sid"])
        if session is not None:
            session = await self.store.change(Session, claims["sid"], rotate)
        user = await self.store.find(User, claims["sub"])
        if session is None or session.current != following or user is None or user.disabled:
            raise Unauthenticated("the refresh token was used, revoked or has expired")
        return await self._pair(user, session, at)

    async def _pair(self, user: User, session: Session, at: datetime) -> TokenPair:
        secret, scopes = await self._key(), sorted(user.scopes)
        return TokenPair(
            access_token=tokens.access_token(user, scopes, secret, at, new_id("jti")),
            refresh_token=tokens.refresh_token(
                user.user_id, session.session_id, session.current, session.expires_at, secret, at
            ),
            expires_in=tokens.ACCESS_SECONDS,
            scopes=scopes,
        )

    async def _forget_expired(self, at: datetime) -> None:
        for session_id in await self.store.ids(Session, "expiry", high=at.timestamp(), limit=20):
            await self.store.delete(Session, session_id)

    async def authenticate_bearer(self, token: str) -> Principal:
        """Who the access token names. Raises `Unauthenticated`."""
        at = self.clock()
        who, issued, expires = self._read.get(token) or await self._read_token(token, at)
        if at.timestamp() >= expires:
            raise Unauthenticated("the token is invalid or expired")
        until, good_from = self._standing.get(who.owner, (at, 0.0))
        if at >= until:
            good_from = await self._look_up(who.owner, at)
        if issued < good_from:
            raise Unauthenticated("the token is no longer good")
        return who

    async def _read_token(self, token: str, at: datetime) -> tuple[Principal, float, float]:
        claims = tokens.read(token, "access", await self._key(), at)
        if len(self._read) >= REMEMBERED:
            self._read.clear()
        # A signature does not change: it is checked once per process, what it vouches for at every request.
        self._read[token] = tokens.principal(claims), claims["iat"], claims["exp"]
        return self._read[token]

    async def _look_up(self, who: str, at: datetime) -> float:
        user = await self.store.find(User, who)
        good_from = float("inf") if user is None or user.disabled else user.tokens_from.timestamp()
        if len(self._standing) >= REMEMBERED:
            self._standing.clear()
        self._standing[who] = (at + timedelta(seconds=STALE_SECONDS), good_from)
        return good_from

    async def _key(self) -> str:
        if not self._secret:
            await self.start()
        return self._secret

    async def settled(self) -> None:
        """Return once nothing is left to be written in the background."""
        await asyncio.gather(*self._writing)
