"""The wiring to Ray Tune: candidates of a search evaluated side by side, each a trial."""

import os
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from train.search import Evaluate, Search
from train.trainer import NICENESS, SCRAP_OF_A_CPU

METRIC = "fitness"  # Tune wants a name; what is good only the search knows


class Asking(Searcher):
    """A `Search` as Tune asks it."""

    def __init__(self, search: Search, told: Any) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.search, self.told = search, told
        self.waiting: dict[str, dict[str, Any]] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next candidate; None while earlier ones are out."""
        candidate = self.search.ask()
        if candidate is None:
            return None if self.waiting else Searcher.FINISHED
        self.waiting[trial_id] = candidate
        return {"candidate": candidate}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the search, then whoever keeps its state."""
        measured = None if error or result is None else result.get("measured")
        self.search.tell(self.waiting.pop(trial_id), measured)
        self.told()

    def save(self, checkpoint_path: str) -> None:
        """The stage keeps the search's state."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class Trial(tune.Trainable):
    """One evaluation; the process serves many."""

    def setup(self, config: dict[str, Any], evaluate: Evaluate | None = None, threads: int = 1) -> None:
        """Tune's hook."""
        import torch

        os.nice(NICENESS)
        torch.set_num_threads(threads)
        assert evaluate is not None
        self.evaluate, self.candidate = evaluate, config["candidate"]

    def step(self) -> dict[str, Any]:
        """The measurement; one step is the whole trial. What is not finite or fails by itself is a failed candidate."""
        try:
            measured = self.evaluate(self.candidate)
        except ArithmeticError:
            measured = None
        return {"measured": measured, METRIC: 0.0, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another candidate in the same process."""
        self.candidate = new_config["candidate"]
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is short: it is repeated, not resumed."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


def evolver(folder: Path, threads: int = 0) -> Any:
    """An `Evolve` over Tune trials on the running cluster; `folder` is where Tune keeps its notes."""

    def evolve(search: Search, evaluate: Evaluate, told: Any) -> None:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        left = search.budget - search.told
        if left <= 0:
            return
        at_once = min(cores, left)
        per_trial = threads or max(1, len(os.sched_getaffinity(0)) // at_once)
        errors: list[BaseException] = []

        def tell() -> None:
            try:
                told()
            except BaseException as error:  # Tune logs what a searcher raises, and goes on
                errors.append(error)
                raise

        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Trial, evaluate=evaluate, threads=per_trial), {"CPU": SCRAP_OF_A_CPU}
            ),
            tune_config=tune.TuneConfig(
                search_alg=Asking(search, tell), num_samples=left, max_concurrent_trials=at_once, reuse_actors=True,
                metric=METRIC, mode="max",
            ),
            run_config=tune.RunConfig(
                name="trials", storage_path=str(folder), verbose=0, failure_config=tune.FailureConfig(max_failures=2)
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except Exception as error:
            raise (errors[0] if errors else error) from error
        if errors:
            raise errors[0]

    return evolve
