"""What the dialects call: start, look, cancel, and the keeper's reconciliation of runs with their jobs."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster import tracing
from cluster.clock import Clock
from cluster.errors import AlreadyExists, Forbidden, Invalid, NotFound
from cluster.identity.model import SYSTEM, Principal
from cluster.ids import new_id
from cluster.launcher import JobState, Launcher
from cluster.settings import Settings
from cluster.store import Page, Store
from train.bases import is_local
from train.models import Models, refuse_unready
from train.phases import catalogue
from train.phases.phase import run_folder, stage_folder
from train.registry import Registry
from train.reporting import LOG, changed, move
from train.runs import FINAL, Run, RunEvent, RunState, expected, lost
from train.trials import Trial

Phases = Sequence[tuple[str, Mapping[str, Any]]]
SEEDLING = "seedling"
RECENT = 20  # completed runs that an estimate looks back on
SUBMITTED_WITHIN = timedelta(seconds=10)  # a run that was just made is being submitted by whoever made it
ENDED = (JobState.FAILED, JobState.STOPPED, JobState.SUCCEEDED)


class Forge:
    """Training runs. Redis has the truth; the launcher has the processes."""

    def __init__(self, store: Store, launcher: Launcher, settings: Settings, clock: Clock, models: Models) -> None:
        self.store, self.launcher, self.settings, self.clock, self.models = store, launcher, settings, clock, models
        self.registry = Registry(store, settings.home, clock)

    async def start(
        self, who: Principal, phases: Phases, *, model_name: str = "", public: bool = False,
        run_id: str = "", model_id: str = "",
    ) -> Run:  # fmt: skip
        """Validate, record and submit. Raises `Invalid`, `NotBuilt`, `Forbidden`, `NotFound` (a base model).

        `phases` are names with their parameters, in order; a name may be that of a pipeline. The run is recorded before
        it is submitted: what the launcher could not take now, `reconcile` submits later.
        """
        wanted = unfolded(phases)
        if wanted and (bases := wanted[0][1].get("base_models")):
            named = [await self._base(who, name) for name in listed(bases)]
            wanted[0] = (wanted[0][0], wanted[0][1] | {"base_models": named})
        stages = catalogue.stages(wanted)
        if any(is_local(name) for name in stages[0].config["datasets"]) and not who.is_admin:
            raise Forbidden("only admins may name a file or folder as data set", field="datasets")
        if catalogue.entry(stages[0].phase).load().needs_base and not stages[0].config["base_models"]:
            default = await self._base(who, SEEDLING)
            stages = catalogue.stages([(wanted[0][0], wanted[0][1] | {"base_models": [default]}), *wanted[1:]])
        recent = (await self.page(SYSTEM, RunState.COMPLETED, limit=RECENT)).items
        stages = tuple(s.model_copy(update={"expected_seconds": expected(s, recent)}) for s in stages)
        model_id, at = model_id or new_id("model"), self.clock()
        run = Run(
            run_id=run_id or new_id("task"), owner=who.owner, stages=stages, model_id=model_id, public=public,
            model_name=model_name or f"{stages[-1].phase}-{model_id[-6:]}", created_at=at, updated_at=at,
            traceparent=tracing.traceparent(),
        )  # fmt: skip
        await self.store.create(run, changed(run, "created", self.clock))
        await self.registry.expect(run)
        await self._submit(run)
        return run

    async def _base(self, who: Principal, name: str) -> str:
        """A registry model's folder; a local folder only for admins, who may read the machine's disk anyway.

        A name with an owner before it is a hub's; any other is that of a model here. Raises `NotFound`,
        `ModelNotReady`, `TrainingFailed`, `Forbidden`.
        """
        if is_local(name):
            if not who.is_admin:
                raise Forbidden("only admins may name a folder as base model", field="base_models")
            return name
        if "/" in name:
            return name
        model = await self.models.get(who, name)
        refuse_unready(model)
        return model.path

    async def _submit(self, run: Run) -> None:
        command = [sys.executable, "-m", "train.run", run.run_id, "--attempt", str(run.attempt)]
        await self.launcher.submit(run.job_id, command, self.settings.environment())

    async def get(self, who: Principal, run_id: str) -> Run:
        """The run. Raises `NotFound`, also for somebody else's."""
        run = await self.store.find(Run, run_id)
        if run is None or not who.sees(run.owner):
            raise NotFound(f"no training run {run_id}", run_id=run_id)
        return run

    async def page(self, who: Principal, state: str = "any", offset: int = 0, limit: int = 50) -> Page[Run]:
        """The caller's runs, newest first; an admin's page has everybody's."""
        scope = "all" if who.is_admin else who.owner
        return await self.store.page(Run, "created", scope, state, offset=offset, limit=limit)

    async def logs(self, who: Principal, run_id: str, tail: int = 200) -> list[dict[str, Any]]:
        """The last lines of the run's own log, oldest first: each has `at`, `level` and `message`."""
        await self.get(who, run_id)
        return await asyncio.to_thread(read_log, run_folder(self.settings.home, run_id) / LOG, tail)

    async def trials(
        self, who: Principal, run_id: str, state: str = "any", offset: int = 0, limit: int = 50
    ) -> Page[Trial]:
        """The trials of the run's searches in their order: what was tried, and what it measured."""
        await self.get(who, run_id)
        return await self.store.page(Trial, "run", run_id, state, offset=offset, limit=limit, newest_first=False)

    async def curves(self, who: Principal, run_id: str) -> list[dict[str, Any]]:
        """Of each stage that has trained: every step's loss, learning rate and gradient norm, and what was held out."""
        run = await self.get(who, run_id)
        return await asyncio.to_thread(read_curves, self.settings.home, run)

    async def output(self, who: Principal, run_id: str) -> str:
        """What the current attempt's job printed, as far as the launcher still knows."""
        run = await self.get(who, run_id)
        return await self.launcher.log(run.job_id)

    async def resume(self, who: Principal, run_id: str) -> Run:
        """Take a run up again that failed or was cancelled, where it was. Raises `Conflict`, `NotFound`."""
        await self.get(who, run_id)
        run = await move(self.store, run_id, RunEvent.RESUME, self.clock)
        await self.registry.expect_again(run)
        await self._submit(run)
        return run

    async def cancel(self, who: Principal, run_id: str) -> Run:
        """End the run and its job. Raises `Conflict` when it has ended."""
        await self.get(who, run_id)
        run = await move(self.store, run_id, RunEvent.CANCEL, self.clock)
        await self.registry.give_up(run)
        await self.launcher.stop(run.job_id)
        return run

    async def reconcile(self) -> list[Run]:
        """Give every unfinished run whose job is gone another attempt, or end it. Returns the runs that it touched."""
        ids = await self.store.ids(Run, "unfinished")
        touched = []
        for run in await self.store.many(Run, ids):
            state = await self.launcher.state(run.job_id)
            if run.state is RunState.PENDING and state is JobState.UNKNOWN:
                if self.clock() - run.updated_at < SUBMITTED_WITHIN:
                    continue
                await self._submit(run)
                touched.append(run)
            elif state is JobState.UNKNOWN or state in ENDED:
                touched += await self._again(run, state)
        return touched

    async def _again(self, seen: Run, job: JobState) -> list[Run]:
        at = self.clock()

        def step(run: Run) -> Run:
            # The job may have finished the run, or somebody retried it, since it was looked at.
            return lost(run, at, f"its job is {job}") if (run.attempt, run.state) == (seen.attempt, seen.state) else run

        def event(_: Run, run: Run) -> Any:
            return changed(run, "failed" if run.state in FINAL else "retried", self.clock, error=run.error)

        run = await self.store.change(Run, seen.run_id, step, event)
        if run.attempt == seen.attempt and run.state is seen.state:
            return []
        if run.state is RunState.PENDING:
            await self._submit(run)
        elif run.state is RunState.FAILED:
            await self.registry.give_up(run)
        return [run]

    async def ensure_seedling(self, again: bool = False) -> Run | None:
        """Start the seedling's run unless its model is there; the newest of its runs, or None when there is a model.

        Its ids are numbered, so that any number of callers start one run. A failed one is tried anew only with `again`.
        """
        try:
            await self.models.get(SYSTEM, SEEDLING)
            return None
        except NotFound:
            pass
        number = 1
        while (run := await self.store.find(Run, f"task_{SEEDLING}_{number}")) is not None:
            if run.state not in FINAL or (run.state is not RunState.COMPLETED and not again):
                return run
            number += 1
        try:
            return await self.start(
                SYSTEM, [("cognate", catalogue.values(SEEDLING))], model_name=SEEDLING, public=True,
                run_id=f"task_{SEEDLING}_{number}", model_id=f"model_{SEEDLING}_{number}",
            )  # fmt: skip
        except AlreadyExists:
            return await self.store.get(Run, f"task_{SEEDLING}_{number}")


