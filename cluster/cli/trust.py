"""`village trust ...`: straight to the store, so that it also works while nothing serves; an export needs no store."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.cli.audit import moment
from cluster.cli.client import Refused
from cluster.cli.direct import with_store
from cluster.clock import iso
from cluster.errors import AgentNotFound
from cluster.settings import Settings
from cluster.store import Store
from cluster.trust import export
from cluster.trust.explain import Explanation
from cluster.trust.replay import Verdict
from cluster.trust.service import Trust

Told = argparse.Namespace
console = Console(highlight=False)


def verify(settings: Settings, told: Told) -> int:
    """Replay ledgers, all of them by default; exit status 1 and the record where one does not hold."""
    if told.file:
        if not told.file.is_file():
            raise Refused(f"no file {told.file}")
        with told.file.open("rb") as lines:
            return report(export.verify(lines))
    return report(with_store(settings, lambda store: proved(store, told.agents, told.export)))


async def proved(store: Store, agents: list[str], file: Path | None) -> list[Verdict]:
    """The verdict of each; their ledgers go into `file` meanwhile, as they are."""
    trust = Trust(store)
    known = await trust.agents()
    if unknown := [agent for agent in agents if agent not in known]:
        raise AgentNotFound(f"no ledger of {unknown[0]}")
    wanted = agents or known
    verdicts = [await trust.prove(agent) for agent in wanted]
    if file is not None:
        seal = export.Seal()
        with file.open("w", encoding="utf-8") as out:
            for agent in wanted:
                async for line in trust.export(agent):
                    print(seal.line(line), file=out)
            print(seal.end(), file=out)
    return verdicts


def report(verdicts: Iterable[Verdict]) -> int:
    """One line for what does not hold, one for all that does."""
    held = broken = lines = 0
    for verdict in verdicts:
        lines += verdict.checked
        if verdict.fault is None:
            held += 1
            continue
        broken += 1
        about = f"{verdict.agent_id}: " if verdict.agent_id else ""
        named = f" ({verdict.record_id})" if verdict.record_id else ""
        print(f"BROKEN: {about}{verdict.fault}{named}; before it {verdict.checked} hold")
    print(f"{held} {'ledger holds' if held == 1 else 'ledgers hold'}, {lines} records checked")
    return 1 if broken else 0


def explain(settings: Settings, told: Told) -> int:
    """Show an agent's score as the sum that it is."""
    found = with_store(settings, lambda store: summed(store, told))
    table = Table("number", "time", "event", "good", "bad", "moves", "task", box=None)
    table.add_row("", "", "prior", "12.500", "12.500", "", "")
    for line in found.lines[: told.limit]:
        record = line.record
        table.add_row(
            str(record.number), iso(record.created_at), record.event_type, f"{line.good:.3f}", f"{line.bad:.3f}",
            f"{line.moves:+.6f}", record.task_id or record.by,
        )  # fmt: skip
    if rest := found.lines[told.limit :]:
        good, bad = sum(line.good for line in rest), sum(line.bad for line in rest)
        table.add_row("", "", f"{len(rest)} earlier", f"{good:.3f}", f"{bad:.3f}", "", "")
    console.print(table)
    print(
        f"(12.5 + {found.good:.6f}) / (25 + {found.good:.6f} + {found.bad:.6f}) = {found.score:.9f} at "
        f"{iso(found.as_of)}; the platform goes by {found.stated:.9f}"
    )
    verdict = found.verdict
    print(f"BROKEN: {verdict.fault}" if verdict.fault else f"{verdict.checked} records hold; head {verdict.head}")
    return 0 if found.agrees and verdict.fault is None else 1


async def summed(store: Store, told: Told) -> Explanation:
    """The explanation of one agent's score. Raises `AgentNotFound`."""
    trust = Trust(store)
    if told.agent not in await trust.agents():
        raise AgentNotFound(f"no ledger of {told.agent}")
    return await trust.explain(told.agent, told.as_of)


def grammar(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """The grammar of these commands."""
    trusts = verbs.add_parser("trust", help="The trust ledger.").add_subparsers(required=True, metavar="command")
    proving = verb("verify", verify, trusts)
    proving.add_argument("agents", nargs="*", metavar="AGENT")
    proving.add_argument("--export", type=Path, metavar="FILE", help="write the ledgers there, as JSON lines")
    proving.add_argument("--file", type=Path, metavar="FILE", help="verify an export, without a store")
    explaining = verb("explain", explain, trusts)
    explaining.add_argument("agent", metavar="AGENT")
    explaining.add_argument("--as-of", type=moment, metavar="TIME")
    explaining.add_argument("--limit", type=int, default=20)
