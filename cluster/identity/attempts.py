"""Failed attempts: the counts that `throttle.py` rules over, kept in the store, so that all replicas share them."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

from cluster.clock import Clock, utc_now
from cluster.errors import LimitExceeded
from cluster.events.model import Event
from cluster.identity import throttle
from cluster.identity.admission import Admission
from cluster.identity.generation import Decided
from cluster.identity.passwords import Passwords
from cluster.identity.records import User
from cluster.identity.throttle import Failures
from cluster.origin import current
from cluster.store import Store


@dataclass(frozen=True)
class Attempt:
    """Somebody tries to be the user of this account, from this network; what is known beforehand."""

    account: str  # the user's id, whether or not there is such a user
    username: str  # as it was given
    network: str
    user: User | None
    wait_seconds: float
    code_wait_seconds: float
    at: datetime


class Attempts(Admission):
    """Holds back who guesses."""

    def __init__(self, store: Store, clock: Clock = utc_now, passwords: Passwords | None = None) -> None:
        super().__init__(store, clock, passwords)
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def _attempt(self, account: str, username: str, during: str) -> AsyncIterator[Attempt]:
        """One after the other from one network at one account: guesses sent at once count like guesses in turn.

        Raises `LimitExceeded` where it has to wait; what was presented is not looked at then.
        """
        caller = current()
        net = throttle.network(caller.address if caller else "")
        turn = self._turns.setdefault((account, net), asyncio.Lock())
        async with turn:
            at = self.clock()
            found = await self.store.read((User, account), *((Failures, p) for p in throttle.places(account, net)))
            user, pair, whole, far, codes = (record for record, _ in found)
            known = user is not None and net in user.known_networks
            attempt = Attempt(
                account, username, net, user, throttle.wait_seconds(pair, whole, far, known, at),
                throttle.code_wait_seconds(codes, known, at), at,
            )  # fmt: skip
            if attempt.wait_seconds > 0:
                await self._hold_back(attempt, attempt.wait_seconds, during)
            yield attempt

    async def _hold_back(self, attempt: Attempt, seconds: float, during: str) -> None:
        await self.store.publish(_told("login.failed", attempt, reason="throttled", during=during))
        wait = math.ceil(seconds)
        raise LimitExceeded(f"too many failed sign-ins: wait {wait} s", retry_after_seconds=wait)

    async def _password_failed(self, attempt: Attempt, during: str) -> None:
        event = _told("login.failed", attempt, reason="unknown_user_or_password", during=during)
        await self._count(attempt, event, code=False)

    async def _code_failed(self, attempt: Attempt, during: str) -> None:
        await self._count(attempt, _told("login.mfa_failed", attempt, reason="mfa", during=during), code=True)

    async def _count(self, attempt: Attempt, event: Event, code: bool) -> None:
        places, at = throttle.places(attempt.account, attempt.network), attempt.at

        def plan(pair: Failures | None, *others: Failures | None) -> list[Decided]:
            whole, far, codes = others
            first = pair is None or at >= pair.expires_at
            return [
                (throttle.failed(pair, places[0], at), event),
                (throttle.failed(whole, places[1], at), None),
                (throttle.failed(far, places[2], at) if first else far, None),
                (throttle.failed(codes, places[3], at) if code else codes, None),
            ]

        await self._deciding([(Failures, place) for place in places], plan)
        await self._sweep(Failures, at)


def _told(kind: str, attempt: Attempt, **more: Any) -> Event:
    data = {"username": attempt.username} | more
    return Event(kind=kind, subject=attempt.account, owner=attempt.account, at=attempt.at, data=data)
