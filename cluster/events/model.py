"""An event: what changed, whose it is, when. The store gives it its id as it commits."""

import re
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from cluster.origin import Origin


class Event(BaseModel):
    """One entry of the stream. `kind` is `<noun>.<verb>`, as in `task.completed` or `training.progress`."""

    model_config = ConfigDict(frozen=True)

    kind: str
    subject: str  # id of the record that changed
    owner: str  # principal that may see it
    at: datetime
    data: dict[str, Any] = {}
    origin: Origin | None = None  # stamped by the store; never shown to those who follow the stream
    event_id: str = ""  # `evt_<milliseconds>-<n>`: given by the stream, and ordered


START = "evt_0-0"
ID = re.compile(r"(?:evt_)?([0-9]{1,20})-([0-9]{1,20})")


def stream_id(event_id: str) -> str:
    """The stream's own id inside an event id; raises ValueError for anything else."""
    place = ID.fullmatch(event_id)
    if place is None or max(int(place[1]), int(place[2])) >= 2**64:  # Redis counts no further
        raise ValueError(f"no event id: {event_id:.100}")
    return f"{int(place[1])}-{int(place[2])}"


def order(event_id: str) -> tuple[int, int]:
    """An event's place in the stream, comparable. Raises ValueError for what is no event id."""
    milliseconds, _, number = stream_id(event_id).partition("-")
    return int(milliseconds), int(number)