def unfolded(phases: Phases) -> list[tuple[str, dict[str, Any]]]:
    """The phases with pipelines in place of their names.

    A pipeline's parameters go to each of its phases that knows them, over what the pipeline's file says.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for name, parameters in phases:
        if name in catalogue.pipelines():
            found += catalogue.shared(catalogue.pipeline(name), parameters)
        else:
            found.append((name, dict(parameters)))
    return merged_first(found)


def merged_first(phases: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Cognate from several base models begins with evomerge, unless their plain average is wanted."""
    if not phases or phases[0][0] != "cognate":
        return phases
    own = phases[0][1]
    bases, strategy = own.get("base_models") or (), own.get("merge_strategy", "evolutionary")
    if len(bases) < 2 or strategy != "evolutionary":
        return phases
    fields = set(catalogue.entry("evomerge").load().Config.model_fields)
    first = {name: value for name, value in own.items() if name in catalogue.FIRST_ONLY & fields}
    rest = {name: value for name, value in own.items() if name not in catalogue.FIRST_ONLY}
    return [("evomerge", first), ("cognate", rest), *phases[1:]]


def listed(bases: Any) -> list[str]:
    """`base_models` as a request has it. Raises `Invalid`."""
    if not isinstance(bases, list | tuple) or not all(isinstance(name, str) for name in bases):
        raise Invalid("base_models is a list of names", field="base_models")
    return list(bases)


def read_curves(home: Path, run: Run) -> list[dict[str, Any]]:
    """The stages' `curve.json`."""
    found = []
    for number, stage in enumerate(run.stages):
        for path in sorted(stage_folder(home, run, number).glob("*curve.json")):
            found.append({"phase": stage.phase, "stage": number, "name": path.stem} | json.loads(path.read_text()))
    return found


def read_log(path: Path, tail: int) -> list[dict[str, Any]]:
    """The last `tail` whole lines; a line that a kill cut off is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines()[-tail:]:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries
