"""The search over designs: an archive, proposals from it, and successive halving on how many questions each is asked.

Automated Design of Agentic Systems (arXiv:2408.08435): propose, evaluate, archive, and propose again with the archive
in view. Every design begins with few questions; the better third of those that finished a rung goes on to three times
as many (arXiv:1810.05934), so that a poor design is cheap. Pure but for its own seeded chance.
"""

import random
from collections.abc import Callable
from typing import Any

from train.adas.archive import Record
from train.adas.design import Design
from train.adas.space import Space, at_random, crossed, mutated, novelty, templates
from train.search import Candidate, Measured

ETA = 3  # one in so many goes on to the next rung
FINISHING = 0.1  # share of the trials for taking the best to the last rung
CLOSING = 0.3  # share of the seconds for that
FINALISTS = 3  # are asked everything, should it take longer than the seconds
TRIES = 20  # for a proposal that is new
OPERATORS = {"mutation": 0.5, "crossover": 0.2, "random": 0.15, "novel": 0.15}
Ask = Callable[[list[Record], random.Random], Design | None]  # a model's proposal; None for one that is not valid


class DesignSearch:
    """Implements `train.search.Search`. `rungs` are rising numbers of questions; `seconds` of all trials together.

    Designs are proposed until the seconds are nearly spent; the finalists are asked everything even so.
    """

    def __init__(
        self, space: Space, rungs: list[int], *, trials: int, seconds: float, novelty_weight: float, seed: int,
        ask_model: Ask | None = None,
    ) -> None:  # fmt: skip
        self.space, self.rungs, self.trials, self.seconds = space, rungs, trials, seconds
        self.novelty_weight, self.seed, self.ask_model = novelty_weight, seed, ask_model
        self.records: list[Record] = []
        self.out: list[Candidate] = []  # asked for, not told about
        self.again: list[Candidate] = []  # of `out`: to be asked for again
        self.told, self.spent = 0, 0.0
        self.asked_model, self.valid = 0, 0

    @property
    def budget(self) -> int:
        """Trials."""
        return self.trials

    def ask(self) -> Candidate | None:
        """A known design with more questions, or a new one with few."""
        if self.again:
            return self.again.pop(0)
        if self.told + len(self.out) >= self.trials:
            return None
        record = self._finalist() if self.closing else self._promoted() or self._proposed()
        if record is None:
            return None
        rung = record.rung + 1
        candidate = {
            "number": record.number, "design": record.design.model_dump(mode="json"),
            "start": self.rungs[rung - 1] if rung else 0, "end": self.rungs[rung],
        }  # fmt: skip
        self.out.append(candidate)
        return candidate

    def tell(self, candidate: Candidate, measured: Measured | None) -> None:
        """Add what was measured to the design's record."""
        self.out = [each for each in self.out if each["number"] != candidate["number"]]
        self.told += 1
        record = self.records[candidate["number"]]
        if measured is None:
            record.failed = True
            return
        record.rung += 1
        record.questions += candidate["end"] - candidate["start"]
        record.right += round(measured["right"])
        record.tokens += round(measured["tokens"])
        record.seconds += measured["seconds"]
        self.spent += measured["seconds"]

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {
            "records": [record.model_dump(mode="json") for record in self.records], "out": self.out, "told": self.told,
            "spent": self.spent, "asked_model": self.asked_model, "valid": self.valid,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.records = [Record.model_validate(record) for record in state["records"]]
        self.out, self.again = list(state["out"]), list(state["out"])
        self.told, self.spent = state["told"], state["spent"]
        self.asked_model, self.valid = state["asked_model"], state["valid"]

    @property
    def closing(self) -> bool:
        """Whether what is left of the seconds is for the finalists."""
        return self.spent >= (1 - CLOSING) * self.seconds

    def _finalist(self) -> Record | None:
        """One of the few best so far, or the default design, that has not been asked everything."""
        known = [record for record in self._at(0) if record.design.servable]
        best = sorted(known, key=lambda r: (-r.interval[0], r.tokens_per_answer, r.number))[:FINALISTS]
        wanted = {record.number for record in best} | {0}
        return next((record for record in self._ready() if record.number in wanted), None)

    def _ready(self) -> list[Record]:
        """Designs that could be asked more now."""
        busy = {candidate["number"] for candidate in self.out}
        last = len(self.rungs) - 1
        return [r for r in self.records if not r.failed and r.number not in busy and 0 <= r.rung < last]

    def _promoted(self) -> Record | None:
        """The best design that earned its next rung; the default design, number 0, always does.

        Near the end whoever may still be as good as the best is asked on.
        """
        ready = self._ready()
        if self.told + len(self.out) >= (1 - FINISHING) * self.trials:
            bar = max((r.interval[0] for r in self._at(len(self.rungs) - 1)), default=0.0)
            hopeful = [r for r in ready if r.number == 0 or r.interval[1] >= bar]
            return max(hopeful, key=lambda r: (r.number == 0, r.interval[0], -r.number), default=None)
        for rung in reversed(range(len(self.rungs) - 1)):
            finished = sorted(self._at(rung), key=lambda r: (-r.success, r.tokens_per_answer, r.number))
            places = len(finished) // ETA
            best = {r.number for r in finished[:places]} if len(self._at(rung + 1)) < places else set[int]()
            for record in sorted(ready, key=lambda r: (-r.success, r.tokens_per_answer, r.number)):
                if record.rung == rung and (record.number in best or record.number == 0):
                    return record
        return None

    def _at(self, rung: int) -> list[Record]:
        return [r for r in self.records if r.rung >= rung and not r.failed]

    def _proposed(self) -> Record | None:
        """A design that is not in the archive yet; None where chance finds none."""
        chance = random.Random(f"{self.seed}:{len(self.records)}:{self.asked_model}")
        known = {record.design for record in self.records}
        design, origin = self._from_model(chance)
        if design is None:
            design, origin = next(((d, "template") for d in templates(self.space) if d not in known), (None, ""))
        for _ in range(TRIES):
            if design is not None and design not in known:
                record = Record(number=len(self.records), design=design, origin=origin)
                self.records.append(record)
                return record
            origin = chance.choices(list(OPERATORS), list(OPERATORS.values()))[0]
            design = self._by(origin, chance)
        return None

    def _from_model(self, chance: random.Random) -> tuple[Design | None, str]:
        if self.ask_model is None or not self.records:  # the default comes first
            return None, ""
        self.asked_model += 1
        design = self.ask_model(self.records, chance)
        self.valid += design is not None
        return design, "model"

    def _by(self, operator: str, chance: random.Random) -> Design:
        if operator == "mutation":
            return mutated(self._parent(chance).design, self.space, chance)
        if operator == "crossover":
            return crossed(self._parent(chance).design, self._parent(chance).design, chance)
        some = [at_random(self.space, chance) for _ in range(8 if operator == "novel" else 1)]
        return max(some, key=lambda design: novelty(design, [record.design for record in self.records]))

    def _parent(self, chance: random.Random) -> Record:
        """The winner of a tournament of three: by the lower end of its success, and what it adds to the archive."""

        def merit(record: Record) -> float:
            others = [other.design for other in self.records if other.number != record.number]
            return record.interval[0] + self.novelty_weight * novelty(record.design, others)

        return max((chance.choice(self.records) for _ in range(3)), key=merit)
