"""A training run in the trace of the request that started it, though it runs in a process of its own."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from otlp_receiver import collecting
from test_train_service import ANNA, Village

from cluster import tracing
from cluster.events.model import START
from cluster.store import Store
from train.runs import RunState

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_a_runs_job_is_a_span_of_the_request_that_started_it_and_so_are_its_events(store: Store, tmp_path: Path):
    village = Village(store, tmp_path, "")
    asked: list[Sequence[str]] = []

    async def submit(job_id: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        asked.append(command)

    village.launcher.submit = submit
    with collecting() as collector:
        settings = village.settings.model_copy(update={"otlp_endpoint": collector.url})
        tracing.configure(settings, "test")
        with tracing.span("POST /v1/models/train", f"00-{TRACE}-b7ad6b7169203331-01"):
            header = tracing.traceparent()
            run = await village.forge.start(ANNA, [("cognate", {"max_steps": 2})])
        tracing.close()
        assert run.traceparent == header
        village.write_model(run)  # as after a kill between the last step and the end: nothing is left to train
        job = await asyncio.create_subprocess_exec(*asked[0], env={**os.environ, **settings.environment()})
        assert await asyncio.wait_for(job.wait(), 60) == 0
    assert (await village.forge.get(ANNA, run.run_id)).state is RunState.COMPLETED
    [request], [work] = collector.named("POST /v1/models/train"), collector.named("training.run")
    assert (work.trace_id, work.parent_id, work.service) == (TRACE, request.span_id, "village-training")
    assert work.attributes["run_id"] == run.run_id
    events = {event.kind: event for event in await store.events(START)}
    assert events["training.completed"].origin.traceparent.startswith(f"00-{TRACE}-{work.span_id}")
