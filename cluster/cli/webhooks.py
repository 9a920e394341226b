"""`village webhook`: who is told of what."""

import argparse
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.cli.client import Client
from cluster.settings import Settings
from cluster.webhooks.catalogue import EVENTS

PATH = "/ains/webhooks"
console = Console(highlight=False, width=160)


def listing(settings: Settings, _: argparse.Namespace) -> int:
    """List the webhooks."""
    table = Table("webhook", "url", "events", "agent", "state", box=None)
    for hook in Client(settings).get(PATH, limit=100)["webhooks"]:
        state = "on" if hook["active"] else hook["disabled_reason"] or "off"
        table.add_row(hook["webhook_id"], hook["url"], ", ".join(hook["events"]), hook["agent_id"] or "", state)
    console.print(table)
    return 0


def add(settings: Settings, told: argparse.Namespace) -> int:
    """Have events sent to a URL; prints the secret that signs them."""
    body = {"url": told.url, "events": told.event, "agent_id": told.agent, "all_owners": told.everybody}
    made = Client(settings).post(PATH, body)
    print(f"{made['webhook_id']} tells {told.url} of {', '.join(told.event)}")
    print(f"secret {made['secret']}")
    return 0


def test(settings: Settings, told: argparse.Namespace) -> int:
    """Send a test event now; exit status 1 if the receiver does not take it."""
    found = Client(settings).post(f"{PATH}/{told.webhook_id}/test", {})
    said = found["error"] or f"the receiver answered {found['response_status']}"
    print(f"{said} in {found['duration_ms']:.0f} ms")
    return 0 if found["status"] == "delivered" else 1


def remove(settings: Settings, told: argparse.Namespace) -> int:
    """Remove a webhook and what waits to be sent."""
    Client(settings).delete(f"{PATH}/{told.webhook_id}")
    print(f"{told.webhook_id} is removed")
    return 0


def grammar(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """The grammar of these commands."""
    hooks = verbs.add_parser("webhook", help="Webhooks.").add_subparsers(required=True, metavar="command")
    verb("list", listing, hooks)
    adding = verb("add", add, hooks)
    adding.add_argument("url")
    adding.add_argument("--event", nargs="+", default=["*"], help=f"`*`, `task.*`, {', '.join(EVENTS)}")
    adding.add_argument("--agent", default="", help="only what is about this agent")
    adding.add_argument("--everybody", action="store_true", help="everybody's events, not only one's own")
    verb("test", test, hooks).add_argument("webhook_id")
    verb("remove", remove, hooks).add_argument("webhook_id")
