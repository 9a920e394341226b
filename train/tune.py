"""The wiring to Ray Tune: a search's candidates evaluated side by side, or a phase tried with several parameters."""

import os
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from cluster import logs
from cluster.clock import utc_now
from train.causes import Cause, Failed, cause_of
from train.hyperparameters import Dimension, SearchConfig, sampled
from train.phases import catalogue
from train.phases.phase import TrainedConfig, Work, run_folder
from train.reporting import RunLog, current
from train.search import Evaluate, Search
from train.trials import Children, TrialState

FLAT = "measured/"
METRIC = "fitness"  # Tune wants a name; what is good only the search knows
NICENESS = 5
SCRAP_OF_A_CPU = 0.01
RUNGS = 8  # held-out measurements of a trial, where its configuration asks for none


class Asking(Searcher):
    """A `Search` as Tune asks it."""

    def __init__(self, search: Search, told: Any, children: Children) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.search, self.told, self.children = search, told, children
        self.waiting: dict[str, tuple[int, dict[str, Any]]] = {}
        self.asked = search.told
        self.raised: BaseException | None = None

    def suggest(self, trial_id: str) -> Any:
        """The next candidate; None while earlier ones are out."""
        candidate = None if self.raised else self.search.ask()
        if candidate is None:
            return None if self.waiting else Searcher.FINISHED
        self.waiting[trial_id] = (self.asked, candidate)
        self.children.told(self.asked, candidate, TrialState.RUNNING)
        self.asked += 1
        return {"candidate": candidate}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the search, then whoever keeps its state."""
        # Tune hands a searcher its results flat: `measured/loss`.
        flat = {} if error or result is None else result
        measured = {k.removeprefix(FLAT): v for k, v in flat.items() if k.startswith(FLAT)} or None
        number, candidate = self.waiting.pop(trial_id)
        state = TrialState.FAILED if measured is None else TrialState.COMPLETED
        self.search.tell(candidate, measured)
        self.children.told(number, candidate, state, metrics=measured)
        try:
            self.told()
        except BaseException as raised:  # Tune would log it and go on: the search ends, and it is raised there
            self.raised = raised

    def save(self, checkpoint_path: str) -> None:
        """The stage keeps the search's state."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class Evaluation(tune.Trainable):
    """One candidate evaluated; the process serves many."""

    def setup(self, config: dict[str, Any], evaluate: Evaluate | None = None, threads: int = 1) -> None:
        """Tune's hook."""
        import torch

        os.nice(NICENESS)
        torch.set_num_threads(threads)
        assert evaluate is not None
        self.evaluate, self.candidate = evaluate, config["candidate"]

    def step(self) -> dict[str, Any]:
        """The measurement; one step is the whole trial. What is not finite is a failed candidate."""
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


def places() -> int:
    """How many trials the cluster can work on at once."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0) or resources.get("CPU", 1)))


def per_trial() -> dict[str, float]:
    """What a trial reserves: a GPU where there is one, else a scrap of a CPU, since replicas hold them all."""
    return {"GPU": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {"CPU": SCRAP_OF_A_CPU}


def per_place(at_once: int) -> dict[str, float]:
    """What a candidate reserves so that `at_once` fit and no more.

    One that waits for room is what makes Tune keep the process of one that has ended; else it starts one for each.
    """
    free = ray.available_resources().get("CPU", 0.0)
    scarce = ray.cluster_resources().get("GPU", 0) >= 1 or free <= SCRAP_OF_A_CPU * at_once
    return per_trial() if scarce else {"CPU": round(0.95 * free / at_once, 4)}


def evolver(folder: Path, children: Children) -> Any:
    """An `Evolve` over Tune trials on the running cluster; `folder` is where Tune keeps its notes."""

    def evolve(search: Search, evaluate: Evaluate, told: Any) -> None:
        left = search.budget - search.told
        if left <= 0:
            return
        at_once = min(places(), left)
        threads = max(1, len(os.sched_getaffinity(0)) // at_once)
        asking = Asking(search, told, children)
        trainable = tune.with_parameters(Evaluation, evaluate=evaluate, threads=threads)
        tune.Tuner(
            tune.with_resources(trainable, per_place(at_once)),
            tune_config=tune.TuneConfig(
                search_alg=asking, num_samples=left, max_concurrent_trials=at_once + 1, reuse_actors=True,
                metric=METRIC, mode="max",
            ),
            run_config=tune.RunConfig(
                name="trials", storage_path=str(folder), verbose=0, failure_config=tune.FailureConfig(max_failures=2)
            ),
        ).fit()  # fmt: skip
        if asking.raised is not None:
            raise asking.raised

    return evolve


def attempt(point: dict[str, Any], given: dict[str, Any]) -> None:
    """One trial of a phase with other parameters: in its own folder, resumed where a crash left it."""
    import torch

    work: Work = given["work"]
    os.nice(NICENESS)
    logs.configure("training")
    torch.set_num_threads(given["threads"])
    context = tune.get_context()
    name = f"trials/{context.get_trial_id()}"
    phase = catalogue.phase(given["phase"], sampled(given["config"], point))
    log = RunLog(run_folder(work.home, work.run.run_id), utc_now)

    def note(message: str, **fields: Any) -> None:
        log.note(message, trial=context.get_trial_id(), **fields)

    measured_at = -1

    def report(progress: Any) -> None:
        nonlocal measured_at
        if progress.held_out and progress.held_out[-1].step > measured_at:
            measured_at = progress.held_out[-1].step
            tune.report({"step": max(1, progress.step), **current(progress, since=0)})

    note("trial", point=point)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = Work(**(vars(work) | {"inside": name, "device": device, "report": report, "note": note}))
    try:
        metrics = phase.run(own)
    except Exception as error:
        note(str(error), level="error")
        raise
    tune.report({"step": phase.total_steps + 1, "folder": name, **metrics})


class Telling(tune.Callback):
    """Keeps the trials' records as Tune tells of them."""

    def __init__(self, children: Children, told: Any) -> None:
        self.children, self.report = children, told
        self.numbers: dict[str, int] = {}

    def _tell(self, trial: Any, state: TrialState) -> None:
        number = self.numbers.setdefault(trial.trial_id, len(self.numbers))
        result = trial.last_result or {}
        metrics = {k: float(v) for k, v in result.items() if isinstance(v, int | float) and k in TOLD}
        self.children.told(number, trial.config, state, int(result.get("step", 0)), metrics)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook."""
        self._tell(trial, TrialState.RUNNING)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        """Tune's hook."""
        self._tell(trial, TrialState.RUNNING)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook."""
        whole = "folder" in (trial.last_result or {})
        self._tell(trial, TrialState.COMPLETED if whole else TrialState.STOPPED)
        self.report(sum(each.is_finished() for each in trials))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune's hook."""
        self._tell(trial, TrialState.FAILED)


