"""The active webhooks in memory, by what they want: an event that nobody wants costs one look into a dictionary."""

from collections.abc import Sequence

from cluster.clock import Clock
from cluster.events import Event
from cluster.events.model import order
from cluster.identity.model import SYSTEM
from cluster.identity.records import ApiKey, User
from cluster.store import Store
from cluster.webhooks import catalogue
from cluster.webhooks.model import Webhook
from cluster.workers.model import Agent

READ = 500  # records per read
# What changes who has webhooks, and whose; `observe` takes these in.
OBSERVED = frozenset(
    {"agent.registered", "agent.updated", "agent.deactivated", "key.created", "key.revoked"}
    | {f"webhook.{verb}" for verb in
       ("created", "updated", "secret_rotated", "disabled", "deleted", "tested", "replayed")}
    | {f"user.{verb}" for verb in ("created", "updated", "enabled", "disabled", "deleted")}
)  # fmt: skip


class Book:
    """Follows the stream: `observe` each event before asking who is `wanting` it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.hooks: dict[str, Webhook] = {}
        self.agent_owners: dict[str, str] = {}  # of the agents that webhooks name
        self._by_name: dict[str, list[Webhook]] = {}
        self.kinds = OBSERVED  # of the events that it has to see

    async def load(self) -> None:
        """Read every active webhook."""
        ids = await self.store.ids(Webhook, "active")
        found: dict[str, Webhook] = {}
        for start in range(0, len(ids), READ):
            some = await self.store.many(Webhook, ids[start : start + READ])
            found |= {hook.webhook_id: hook for hook in await self._allowed(some)}
        self.hooks = found
        await self._learn_owners({hook.agent_id for hook in found.values()} - {""})
        self._sort()

    async def observe(self, event: Event) -> set[str]:
        """Take in what the event changes; ids of webhooks that have begun, ended, or have something new to send."""
        noun = event.kind.partition(".")[0]
        if noun == "webhook":
            await self._refresh([event.subject])
            return {event.subject}
        if noun == "agent" and event.subject in self.agent_owners:
            await self._learn_owners({event.subject})
        elif noun in ("user", "key"):
            moved = {h.webhook_id for h in self.hooks.values() if event.subject in (h.owner, h.created_by)}
            await self._refresh(sorted(moved))
            return moved
        return set()

    def wanting(self, event: Event) -> list[Webhook]:
        """The webhooks that this event goes to."""
        hooks = self._by_name.get(catalogue.NAMES.get(event.kind, ""))
        if not hooks:
            return []
        return [
            hook
            for hook in hooks
            if order(event.event_id) > order(hook.since)
            and catalogue.concerns(hook, event.owner, event.data, self.agent_owners.get(hook.agent_id, ""))
        ]

    async def _refresh(self, webhook_ids: list[str]) -> None:
        if not webhook_ids:
            return
        found = await self._allowed(await self.store.many(Webhook, webhook_ids))
        for webhook_id in webhook_ids:
            self.hooks.pop(webhook_id, None)
        self.hooks |= {hook.webhook_id: hook for hook in found}
        await self._learn_owners({hook.agent_id for hook in found} - {""})
        self._sort()

    async def _learn_owners(self, agent_ids: set[str]) -> None:
        agents = {agent.agent_id: agent.owner for agent in await self.store.many(Agent, sorted(agent_ids))}
        self.agent_owners.update({agent_id: agents.get(agent_id, "") for agent_id in agent_ids})

    async def _allowed(self, hooks: Sequence[Webhook]) -> list[Webhook]:
        """Those that are on and may speak: a user who is out has none, and only an admin hears of everybody."""
        makers = sorted({hook.created_by for hook in hooks if hook.active})
        users = {user.user_id: user for user in await self.store.many(User, makers) if user.may_enter}
        keys = {key.key_id: key for key in await self.store.many(ApiKey, makers) if key.active(self.clock())}

        def allowed(hook: Webhook) -> bool:
            if not hook.active or hook.created_by == SYSTEM.principal_id:
                return hook.active
            maker = users.get(hook.created_by) or keys.get(hook.created_by)
            if maker is None and hook.created_by.startswith("user_"):
                return False
            # A client's webhooks outlive the key that made them, but not with an admin's rights.
            return not hook.all_owners or (maker is not None and "admin" in maker.scopes)

        return [hook for hook in hooks if allowed(hook)]

    def _sort(self) -> None:
        self._by_name = {}
        for hook in self.hooks.values():
            for name in catalogue.EVENTS:
                if catalogue.matches(hook.events, name):
                    self._by_name.setdefault(name, []).append(hook)
        self.kinds = OBSERVED | {catalogue.EVENTS[name] for name in self._by_name}
