"""Identity: who may come in. Users sign in for tokens, programs bring keys; both become principals."""

from cluster.errors import Unauthenticated
from cluster.events.model import Event
from cluster.identity import throttle, tokens, totp
from cluster.identity.attempts import Attempt
from cluster.identity.generation import Decided
from cluster.identity.mfa import SecondFactors
from cluster.identity.records import SecondFactor, Session, User, user_id
from cluster.identity.sessions import TokenPair
from cluster.identity.throttle import Failures
from cluster.ids import new_id
from cluster.origin import Origin, current

__all__ = ["Identity", "TokenPair"]


class Identity(SecondFactors):
    """Everything about who calls, in layers: `admission`, `attempts`, `users` and `apikeys`, `sessions`, `mfa`."""

    async def token(self, username: str, password: str, mfa_code: str | None = None) -> TokenPair:
        """Sign in.

        Raises `Unauthenticated`, the same for a wrong password, an unknown and a disabled user; with `mfa_required` in
        its details where the password was right and a good code is missing; `LimitExceeded` for who has to wait.
        """
        async with self._attempt(user_id(username), username, "sign_in") as attempt:
            user = attempt.user
            good = await self._passwords.matches(user.password_hash if user else None, password)
            if not good or user is None or not user.may_enter:
                await self._password_failed(attempt, "sign_in")
                raise Unauthenticated("wrong username or password")
            if user.mfa and attempt.code_wait_seconds > 0:
                await self._hold_back(attempt, attempt.code_wait_seconds, "sign_in")
            if user.mfa and not mfa_code:
                raise Unauthenticated("a code of the second factor is needed", mfa_required=True)
            kept = await self._passwords.renewed(user.password_hash, password)
            return await self._enter(attempt, user, kept, mfa_code or "")

    async def _enter(self, attempt: Attempt, proved: User, kept: str, code: str) -> TokenPair:
        at, caller = attempt.at, current() or Origin()
        fresh = Session(
            session_id=new_id("session"), user_id=proved.user_id, current=new_id("jti"), first=new_id("jti"),
            created_at=at, last_used_at=at, expires_at=at + tokens.REFRESH, address=caller.address,
            user_agent=caller.user_agent,
        )  # fmt: skip

        def plan(user: User, factor: SecondFactor | None, pair: Failures | None, _: None) -> list[Decided] | None:
            if not user.may_enter or user.password_hash != proved.password_hash:
                return None
            spent = totp.spent(factor, code, at) if user.mfa and factor else factor
            if user.mfa and spent is None:
                return None
            networks = throttle.with_network(user.known_networks, attempt.network)
            entered = user.model_copy(update={"known_networks": networks, "password_hash": kept})
            data = {"username": user.username, "mfa": user.mfa}
            event = Event(kind="session.started", subject=fresh.session_id, owner=user.user_id, at=at, data=data)
            return [(entered, None), (spent, None), (None, None), (fresh.model_copy(update={"era": user.era}), event)]

        pair = throttle.places(attempt.account, attempt.network)[0]
        wanted = [(User, proved.user_id), (SecondFactor, proved.user_id), (Failures, pair), (Session, fresh.session_id)]
        user, _, _, session = await self._deciding(wanted, plan)
        if session is None and not user.mfa:  # disabled, or the password changed, this moment
            raise Unauthenticated("wrong username or password")
        if session is None:
            await self._code_failed(attempt, "sign_in")
            raise Unauthenticated("the code is wrong or was used", mfa_required=True)
        await self._sweep(Session, at)
        await self._too_many(user)
        return await self._pair(user, session, at, session.first)
