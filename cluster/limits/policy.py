"""Limits as data: which windows a principal's requests to a dialect count in. Pure."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from cluster.identity.model import Principal, Tier
from cluster.settings import ROOT

Span = Literal["second", "minute", "hour"]
SECONDS: dict[Span, int] = {"second": 1, "minute": 60, "hour": 3600}


class Window(BaseModel):
    """At most `limit` requests in each aligned span of time."""

    model_config = ConfigDict(frozen=True)

    span: Span
    limit: int

    @property
    def seconds(self) -> int:
        """Length of the span."""
        return SECONDS[self.span]


Windows = tuple[Window, ...]


class Sockets(BaseModel):
    """WebSockets and event streams. `messages`: of one connection; the others: connections open in one process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: dict[Span, int] = Field(default_factory=lambda: {"minute": 100})
    per_caller: int = 100  # a principal; without one, an address
    per_process: int = 5000


class Policy(BaseModel):
    """`configs/limits.yaml`.

    `tiers`: what a user of each tier may ask of the dialects that go by tier.
    `dialects`: dialect -> bucket -> windows, for those with numbers of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tiers: dict[Tier, dict[Span, int]]
    dialects: dict[str, dict[str, dict[Span, int]]] = Field(default_factory=dict)
    sockets: Sockets = Field(default_factory=Sockets)

    def tier_of(self, who: Principal | None) -> Tier:
        """An admin has the enterprise tier, a stranger the standard one."""
        if who is None:
            return "standard"
        return "enterprise" if who.is_admin else who.tier

    def windows(self, dialect: str, bucket: str, who: Principal | None) -> Windows:
        """The windows that one request counts in, narrow ones first."""
        own = self.dialects.get(dialect)
        spans: dict[Span, int]
        if own is None:
            if who is not None and who.per_minute is not None and who.per_hour is not None:
                spans = {"minute": who.per_minute, "hour": who.per_hour}
            else:
                spans = self.tiers[self.tier_of(who)]
        else:
            spans = own[bucket]
            if who is not None and who.is_admin:
                spans = {s: max(n, self.tiers["enterprise"].get(s, n)) for s, n in spans.items()}
        windows = (Window(span=span, limit=limit) for span, limit in spans.items())
        return tuple(sorted(windows, key=lambda window: window.seconds))


def load(path: Path = ROOT / "configs" / "limits.yaml") -> Policy:
    """The policy in a file. Raises pydantic's ValidationError for what it does not know."""
    return Policy.model_validate(yaml.safe_load(path.read_text()))
