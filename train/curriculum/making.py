"""A round of the curriculum made: the model is asked, difficulty moves, and what is learnt next is written down."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from train import parallel
from train.causes import Cause, Failed
from train.curriculum.answering import Answered, answers, by
from train.curriculum.controller import LOWEST, Band, Controller, Standing
from train.curriculum.dreaming import Wish, dreams
from train.curriculum.rounds import Kept, Round
from train.curriculum.sandbox import Sandbox
from train.curriculum.tasks import Task, tasks
from train.loop import Progress
from train.model.learner import Learner
from train.model.thoughts import thinks
from train.phases.phase import Work
from train.resumable import together

if TYPE_CHECKING:
    from train.phases.training import TrainingConfig

SHORTEST_TASK = 12  # tokens of an exchange


class Maker:
    """Makes rounds of the model as it is while it is trained, and keeps them. Dreams are held against it as it is now.

    `real_text` is its loss on held-out text, nats per token. `work` is to be trained with.
    """

    def __init__(
        self, config: "TrainingConfig", work: Work, learner: Learner, sandbox: Sandbox, real_text: float
    ) -> None:
        self.config, self.given, self.learner, self.sandbox = config, work, learner, sandbox
        self.kept = Kept(work.folder / "rounds")
        self.band = Band(config.low, config.high, config.window, config.first_step)
        self.base = copy.deepcopy(learner.model).eval().requires_grad_(False)
        self.wish = Wish(
            config.dreams_drawn, config.dream_tokens, config.dream_temperature, real_text + config.dream_nats,
            config.dream_distinct,
        )  # fmt: skip
        self.trained: nn.Module = learner.model
        self.numbers: dict[str, float] = {}
        self.work = replace(work, wrap=self._wrapped, report=self._reported)

    def begin(self, number: int) -> Round:
        """The round of that number: read where it is kept, else made by rank 0. Every worker calls it."""
        if parallel.sharded(self.trained):
            parallel.gather(self.trained, self.learner.model)
        if self.work.rank == 0 and self.kept.read(number) is None:
            self.kept.write(self._made(number))
        together(self.work)
        made = self.kept.read(number)
        if made is None:
            raise Failed(f"round {number} is not where its maker left it", Cause.DAMAGED)
        levels = [standing["difficulty"] for standing in made.standings.values()]
        self.numbers = {"round": float(number), "round_success": made.success, "level": sum(levels) / len(levels)}
        return made

    def _made(self, number: int) -> Round:
        config, controller = self.config, self._controller(number)
        chance = random.Random(f"{config.seed}:round:{number}")
        device = next(self.learner.model.parameters()).device
        generator = torch.Generator(device).manual_seed(chance.getrandbits(32))
        asked = [
            task for family in controller.open
            for task in tasks(family, controller.families[family].difficulty, config.asked, chance)
        ]  # fmt: skip
        answered = answers(
            self.learner, asked, self.sandbox, thought_tokens=config.thought_tokens, temperature=config.temperature,
            generator=generator,
        )  # fmt: skip
        success = {str(family): (found.right, found.asked) for family, found in by(answered, "family").items()}
        moved = {family: controller.told(family, *found) for family, found in success.items()}
        dreamt = dreams(self.learner, self.base, self.wish, generator) if config.dreams else []
        made = Round(
            number, success, controller.state(), self._taught(controller, answered, chance), dreamt,
            config.dreams_drawn if config.dreams else 0,
        )  # fmt: skip
        self.work.note(
            "round", number=number, success=round(made.success, 3), dreams=len(dreamt),
            levels={family: round(controller.families[family].difficulty, 2) for family in success},
            moved={family: round(levels, 2) for family, levels in moved.items() if levels},
            right={family: f"{right}/{count}" for family, (right, count) in success.items()},
        )  # fmt: skip
        return made

    def _controller(self, number: int) -> Controller:
        if number == 0:
            return Controller(self.band, {name: Standing() for name in self.config.families}, self.config.beginning)
        before = self.kept.read(number - 1)
        if before is None:
            raise Failed(f"round {number - 1} is gone", Cause.DAMAGED)
        return Controller.restored(self.band, self.config.beginning, before.standings)

    def _taught(
        self, controller: Controller, answered: Sequence[Answered], chance: random.Random
    ) -> list[tuple[str, str]]:
        """At the families' difficulty, some at any below; and the model's own right answers where they differ."""
        config, thinking = self.config, thinks(self.learner)
        room = config.round_steps * config.batch_size * config.context_length * config.tasks
        each = math.ceil(room / SHORTEST_TASK / len(controller.open))
        again, fresh = round(each * config.rehearsal), list[Task]()
        for family in controller.open:
            difficulty = controller.families[family].difficulty
            fresh += tasks(family, difficulty, each - again, chance)
            for _ in range(again):
                fresh += tasks(family, chance.uniform(LOWEST, difficulty), 1, chance)
        taught = [task.taught(thinking) for task in fresh]
        if config.own_answers:
            own = [
                each for each in answered if each.right and each.reply != each.task.taught(thinking).turns[1].content
            ]
            taught += [each.task.answered(each.reply) for each in own]
        return [(question.content, answer.content) for question, answer in (document.turns for document in taught)]

    def _wrapped(self, module: nn.Module) -> nn.Module:
        self.trained = self.given.wrap(module)
        return self.trained

    def _reported(self, progress: Progress) -> None:
        progress.metrics.update(self.numbers)
        self.given.report(progress)
