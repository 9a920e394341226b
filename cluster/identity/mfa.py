"""Second factors: enrol, prove, switch off."""

import secrets

import pyotp

from cluster.errors import Conflict, Forbidden
from cluster.identity import totp
from cluster.identity.generation import Decided
from cluster.identity.model import Principal
from cluster.identity.records import SecondFactor, Session, User
from cluster.identity.sessions import Sessions
from cluster.identity.users import told


class SecondFactors(Sessions):
    """TOTP of the signed-in user. API keys have none: they are refused with `Forbidden`."""

    async def enroll(self, who: Principal) -> tuple[str, str]:
        """A new secret and its otpauth URI; it counts once `verify_factor` has seen a code. Raises `Conflict`."""
        user = await self.themselves(who)
        factor = SecondFactor(mfa_id=user.user_id, secret=pyotp.random_base32())

        def plan(before: SecondFactor | None) -> list[Decided]:
            if before is not None and before.active:
                raise Conflict("a second factor is active; disable it first")
            return [(factor, None)]

        await self._deciding([(SecondFactor, user.user_id)], plan)
        return factor.secret, totp.uri(factor.secret, user.username)

    async def verify_factor(self, who: Principal, code: str) -> list[str]:
        """Switch the second factor on: backup codes, shown this once. Every other session ends, for it had none.

        Raises `Forbidden` for a wrong code, `Conflict` where nothing is enrolled.
        """
        user, at = await self.themselves(who), self.clock()
        codes = [totp.backup_code(secrets.token_bytes(10)) for _ in range(totp.BACKUP_CODES)]
        wrong = told("login.mfa_failed", user, at, reason="enrolment")

        def plan(user: User, factor: SecondFactor | None, session: Session | None) -> list[Decided] | None:
            if factor is None or factor.active:
                raise Conflict("nothing is enrolled" if factor is None else "the second factor is active already")
            after = totp.spent(factor, code, at)
            if after is None:
                return None
            digests = tuple(totp.backup_digest(one) for one in codes)
            active = after.model_copy(update={"active": True, "backup": digests})
            changed = user.model_copy(update={"mfa": True, "era": user.era + 1})
            kept = session
            if session is not None and session.user_id == user.user_id and session.era == user.era:
                kept = session.model_copy(update={"era": changed.era})
            return [(changed, told("user.mfa_enabled", changed, at)), (active, None), (kept, None)]

        wanted = [(User, user.user_id), (SecondFactor, user.user_id), (Session, who.session_id)]
        [user, factor, _] = await self._revoking(wanted, plan)
        if not factor.active:
            await self.store.publish(wrong)
            raise Forbidden("the code is wrong", field="code")
        await self._clear_sessions(user)
        return codes

    async def disable_factor(self, who: Principal, password: str, code: str) -> None:
        """Switch it off. Raises `Forbidden` for a wrong password or code, `Conflict` where there is none."""
        user, at = await self.themselves(who), self.clock()
        await self._prove(user, password)

        def plan(user: User, factor: SecondFactor | None) -> list[Decided] | None:
            if factor is None or not factor.active:
                raise Conflict("no second factor is active")
            if totp.spent(factor, code, at) is None:
                return None
            changed = user.model_copy(update={"mfa": False})
            return [(changed, told("user.mfa_disabled", changed, at, by="user")), (None, None)]

        async with self._attempt(user.user_id, user.username, "mfa_disable") as attempt:
            if attempt.code_wait_seconds > 0:
                await self._hold_back(attempt, attempt.code_wait_seconds, "mfa_disable")
            wanted = [(User, user.user_id), (SecondFactor, user.user_id)]
            [user, factor] = await self._deciding(wanted, plan)
            if factor is not None:
                await self._code_failed(attempt, "mfa_disable")
                raise Forbidden("the code is wrong", field="code")

    async def remove_factor(self, of: str) -> User:
        """An admin's way, for who lost both the app and the backup codes: off, without a code. Raises `NotFound`."""
        await self.get_user(of)
        at = self.clock()

        def plan(user: User, _: SecondFactor | None) -> list[Decided] | None:
            if not user.mfa:
                return None
            changed = user.model_copy(update={"mfa": False})
            return [(changed, told("user.mfa_disabled", changed, at, by="admin")), (None, None)]

        return (await self._deciding([(User, of), (SecondFactor, of)], plan))[0]