TOLD = (
    "loss", "held_out_loss", "accuracy", "learning_rate", "tokens_per_second", "perplexity", "training_seconds"
)  # fmt: skip


def best(
    phase_name: str, config: dict[str, Any], search: SearchConfig, work: Work, children: Children, told: Any
) -> Any:
    """(folder, point, metrics) of the best of `search.trials` trials of the phase. `told(done)` after each.

    Raises `Failed` when none came to an end.
    """
    at_once = min(search.at_once or places(), search.trials)
    kind = catalogue.entry(phase_name).load()
    if issubclass(kind.Config, TrainedConfig) and not config.get("evaluate_steps"):
        config = config | {"evaluate_steps": max(1, config["max_steps"] // RUNGS)}
    steps = kind(kind.Config.model_validate(config | {"search": None})).total_steps
    bare = Work(**(vars(work) | {"report": None, "note": None, "wrap": unwrapped, "evolve": None, "device": None}))
    given = {
        "work": bare, "phase": phase_name, "config": config,
        "threads": config["threads"] or max(1, len(os.sched_getaffinity(0)) // at_once),
    }  # fmt: skip
    trainable = tune.with_resources(tune.with_parameters(attempt, given=given), per_trial())
    folder = work.folder / "tune"
    if tune.Tuner.can_restore(str(folder / "trials")):
        tuner = tune.Tuner.restore(str(folder / "trials"), trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=None if search.sampler == "tpe" else {n: drawn(d) for n, d in search.space.items()},
            tune_config=tune.TuneConfig(
                search_alg=sampler(search, config["seed"], at_once), scheduler=scheduler(search, steps),
                num_samples=search.trials, metric=search.metric, mode=search.mode, max_concurrent_trials=None,
            ),
            run_config=tune.RunConfig(
                name="trials", storage_path=str(folder), verbose=0, callbacks=[Telling(children, told)],
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )  # fmt: skip
    results = tuner.fit()
    whole = [(r.config or {}, m) for r in results if (m := r.metrics or {}) and "folder" in m and search.metric in m]
    if not whole:
        errors = [error for error in results.errors if error]
        cause = next((c for error in errors if (c := cause_of(error))), Cause.OTHER)
        raise Failed(f"none of {search.trials} trials came to an end: {errors[0] if errors else 'no result'}", cause)
    point, metrics = (min if search.mode == "min" else max)(whole, key=lambda pair: pair[1][search.metric])
    return metrics["folder"], point, metrics


def unwrapped(module: Any) -> Any:
    """A trial is one process."""
    return module


def sampler(search: SearchConfig, seed: int, at_once: int) -> Any:
    """Who proposes the points."""
    if search.sampler == "random":
        return BasicVariantGenerator(max_concurrent=at_once, random_state=seed)
    space = {name: drawn(dimension) for name, dimension in search.space.items()}
    algorithm = OptunaSearch(space, metric=search.metric, mode=search.mode, seed=seed)
    return ConcurrencyLimiter(algorithm, max_concurrent=at_once)


def scheduler(search: SearchConfig, steps: int) -> Any:
    """Who stops poor trials."""
    if search.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step", max_t=steps + 1, grace_period=max(1, int(search.grace * steps)),
        reduction_factor=search.reduction,
    )  # fmt: skip


def drawn(dimension: Dimension) -> Any:
    """The dimension as Tune has it."""
    if dimension.choices:
        return tune.choice(list(dimension.choices))
    low, high = dimension.low, dimension.high
    assert low is not None and high is not None
    if dimension.whole:
        return (tune.lograndint if dimension.log else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if dimension.log else tune.uniform)(low, high)
