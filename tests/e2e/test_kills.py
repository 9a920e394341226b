"""kill -9 of each part in mid-work: nothing acknowledged is missing, nothing counts twice, and it is ready again."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Running

from cluster.cli.agent import DemoAgent

READY_AGAIN_SECONDS = 30.0
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")


class Slow(DemoAgent):
    """An agent whose work takes long enough to be interrupted; counts what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Counter[str] = Counter()
        self.pause = threading.Event()

    def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        self.given[task["task_id"]] += 1
        self.pause.wait(0.05)
        return super().execute(task)


@pytest.fixture
def agent(village: Running) -> Iterator[Slow]:
    slow = Slow()
    slow.start()
    registration = slow.registration()
    village.post("/ains/agents", registration)
    yield slow
    slow.stop()


def submit(village: Running, agent: Slow, count: int) -> list[str]:
    """Tasks that only this agent's tag fits; only what was acknowledged is returned."""
    common = {"client_id": agent.agent_id, "task_type": "sha256", "capability_required": agent.only_tag}
    tasks = [common | {"input_data": {"text": str(n)}} for n in range(count)]
    return village.post("/ains/tasks/batch", {"tasks": tasks})["task_ids"]


def ready_again(village: Running) -> None:
    begun = time.monotonic()
    village.until(lambda: all(village.get("/readiness")["checks"].values()), READY_AGAIN_SECONDS, "ready again")
    assert time.monotonic() - begun < READY_AGAIN_SECONDS


def everything_done_once(village: Running, agent: Slow, ids: list[str]) -> None:
    def tasks() -> list[dict[str, Any]]:
        return village.get("/ains/tasks", client_id=agent.agent_id, limit=100)["results"]

    village.until(lambda: {task["task_id"] for task in tasks() if task["status"] in ENDED} == set(ids), 60, "all done")
    assert {task["status"] for task in tasks()} == {"COMPLETED"}
    assert all(task["retry_count"] == 0 for task in tasks())  # an interrupted delivery is no failure
    trust = f"/ains/agents/{agent.agent_id}/trust"
    village.until(lambda: village.get(trust)["total_tasks_completed"] >= len(ids), 20, "the ledger caught up")
    counted = village.get(trust)
    assert counted["total_tasks_completed"] == len(ids) and counted["total_tasks_failed"] == 0
    records = village.get(f"{trust}/history", limit=100)
    assert records["total_records"] == len(ids)
    assert len({record["task_id"] for record in records["records"]}) == min(len(ids), 100)


@pytest.mark.parametrize(
    "part", ["RouterKeeper", "TrustKeeper", "StreamKeeper", "WorkersKeeper", "redis-server", "haproxy"]
)
def test_no_task_is_lost_or_done_twice_when_a_part_is_killed(village: Running, agent: Slow, part: str) -> None:
    ids = submit(village, agent, 60)
    village.until(lambda: len(agent.given) >= 5, 20, "the agent at work")
    village.kill(part)
    ready_again(village)
    everything_done_once(village, agent, ids)


def test_a_killed_worker_of_the_village_loses_nothing(village: Running) -> None:
    common = {"client_id": "pool", "task_type": "echo", "capability_required": "echo:v1"}
    ids: list[str] = []
    for batch in range(8):
        tasks = [common | {"input_data": {"n": 100 * batch + n}} for n in range(100)]
        ids += village.post("/ains/tasks/batch", {"tasks": tasks})["task_ids"]
        if batch in (2, 5):
            village.until(lambda: village.pids("WorkerKeeper"), 20, "a worker there to be killed")
            village.kill("WorkerKeeper")

    def total(status: str) -> int:
        return village.get("/ains/tasks", client_id="pool", status=status, limit=1)["pagination"]["total"]

    village.until(lambda: total("COMPLETED") == len(ids), 60, "all done")
    last = village.get(f"/ains/tasks/{ids[-1]}")
    assert last["result_data"] == {"n": 799} and last["assigned_agent_id"] == "village-workers"
    village.until(lambda: village.get("/ains/agents/village-workers")["current_load"] == 0, 20, "nothing held")


def test_a_killed_gateway_comes_back_and_tasks_go_on(village: Running, agent: Slow) -> None:
    ids = submit(village, agent, 40)
    before = village.pids("GatewayReplica")
    village.kill("GatewayReplica")
    village.until(lambda: set(village.pids("GatewayReplica")) - set(before), READY_AGAIN_SECONDS, "a new gateway")
    ready_again(village)
    everything_done_once(village, agent, ids)


def test_a_killed_chat_replica_answers_again(village: Running) -> None:
    body = {"model_id": "seedling", "message": "Hello", "parameters": {"temperature": 0.0, "max_tokens": 8}}
    village.until(lambda: village.post("/v1/chat", body), 400, "the seedling answering")
    first = village.post("/v1/chat", body)
    village.kill("ChatReplica")
    again = village.until(lambda: village.post("/v1/chat", body), 90, "chat again")
    assert again["response"] == first["response"]


def test_a_killed_training_worker_resumes_from_its_checkpoint(village: Running) -> None:
    parameters = {"checkpoint_steps": 20}  # else a fast machine is at step 40 before ten seconds, the first checkpoint
    body = {"phase_name": "cognate", "parameters": parameters, "max_steps": 200, "batch_size": 4}
    run = village.post("/v1/models/train", body)["task_id"]
    status = f"/v1/models/train/{run}/status"
    village.until(lambda: village.get(status)["metrics"].get("current_step", 0) >= 40, 120, "some steps done")
    village.kill("RayTrainWorker")
    ended = village.until(
        lambda: (s := village.get(status))["status"] in ("completed", "failed") and s, 240, "the run ended"
    )
    assert ended["status"] == "completed"
    assert ended["metrics"]["current_step"] == 200
    log = village.get(f"/v1/models/train/{run}/logs")
    assert "resume" in str(log).lower()


def test_the_ledger_still_proves_itself_after_all_that(village: Running) -> None:
    for agent in village.get("/ains/agents", limit=100)["agents"]:
        history = village.get(f"/ains/agents/{agent['agent_id']}/trust/history", limit=100)["records"]
        for newer, older in itertools.pairwise(history):
            assert newer["previous_hash"] == older["hash"]


def test_the_audit_log_holds_and_names_who_came(village: Running) -> None:
    told = village.run("audit", "verify")
    assert told.returncode == 0 and "hold" in told.stdout, told.stdout + told.stderr
    entries = village.get("/ains/audit-logs", event_type="authentication", limit=5)
    assert entries["total"] >= 1 and entries["logs"][0]["ip_address"] == "127.0.0.1"


def test_down_leaves_no_process_behind_and_up_finds_everything_again(village: Running) -> None:
    models = {model["model_id"] for model in village.get("/v1/models", status="completed")["models"]}
    assert village.stop() == 0
    assert village.processes() == []
    village.start()
    assert {model["model_id"] for model in village.get("/v1/models", status="completed")["models"]} == models
