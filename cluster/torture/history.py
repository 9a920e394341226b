"""Everything that is known of one torture when it is over: what the checker reads, and what a failing seed keeps."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cluster.events import Event
from cluster.tasks.model import Task
from cluster.trust.ledger import TrustRecord
from cluster.workflows.chains.model import Chain
from cluster.workflows.schedules.model import Firing, Schedule

MODELS: dict[str, type[BaseModel]] = {
    "events": Event, "tasks": Task, "lines": TrustRecord, "chains": Chain, "schedules": Schedule, "firings": Firing
}  # fmt: skip


@dataclass
class History:
    """`notes` are those of clients, agents, the webhook's receiver and the world, by time (see `notes.Notes`)."""

    plan: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)  # the whole stream
    tasks: list[Task] = field(default_factory=list)  # every record at the end, as all that follows
    rooms: dict[str, int] = field(default_factory=dict)  # how many tasks each agent may hold
    held: dict[str, list[str]] = field(default_factory=dict)  # the store's set of each agent
    notes: list[dict[str, Any]] = field(default_factory=list)
    lines: list[TrustRecord] = field(default_factory=list)
    verified: dict[str, str] = field(default_factory=dict)  # what is wrong with each agent's chain; empty: nothing
    chains: list[Chain] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)
    firings: list[Firing] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)  # between indexes and records
    errors: list[str] = field(default_factory=list)  # lines of the parts' logs that tell of one nobody expected
    hook_since: str = ""  # the webhook wants every event after this one; empty: there is none
    unsettled: str = ""  # what had not come to an end when the waiting was over

    def said(self, what: str) -> list[dict[str, Any]]:
        """The notes of one kind."""
        return [note for note in self.notes if note["what"] == what]


def save(history: History, path: Path) -> None:
    """One JSON line for each thing, so that a person finds a task with grep."""
    with path.open("w") as file:
        for part in fields(history):
            value = getattr(history, part.name)
            each = value if isinstance(value, list) else [value]
            for item in each:
                told = item.model_dump(mode="json") if isinstance(item, BaseModel) else item
                file.write(json.dumps({part.name: told}) + "\n")


def load(lines: Iterable[str]) -> History:
    """What `save` wrote."""
    history = History()
    for line in lines:
        [(name, value)] = json.loads(line).items()
        if isinstance(known := getattr(history, name), list):
            known.append(MODELS[name].model_validate(value) if name in MODELS else value)
        else:
            setattr(history, name, value)
    return history
