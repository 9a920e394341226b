"""Users: make, list, change, shut out, remove. Everything that lessens their rights acts at the next request."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from cluster.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from cluster.events.model import Event
from cluster.identity import passwords
from cluster.identity.admission import lives
from cluster.identity.attempts import Attempts
from cluster.identity.generation import Decided
from cluster.identity.model import SCOPES, Principal, Tier
from cluster.identity.records import SecondFactor, Session, User, user_id
from cluster.store import Page, Write

# ASCII alone: with other alphabets two names may look the same.
USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+@-]{0,255}")


class Users(Attempts):
    """The people. What an admin does with them; what they do with themselves is in `signin` and `mfa`."""

    async def create_user(
        self,
        username: str,
        password: str,
        scopes: frozenset[str] = frozenset({"read", "write"}),
        tier: Tier = "standard",
    ) -> User:
        """A new user. Raises `AlreadyExists`, and `Invalid` for a name, password or scope that will not do."""
        if not USERNAME.fullmatch(username):
            raise Invalid(
                "username: letters, digits and ._%+@- are allowed, up to 256, the first a letter or digit",
                field="username",
            )
        _known(scopes)
        passwords.check(password, username)
        at = self.clock()
        user = User(
            user_id=user_id(username),
            username=username,
            password_hash=await self._passwords.hash(password),
            tier=tier,
            scopes=scopes,
            created_at=at,
            password_changed_at=at,
        )
        try:
            return await self.store.create(user, told("user.created", user, at, tier=tier, scopes=sorted(scopes)))
        except AlreadyExists as taken:
            raise AlreadyExists(f"the username {username} is taken, or was", field="username") from taken

    async def get_user(self, of: str) -> User:
        """One user by id. Raises `NotFound`."""
        return _there(await self.store.find(User, of), of)

    async def named(self, username: str) -> User:
        """One user by name. Raises `NotFound`."""
        return _there(await self.store.find(User, user_id(username)), username)

    async def list_users(
        self, status: str = "all", tier: str = "all", username: str = "", offset: int = 0, limit: int = 50
    ) -> Page[User]:
        """Users, newest first; `username` is the whole of it."""
        if not username:
            return await self.store.page(User, "list", status, tier, offset=offset, limit=limit)
        user = await self.store.find(User, user_id(username))
        found = [
            u for u in [user] if u and not u.deleted_at and status in ("all", u.status) and tier in ("all", u.tier)
        ]
        return Page(found[offset : offset + limit], len(found))

    async def change_user(
        self, who: Principal, of: str, tier: Tier | None = None, scopes: frozenset[str] | None = None,
        disabled: bool | None = None,
    ) -> User:  # fmt: skip
        """Change what is given. An admin cannot shut himself out. Raises `NotFound`, `Invalid`, `Conflict`."""
        if scopes is not None:
            _known(scopes)
        if of == who.owner and (disabled or (scopes is not None and "admin" not in scopes)):
            raise Conflict("an admin cannot shut himself out; another admin can")
        at = self.clock()
        given = {"tier": tier, "scopes": scopes, "disabled": disabled}
        wanted = {name: value for name, value in given.items() if value is not None}

        def step(user: User) -> User:
            ended = user.era + (disabled is True and not user.disabled)
            return user.model_copy(update=wanted | {"era": ended})

        def event(before: User, after: User) -> Event:
            kind = "user.updated"
            if before.disabled != after.disabled:
                kind = "user.disabled" if after.disabled else "user.enabled"
            return told(kind, after, at, changed=_differences(before, after))

        user = await self._change(of, step, event)
        if user.disabled:
            await self._clear_sessions(user)
        return user

    async def set_password(self, username: str, password: str) -> User:
        """An admin's way: change it, and end every session of the user. Raises `NotFound`, `Invalid`."""
        user = await self.named(username)
        passwords.check(password, user.username)
        return await self._set_password(user.user_id, await self._passwords.hash(password), "admin")

    async def change_password(self, who: Principal, old: str, new: str) -> User:
        """The user's own way: every other session ends. Raises `Forbidden` for a wrong old one, `Invalid`."""
        user = await self.themselves(who)
        await self._prove(user, old)
        passwords.check(new, user.username)
        return await self._set_password(user.user_id, await self._passwords.hash(new), "user", who.session_id)

    async def themselves(self, who: Principal) -> User:
        """The user behind a token. Raises `Forbidden` for an API key, which is nobody's."""
        if who.client_id:
            raise Forbidden("this is for people: sign in, an API key will not do")
        return await self.get_user(who.owner)

    async def _prove(self, user: User, password: str) -> None:
        """Return if this is the password of a user who is signed in. Raises `Forbidden`, `LimitExceeded`."""
        async with self._attempt(user.user_id, user.username, "password_check") as attempt:
            if not await self._passwords.matches(user.password_hash, password):
                await self._password_failed(attempt, "password_check")
                raise Forbidden("the password is wrong", field="password")

    async def holds(self, username: str, password: str) -> bool:
        """Whether this is the user's password; takes as long for a name that nobody has."""
        user = await self.store.find(User, user_id(username))
        return await self._passwords.matches(user.password_hash if user else None, password)

    async def disable(self, username: str) -> User:
        """Keep a user out. Raises `NotFound`."""
        user = await self.named(username)
        return await self.change_user(_NOBODY, user.user_id, disabled=True)

    async def delete_user(self, who: Principal, of: str) -> User:
        """End a user's credentials for good; the name stays taken. Raises `NotFound`, `Conflict` for oneself."""
        if of == who.owner:
            raise Conflict("an admin cannot remove himself; another admin can")
        at = self.clock()

        def step(user: User) -> User:
            return User(
                user_id=user.user_id, username=user.username, password_hash="", tier=user.tier, scopes=frozenset(),
                disabled=True, era=user.era + 1, created_at=user.created_at, deleted_at=at,
            )  # fmt: skip

        user = await self._change(of, step, lambda _, after: told("user.deleted", after, at))
        await self._clear_sessions(user)
        if (factor := await self.store.load(SecondFactor, of))[0]:
            await self.store.commit(Write(factor[0], None, factor[1]))
        return user

    async def _set_password(self, of: str, kept: str, by: str, keep_session: str = "") -> User:
        at = self.clock()

        def step(user: User) -> User:
            # Whoever knew the old password may have signed in from anywhere.
            changed = {"password_hash": kept, "password_changed_at": at, "known_networks": (), "era": user.era + 1}
            return user.model_copy(update=changed)

        user = await self._change(
            of, step, lambda _, after: told("user.password_changed", after, at, by=by), keep_session
        )
        await self._clear_sessions(user)
        return user

    async def _change(
        self, of: str, step: Callable[[User], User], event: Callable[[User, User], Event], keep_session: str = ""
    ) -> User:
        """Change a user, together with the session that goes on in the new era, if any."""

        def plan(user: User | None, session: Session | None = None) -> list[Decided] | None:
            before = _there(user, of)
            after = step(before)
            if after == before:
                return None
            kept = session
            if session is not None and session.user_id == of and session.era == before.era:
                kept = session.model_copy(update={"era": after.era})
            return [(after, event(before, after)), *([(kept, None)] if keep_session else [])]

        wanted = [(User, of), *([(Session, keep_session)] if keep_session else [])]
        return (await self._revoking(wanted, plan))[0]

    async def _clear_sessions(self, user: User) -> None:
        """Sessions of an earlier era open nothing; this only takes them off the list."""
        at = self.clock()
        for session in (await self.store.page(Session, "user", user.user_id, limit=-1)).items:
            if not lives(session, user, at):
                await self._forget(Session, session.session_id)


_NOBODY = Principal(principal_id="", owner="", username="")


def told(kind: str, user: User, at: datetime, **more: Any) -> Event:
    """An event of a user, which the user may see."""
    return Event(kind=kind, subject=user.user_id, owner=user.user_id, at=at, data={"username": user.username} | more)


def _there(user: User | None, sought: str) -> User:
    if user is None or user.deleted_at is not None:
        raise NotFound(f"no user {sought}", id=sought)
    return user


def _known(scopes: frozenset[str]) -> None:
    if unknown := scopes - SCOPES:
        raise Invalid(f"no such scope: {', '.join(sorted(unknown))}", field="scopes", allowed_values=sorted(SCOPES))


def _differences(before: User, after: User) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name in ("tier", "disabled"):
        if getattr(before, name) != getattr(after, name):
            changed[name] = [getattr(before, name), getattr(after, name)]
    if before.scopes != after.scopes:
        changed["scopes"] = [sorted(before.scopes), sorted(after.scopes)]
    return changed
