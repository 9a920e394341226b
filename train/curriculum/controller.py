"""Keeps success near the edge: a staircase on every family's difficulty. Pure.

A weighted up-down procedure as in psychophysics (Taylor and Creelman's PEST, 1967): difficulty is left alone while the
share of right answers is in the band, and moves outside of it, by a step that halves when the direction turns and grows
while it stays. Two things keep it from swinging: nothing moves before a whole window was measured, and what was
measured at another difficulty is forgotten.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

LOWEST, HIGHEST = 1.0, 10.0


@dataclass(frozen=True)
class Band:
    """Where success is to be, and how difficulty moves. Shares are 0 to 1, steps in levels."""

    low: float = 0.55
    high: float = 0.75
    window: int = 24  # answers that a decision needs
    first_step: float = 0.5
    smallest_step: float = 0.125
    largest_step: float = 2.0

    def holds(self, success: float) -> bool:
        """Whether that is in the band."""
        return self.low <= success <= self.high


@dataclass
class Standing:
    """Where a family is: its difficulty, and what was measured there."""

    difficulty: float = LOWEST  # 3.25: three tasks of level 3 to one of level 4
    step: float = 0.0  # of the last move; negative was easier
    right: int = 0
    asked: int = 0
    reached: bool = False  # whether success was ever as high as the band

    @property
    def success(self) -> float:
        """Share of right answers at this difficulty; 0 before any."""
        return self.right / self.asked if self.asked else 0.0


@dataclass
class Controller:
    """Every family's standing, in the order in which they are taken up.

    At most `beginning` families below the band are taught at a time: a few examples of everything teach nothing.
    """

    band: Band
    families: dict[str, Standing] = field(default_factory=dict)
    beginning: int = 4

    @property
    def open(self) -> list[str]:
        """The families that are asked and taught: those that have reached the band, and the next few."""
        waiting = [family for family, here in self.families.items() if not here.reached][: self.beginning]
        return [family for family, here in self.families.items() if here.reached or family in waiting]

    def told(self, family: str, right: int, asked: int) -> float:
        """So many of the tasks were answered right. Returns by how many levels the difficulty moves, 0 mostly."""
        here = self.families[family]
        here.right, here.asked = here.right + right, here.asked + asked
        here.reached = here.reached or here.success >= self.band.low
        if here.asked < self.band.window:
            return 0.0
        if self.band.holds(here.success):
            here.right, here.asked = here.right // 2, here.asked // 2  # older answers count less
            return 0.0
        there = min(HIGHEST, max(LOWEST, here.difficulty + self.step(here)))
        moved = there - here.difficulty
        self.families[family] = Standing(there, moved, reached=here.reached)
        return moved

    def step(self, here: Standing) -> float:
        """The next move's levels: turning halves it, going on makes it half as large again."""
        way = 1.0 if here.success > self.band.high else -1.0
        if not here.step:
            return way * self.band.first_step
        size = abs(here.step) * (1.5 if here.step * way > 0 else 0.5)
        return way * min(self.band.largest_step, max(self.band.smallest_step, size))

    def state(self) -> dict[str, Any]:
        """Every standing, as JSON."""
        return {name: asdict(here) for name, here in self.families.items()}

    @classmethod
    def restored(cls, band: Band, beginning: int, state: dict[str, Any]) -> "Controller":
        """Of what `state` gave."""
        return cls(band, {name: Standing(**here) for name, here in state.items()}, beginning)
