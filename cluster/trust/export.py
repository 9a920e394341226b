"""A ledger as JSON lines that prove themselves, without the store: each agent's lines, its standing, and a seal. Pure.

{"record": {...}}          a line of the ledger, oldest first
{"standing": {...}}        where its agent stands after them
{"sealed": N, "sha256": h} last: how many lines of text stand before, and the SHA-256 of their bytes
"""

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256

from cluster.trust.ledger import Standing, TrustRecord
from cluster.trust.replay import Replay, Verdict


class Seal:
    """The running hash of what was written."""

    def __init__(self) -> None:
        self.hash, self.count = sha256(), 0

    def over(self, text: str) -> str:
        """The line itself, counted."""
        self.hash.update(text.encode() + b"\n")
        self.count += 1
        return text

    def line(self, of: TrustRecord | Standing) -> str:
        """A record as a line."""
        name = "record" if isinstance(of, TrustRecord) else "standing"
        return self.over(f'{{"{name}":{of.model_dump_json()}}}')

    def end(self) -> str:
        """The last line."""
        return json.dumps({"sealed": self.count, "sha256": self.hash.hexdigest()})


def verify(lines: Iterable[bytes]) -> Iterator[Verdict]:
    """A verdict for each agent of an export; one without an agent for a file that is not as it was written."""
    seal, replay, sealed = Seal(), Replay(), False
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode().removesuffix("\n")
            said = json.loads(text)
            if sealed or not isinstance(said, dict):
                raise ValueError("something stands behind the seal")
            if said.keys() == {"sealed", "sha256"}:
                sealed = True
                if text != seal.end():
                    yield Verdict("", fault="the file is not as it was written: its seal does not fit")
                continue
            [(name, body)] = said.items()
            seal.over(text)
            if name == "record":
                record = TrustRecord.model_validate(body)
                replay.agent_id = replay.agent_id or record.agent_id
                replay.add(record)
                continue
            if name != "standing":
                raise ValueError(f"{name} is no part of an export")
            standing = Standing.model_validate(body)
        except ValueError:
            yield Verdict("", fault=f"line {number} cannot be read")
            return
        replay.agent_id = replay.agent_id or standing.standing_id
        yield replay.against(standing)
        replay = Replay()
    if replay.number or replay.fault:
        yield replay.against(None)
    if not sealed:
        yield Verdict("", fault="the file has no seal: its end is missing")
