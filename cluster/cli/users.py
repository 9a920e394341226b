"""`village user ...` and `village keys ...`: straight to the store, so that they also work while nothing serves."""

import argparse
import getpass
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from cluster.cli.direct import with_store
from cluster.clock import iso
from cluster.identity.model import SYSTEM, Tier
from cluster.identity.records import User
from cluster.identity.service import Identity
from cluster.origin import Origin, within
from cluster.settings import Settings
from cluster.store import Store

T = TypeVar("T")
Told = argparse.Namespace
TIERS: tuple[Tier, ...] = ("standard", "premium", "enterprise")
MOST = 1000  # users that one listing shows
console = Console(highlight=False)


def read_password() -> str:
    """From the terminal without showing it, or one line of standard input."""
    return getpass.getpass("password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")


def ask(settings: Settings, work: Callable[[Identity], Awaitable[T]]) -> T:
    """What `work` makes of the village's identity. Raises `Refused` with the reason in words."""

    async def known(store: Store) -> T:
        with within(Origin(principal_id="cli", username=getpass.getuser(), endpoint="village user")):
            return await work(Identity(store))

    return with_store(settings, known)


def add(settings: Settings, told: Told) -> int:
    """Make a user; the password is asked for, or read from standard input."""
    password, scopes = read_password(), frozenset(told.scope)
    ask(settings, lambda identity: identity.create_user(told.username, password, scopes, told.tier))
    print(f"made {told.username} ({told.tier}; {', '.join(told.scope)})")
    return 0


def show_all(settings: Settings, told: Told) -> int:
    """List the users."""
    page = ask(settings, lambda identity: identity.list_users(told.status, told.tier, limit=MOST))
    table = Table("user", "status", "tier", "scopes", "second factor", "since", box=None)
    for user in page.items:
        table.add_row(*described(user).values())
    console.print(table)
    if page.total > len(page.items):
        print(f"{page.total - len(page.items)} more: filter with --status or --tier")
    return 0


def show(settings: Settings, told: Told) -> int:
    """Show one user."""
    user = ask(settings, lambda identity: identity.named(told.username))
    for name, value in (described(user) | {"id": user.user_id}).items():
        print(f"{name}: {value}")
    return 0


def described(user: User) -> dict[str, str]:
    """A user in words."""
    return {
        "user": user.username,
        "status": user.status,
        "tier": user.tier,
        "scopes": ", ".join(sorted(user.scopes)),
        "second factor": "on" if user.mfa else "off",
        "since": iso(user.created_at),
    }


def change(settings: Settings, username: str, **given: Any) -> User:
    """Change a user; it acts at their next request."""

    async def work(identity: Identity) -> User:
        return await identity.change_user(SYSTEM, (await identity.named(username)).user_id, **given)

    return ask(settings, work)


def disable(settings: Settings, told: Told) -> int:
    """Keep a user out, at once."""
    print(f"{change(settings, told.username, disabled=True).username} is out")
    return 0


def enable(settings: Settings, told: Told) -> int:
    """Let a disabled user in again."""
    print(f"{change(settings, told.username, disabled=False).username} may sign in")
    return 0


def passwd(settings: Settings, told: Told) -> int:
    """Set a user's password and end their sessions; it is read as in `user add`."""
    password = read_password()
    ask(settings, lambda identity: identity.set_password(told.username, password))
    print(f"{told.username} has a new password and is signed out everywhere")
    return 0


def mfa_off(settings: Settings, told: Told) -> int:
    """Take away the second factor of who lost the app and the backup codes."""

    async def work(identity: Identity) -> User:
        return await identity.remove_factor((await identity.named(told.username)).user_id)

    print(f"{ask(settings, work).username} signs in with the password alone")
    return 0


def set_tier(settings: Settings, told: Told) -> int:
    """Set a user's tier."""
    print(f"{told.username} is {change(settings, told.username, tier=told.tier).tier}")
    return 0


def set_scopes(settings: Settings, told: Told) -> int:
    """Set what a user may do."""
    user = change(settings, told.username, scopes=frozenset(told.scope))
    print(f"{told.username} may {', '.join(sorted(user.scopes)) or 'nothing'}")
    return 0


def remove(settings: Settings, told: Told) -> int:
    """Remove a user for good; the name stays taken, and the API keys of their clients live on unless --keys."""

    async def work(identity: Identity) -> int:
        of = (await identity.named(told.username)).user_id
        if told.keys:
            await identity.revoke_keys_of(of)
        await identity.delete_user(SYSTEM, of)
        return len(await identity.keys_of(of))

    left = ask(settings, work)
    print(f"{told.username} is removed; {left} API keys of their clients are active")
    return 0


def rotate_keys(settings: Settings, told: Told) -> int:
    """Sign tokens with a new secret; what was signed before stays good until it expires, unless --now."""
    signers = ask(settings, lambda identity: identity.rotate_signing(SYSTEM, told.now))
    for key in signers.keys:
        print(f"{key.kid}: {f'good until {iso(key.until)}' if key.until else 'signs'}")
    return 0


def grammar(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """`user` and `keys` on the command line."""
    users = verbs.add_parser("user", help="Users.").add_subparsers(required=True, metavar="command")
    adding = verb("add", add, users)
    adding.add_argument("username")
    adding.add_argument("--tier", default="standard", choices=TIERS)
    adding.add_argument("--scope", nargs="+", default=["read", "write"])
    listing = verb("list", show_all, users)
    listing.add_argument("--status", default="all", choices=["active", "disabled", "all"])
    listing.add_argument("--tier", default="all", choices=[*TIERS, "all"])
    named = {"show": show, "disable": disable, "enable": enable, "passwd": passwd, "mfa-off": mfa_off}
    for name, action in named.items():
        verb(name, action, users).add_argument("username")
    tiering = verb("tier", set_tier, users)
    tiering.add_argument("username")
    tiering.add_argument("tier", choices=TIERS)
    scoping = verb("scopes", set_scopes, users)
    scoping.add_argument("username")
    scoping.add_argument("scope", nargs="*")
    removing = verb("remove", remove, users)
    removing.add_argument("username")
    removing.add_argument("--keys", action="store_true", help="end the API keys of their clients too")
    signing = verbs.add_parser("keys", help="Signing secrets.").add_subparsers(required=True, metavar="command")
    rotating = verb("rotate", rotate_keys, signing)
    rotating.add_argument("--now", action="store_true", help="everybody signs in again: for a secret that leaked")
