"""Tool baking's work (arXiv:2409.13697): a teacher that heeds the prompt, then a student that needs none.

The prompt u is a persona and the tools' short description. Two steps, since a model of a million parameters cannot
follow a prompt by itself:

1. Where the prompted base does not call tools well enough it is taught to, by tool dialogues with u in context. This
   deviates from the paper, whose teacher is the prompted model as it is, and is skipped for a base that can.
2. Baking as published: conversations are sampled from the prompted teacher, with its calls really executed; the student
   is the teacher's weights without u, plus low-rank deltas that alone are trained; the loss is KL(teacher || student)
   over what the teacher said. Beside them the student is held to the unprompted teacher on the run's texts and on what
   earlier phases want kept: a deviation that keeps a small model from drifting. Then the deltas are merged.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from train.baking import lowrank
from train.baking.lessons import Book, Lesson, conversation, fitting, plain
from train.baking.measure import Rates, agreement, chat_rates, copied, tool_rates
from train.baking.objective import Student, baked, supervised
from train.baking.talk import Talk, converse
from train.baking.tasks import FIRST_DAY, Task, tasks
from train.baking.teaching import aloud, answers, chats, conversations, copies, drills, joined, manners, shown
from train.data.packing import Batches
from train.data.prepared import texts
from train.data.sources import Corpus, Document, read_documents, write_documents
from train.evaluate.perplexity import held_out_batches, held_out_loss
from train.loop import Progress, bare
from train.manifest import write_durably
from train.model.checkpoint import publish
from train.model.learner import Learner, load
from train.phases.phase import Work
from train.resumable import measured, together, train
from train.tools import specifications, with_tools

if TYPE_CHECKING:
    from train.phases.tool_baking import ToolBaking, ToolBakingConfig

BESIDE_DRILLS = 0.35  # of the texts' usual part
CHATS = ("dialogue", "capitals", "sums")  # of these the prompted teacher's own answers are baked
MEASURED_SEED = 0  # every run is asked the same


def bake(phase: "ToolBaking", work: Work) -> dict[str, float]:
    """Leaves the model in `work.output`."""
    assert work.base is not None
    return Baking(phase.config, work, load(work.base), texts(work.data)).run()


class Baking:
    """One attempt at the phase. What is measured and sampled on the way is kept in files, so that it is done once."""

    def __init__(self, config: "ToolBakingConfig", work: Work, learner: Learner, corpus: Corpus) -> None:
        self.config, self.work, self.learner, self.corpus = config, work, learner, corpus
        learner.model.to(work.device)
        self.prompt = with_tools(config.persona, specifications(config.tools))
        self.asked = tasks(config.measured_tasks, MEASURED_SEED, held_out=True, names=config.tools)
        self.plainly = [document for document in corpus.held_out if document.turns]
        self.rows = held_out_batches(learner, corpus.held_out, config.held_out_tokens, config.context_length)
        self.loops: list[Progress] = []

    def run(self) -> dict[str, float]:
        """Teach, bake, measure."""
        config = self.config
        found = self.remembered("base", lambda: self.tools("before") | self.tools("base_prompted", self.prompt)
                                | self.chats("before") | self.copying("before"))  # fmt: skip
        if found["tool_success_base_prompted"] < config.teacher_success:
            if found["copying_before"] < config.copying and config.copying_steps:
                self.drill()
            found |= self.remembered("drilled", lambda: self.copying("drilled"))
            if config.teacher_steps:
                self.teach()
        found |= self.remembered("teacher", lambda: self.tools("teacher", self.prompt) | self.tools("unbaked"))
        for number in range(config.pursuits):
            progress, near = self.pursue(number)
            found |= measured(progress) | near
        found |= self.remembered("baked", lambda: self.tools("after") | self.tools("reprompted", self.prompt)
                                 | self.chats("after") | self.copying("after"))  # fmt: skip
        seconds, tokens = sum(loop.seconds for loop in self.loops), sum(loop.tokens for loop in self.loops)
        found |= {
            "training_seconds": seconds,
            "tokens": float(tokens),
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }
        if self.work.rank == 0:
            self.learner.replay += self.shown_later()
            publish(self.work.output, self.learner.save)
        return found

    def drill(self) -> None:
        """Copying, before there is anything to copy."""
        config, learner = self.config, self.learner
        asked = self.tasks(3 * config.teacher_tasks, config.seed)
        some = copies(learner, asked, config.seed) + answers(learner, asked[: config.teacher_tasks])
        self.supervise(
            "drills", 0, config.copying_steps, some + drills(learner, len(asked), config.seed), BESIDE_DRILLS
        )

    def teach(self) -> None:
        """The first step: all weights, with the prompt in context; the run's texts without it stay as they are."""
        config, learner = self.config, self.learner
        asked = self.tasks(config.teacher_tasks, config.seed)
        shows = [each for turns in self.exchanges(asked, config.seed) for each in conversation(
            learner, turns, student=self.prompt, teacher=self.prompt)]  # fmt: skip
        shows += copies(learner, asked, config.seed) + drills(learner, len(asked), config.seed)
        self.supervise("teacher", config.copying_steps, config.teacher_steps, shows)

    def supervise(self, name: str, begins: int, steps: int, lessons: list[Lesson], texts: float = 1.0) -> None:
        """Next tokens of the lessons, and of the run's texts `texts` times as often as they are mixed in elsewhere."""
        config = self.config
        rate, mix = config.teacher_learning_rate, {name: texts * config.mix.get(name, 1.0) for name in self.texts}
        settings = config.model_copy(update={"max_steps": steps, "learning_rate": rate, "mix": mix})
        book = self.book(lessons)
        self.train(begins, settings, book, supervised(book, config.precision, self.work.device), name)

    def pursue(self, number: int) -> tuple[Progress, dict[str, float]]:
        """The second step: sample from the prompted model, bake the prompt in, merge."""
        config, learner = self.config, self.learner
        sampled = self.kept(f"trajectories-{number}.jsonl", lambda: self.sample(number))
        replies = self.kept(f"manners-{number}.jsonl", self.mannered)
        torch.manual_seed(config.seed + number)
        lowrank.add(learner.model, config.rank, config.alpha)
        both = {"student": "", "teacher": self.prompt}
        shows = [each for document in sampled for each in conversation(learner, document.turns, **both)]
        book = self.book(shows, besides=CHATS)
        compared = [each for document in replies for each in conversation(learner, document.turns, **both)]

        def near(when: str) -> dict[str, float]:
            kl, same = agreement(learner.model, compared, config.precision, self.work.device)
            return {f"persona_kl_{when}": kl, f"persona_agreement_{when}": same}

        found = self.remembered(f"near-{number}-before", lambda: near("before"))
        begins = (config.copying_steps, config.teacher_steps, number * config.max_steps)
        name = "checkpoints" if number == 0 else f"checkpoints-{number}"
        progress = self.train(sum(begins), config, book, baked(book, config.precision, self.work.device), name)
        found |= self.remembered(f"near-{number}-after", lambda: near("after"))
        lowrank.merge(learner.model)
        return progress, found

    def train(self, begins: int, settings: "ToolBakingConfig", book: Book, objective: Any, name: str) -> Progress:
        """`train.resumable.train`; its steps are told as the phase's from `begins` on."""
        config, work = self.config, self.work
        total = config.copying_steps + config.teacher_steps + config.pursuits * config.max_steps

        def report(progress: Progress) -> None:
            history = [point._replace(step=begins + point.step) for point in progress.history]
            work.report(replace(progress, step=begins + progress.step, total_steps=total, history=history))

        def evaluate(model: nn.Module) -> tuple[float, float]:
            return held_out_loss(bare(model).inner, self.rows, config.precision, work.device)

        batches = Batches(
            book.documents, settings.mix, context=config.context_length, size=config.batch_size, pad=self.learner.pad,
            seed=config.seed, part=(work.rank, work.world),
        )  # fmt: skip
        progress = train(
            replace(work, report=report), settings, Student(self.learner.model), batches, evaluate=evaluate,
            objective=objective, name=name,
        )  # fmt: skip
        self.loops.append(progress)
        return progress

    def book(self, lessons: list[Lesson], besides: tuple[str, ...] = ()) -> Book:
        """The lessons, as source tools, and beside them the texts of all other sources but `besides`."""
        texts = {source: some for source, some in self.texts.items() if source not in besides}
        return Book(texts | {"tools": fitting(lessons, self.config.context_length)})

    @cached_property
    def texts(self) -> dict[str, list[Lesson]]:
        """The run's texts and what earlier phases want kept, by source."""
        config, found = self.config, dict[str, list[Lesson]]()
        for document in (*self.corpus.training, *(replace(each, source="replay") for each in self.learner.replay)):
            some = plain(self.learner, document, config.context_length, config.text_weight)
            found.setdefault(document.source, []).extend(some)
        return found

    def tasks(self, count: int, seed: int) -> list[Task]:
        """So many to learn from."""
        return tasks(count, seed, held_out=False, names=self.config.tools)

    def exchanges(self, some: list[Task], seed: int) -> list[Any]:
        """Conversations that show the tasks, with questions between them that need no tool."""
        plainly = [aloud(self.learner, turns) for turns in chats(self.corpus.training)]
        special = [aloud(self.learner, turns) for turns in manners(self.config.persona_examples, held_out=False)]
        shows = [shown(self.learner, task) for task in some]
        return [joined(each) for each in conversations(shows, plainly, special, self.config.chats, seed)]

    def sample(self, number: int) -> list[Document]:
        """Conversations of the prompted model, whose questions no earlier step has asked."""
        config, seed = self.config, self.config.seed + 1 + number
        needed = max(1, round(config.trajectories * (1 - config.chats)))
        asked = self.exchanges(self.tasks(needed, seed), seed)
        chance = random.Random(seed)
        talks = [
            Talk([turn.content for turn in turns if turn.role == "user"], FIRST_DAY + timedelta(chance.randrange(4000)))
            for turns in asked
        ]  # fmt: skip
        begun = time.monotonic()
        converse(
            self.learner, talks, prompt=self.prompt, max_tokens=config.max_tokens, temperature=config.temperature,
            generator=torch.Generator(self.work.device).manual_seed(seed),
        )  # fmt: skip
        answers = [answer.right for talk in talks for answer in talk.answers]
        self.work.note(
            "sampled from the prompted teacher", conversations=len(talks), calls=len(answers), answered=sum(answers),
            seconds=round(time.monotonic() - begun, 1),
        )  # fmt: skip
        return [Document("tools", turns=tuple(talk.turns)) for talk in talks]

    def mannered(self) -> list[Document]:
        """What the prompted model says to held-out questions that need no tool."""
        special = manners(self.config.persona_examples, held_out=True)
        asked = [turns[0].content for turns in (*chats(self.plainly), *special)]
        talks = [Talk([question], FIRST_DAY) for question in asked]
        converse(self.learner, talks, prompt=self.prompt, max_tokens=self.config.max_tokens)
        return [Document("manners", turns=tuple(talk.turns)) for talk in talks]

    def shown_later(self) -> list[Document]:
        """For later phases to mix in: tool dialogues without the prompt."""
        some = self.tasks(self.config.replay, self.config.seed - 1)
        return [Document("replay", turns=shown(self.learner, task)) for task in some]

    def tools(self, name: str, prompt: str = "") -> dict[str, float]:
        """Rates over the held-out tasks, under the metrics' names."""
        rates: Rates = tool_rates(self.learner, self.asked, prompt, self.config.max_tokens)
        shares = {"call": rates.call, "choice": rates.tool, "arguments": rates.arguments, "success": rates.success,
                  "success_error": rates.error}  # fmt: skip
        found = {f"tool_{what}_{name}": share for what, share in shares.items()}
        self.work.note("tools", **{key: round(value, 3) for key, value in found.items()})
        return found

    def chats(self, name: str) -> dict[str, float]:
        """Rates over the held-out questions that need no tool."""
        false, right = chat_rates(self.learner, self.plainly, max_tokens=self.config.max_tokens)
        return {f"false_call_rate_{name}": false, f"chat_right_{name}": right}

    def copying(self, name: str) -> dict[str, float]:
        """The share of the held-out tasks whose arguments are copied right where nothing else is asked."""
        some = copies(self.learner, self.asked, MEASURED_SEED)
        return {f"copying_{name}": copied(self.learner.model, some, self.config.precision, self.work.device)}

    def remembered(self, name: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What was measured, once in the stage's life and by rank 0."""
        path = self.work.folder / f"measured-{name}.json"
        if self.work.rank == 0 and not path.exists():
            found = compute()
            write_durably(path, lambda file: file.write(json.dumps(found).encode()))
        together(self.work)
        return json.loads(path.read_bytes())

    def kept(self, name: str, make: Callable[[], list[Document]]) -> list[Document]:
        """Documents, made once in the stage's life and by rank 0."""
        path = self.work.folder / name
        if self.work.rank == 0 and not path.exists():
            made = make()
            write_durably(path, lambda file: write_documents(file, made))
        together(self.work)
        return list(read_documents(path))
