"""`village tour`: one real thing with every part, and what happened. Every figure is measured as it is printed."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.cli.agent import DemoAgent
from cluster.cli.client import Away, Client, Refused

TASKS = 24
NOTE = """# The Lantern Ferry
The Lantern Ferry crosses the Grey Strait between Port Amaro and the island of Selk. It leaves Port Amaro at seven in
the evening and needs ninety minutes. Captain Ines Duarte has steered it since 2011. The ferry carries forty passengers
and burns no fuel: a cable on the sea bed pulls it across.
"""
QUESTION = "How many passengers does the ferry carry?"
ENDED = ("completed", "failed", "cancelled")


def bar(console: Console) -> Progress:
    """The bar of something that takes a while."""
    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def watch_training(client: Client, run_id: str, console: Console) -> dict[str, Any]:
    """Follow a run to its end; its last status."""
    pause = threading.Event()
    with bar(console) as progress:
        shown = progress.add_task("training", total=1.0, said="")
        while True:
            try:
                state = client.get(f"/v1/models/train/{run_id}/status")
            except Away:
                pause.wait(2)  # the run goes on whoever watches it
                continue
            loss = state["metrics"].get("loss")
            said = f"{state['current_phase']}, step {state['metrics'].get('current_step', 0)}"
            said += f", loss {loss:.3f}" if loss else ""
            progress.update(shown, completed=state["progress"]["overall_progress"], said=said)
            if state["status"] in ENDED:
                return state
            pause.wait(0.5)


def print_reply(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Print a streamed reply as it comes; the last event, which carries usage and metadata."""
    last: dict[str, Any] = {}
    for last in events:
        if text := last.get("delta") or last.get("token") or "":
            print(text, end="", flush=True)
    print(flush=True)
    return last


def print_answer(answer: dict[str, Any], say: Callable[[str], None]) -> None:
    """An answer with its sources."""
    say(f"{answer['answer']}  (confidence {answer['confidence']:.2f})")
    for source in answer["sources"]:
        say(f"  [{source['relevance_score']:.2f}] {source['title']} ({source['document_id']})")


class Tour:
    """The steps, in the order of the README."""

    def __init__(self, client: Client, console: Console, steps: int) -> None:
        self.client, self.console, self.steps = client, console, steps
        self.trained = ""

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, soft_wrap=True)

    def ready(self) -> None:
        """Everything is there."""
        checks = self.client.http.get("/readiness").json()["checks"]
        self.say("  ready: " + ", ".join(name for name, good in checks.items() if good))

    def agents(self) -> None:
        """Tasks go to an agent of our own, and its trust moves."""
        agent = DemoAgent()
        agent.start()
        made = self.client.post("/ains/agents", agent.registration())
        self.say(f"  agent {made['agent_id']} registered with a signed key; trust {made['trust_score']:.3f}")
        texts = [{"text": f"the ferry and the {n} lanterns"} for n in range(TASKS)]
        tasks = [
            {"client_id": "tour", "task_type": "word_count", "capability_required": agent.only_tag, "input_data": text,
             "routing_strategy": "trust_weighted"}
            for text in texts
        ]  # fmt: skip
        begun = time.perf_counter()
        ids = self.client.post("/ains/tasks/batch", {"tasks": tasks})["task_ids"]
        done = [self._wait_for(task_id) for task_id in ids]
        seconds = time.perf_counter() - begun
        self.say(
            f"  {len(done)} tasks routed, done and stored in {seconds:.2f} s; the last says {done[-1]['result_data']}"
        )
        after = self.client.post(
            "/ains/tasks",
            {"client_id": "tour", "task_type": "factorise", "capability_required": agent.only_tag,
             "input_data": {"number": 1001}, "depends_on": [ids[-1]]},
        )  # fmt: skip
        self.say(f"  a task behind another one: {self._wait_for(after['task_id'])['result_data']}")
        trust = self._until(
            lambda: self.client.get(f"/ains/agents/{agent.agent_id}/trust"),
            lambda found: found["total_tasks_completed"] == len(ids) + 1,
            10,
        )
        self.say(f"  trust is now {trust['trust_score']:.3f} ({trust['trust_level']}, {trust['trust_trend']})")
        agent.stop()

    def _wait_for(self, task_id: str, seconds: float = 60) -> dict[str, Any]:
        return self._until(
            lambda: self.client.get(f"/ains/tasks/{task_id}"), lambda t: t["status"] in ("COMPLETED", "FAILED"), seconds
        )

    def _until(self, look: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool], seconds: float) -> Any:
        pause, end = threading.Event(), time.monotonic() + seconds
        while not good(found := look()):
            if time.monotonic() > end:
                raise Refused(f"not within {seconds:.0f} s: {found}")
            pause.wait(0.02)
        return found

    def knowledge(self) -> None:
        """A question is answered from a document that we add."""
        body = {"content": NOTE, "metadata": {"title": "The Lantern Ferry", "document_type": "note"}}
        added = self.client.post("/v1/knowledge", body)
        self.say(
            f"  added {added['document_id']}: {added['chunks_created']} chunks, in {added['processing_time_ms']} ms"
        )
        self.say(f"  {QUESTION}")
        answer = self.client.post("/v1/query", {"query": QUESTION, "max_results": 3, "include_sources": True})
        print_answer(answer, lambda text: self.say(f"  {text}"))

    def training(self) -> None:
        """A model is trained as a Ray job."""
        body = {
            "phase_name": "cognate",
            "parameters": {},
            "real_training": True,
            "max_steps": self.steps,
            "batch_size": 2,
        }
        run = self.client.post("/v1/models/train", body)
        ended = watch_training(self.client, run["task_id"], self.console)
        if ended["status"] != "completed":
            raise Refused(f"the training ended as {ended['status']}: {ended}")
        model = self.client.get(f"/v1/models/{ended['model_id']}")
        self.trained = model["model_id"]
        found = model["metrics"]
        self.say(
            f"  {self.steps} steps ({found['tokens']:.0f} tokens, {found['tokens_per_second']:.0f} a second) made "
            f"{self.trained}: held-out loss {found['held_out_loss_before']:.2f} -> {found['held_out_loss']:.2f}, "
            f"{found['parameters']} parameters, {found['model_size']}"
        )

    def chat(self) -> None:
        """The seedling answers through vLLM; while it is in training, its progress is shown."""
        body = {"model_id": "seedling", "message": "What is the capital of France?", "stream": True,
                "parameters": {"temperature": 0.0, "max_tokens": 40}}  # fmt: skip
        self._wait_for_seedling()
        self.say(f"  you> {body['message']}")
        begun, first, text, last = time.perf_counter(), 0.0, "", {}
        for last in self.client.events("/v1/chat", body):
            if piece := last.get("delta") or "":
                first = first or time.perf_counter() - begun
                text += piece
        seconds = time.perf_counter() - begun
        self.say(f"  seedling> {text.strip()}")
        usage, metadata = last["usage"], last["metadata"]
        self.say(
            f"  {usage['completion_tokens']} tokens in {seconds:.2f} s, the first after {first * 1000:.0f} ms; "
            f"confidence {metadata['confidence_score']:.2f}"
        )

    def _wait_for_seedling(self) -> None:
        with bar(self.console) as progress:
            shown = None
            pause = threading.Event()
            while True:
                try:
                    self.client.post(
                        "/v1/chat", {"model_id": "seedling", "message": "Hello", "parameters": {"max_tokens": 1}}
                    )
                    return
                except Refused as error:
                    if not str(error).startswith("503"):
                        raise
                    shown = shown if shown is not None else progress.add_task("the seedling is on its way", said="")
                    progress.update(shown, said=str(error)[4:100])
                    pause.wait(1.0)


def tour(client: Client, console: Console, steps: int) -> int:
    """Every step; stops at the first that fails."""
    walk = Tour(client, console, steps)
    for number, (title, step) in enumerate(
        (
            ("The village is up", walk.ready), ("A task is routed to an agent, and its trust moves", walk.agents),
            ("A question is answered from a document", walk.knowledge), ("A model is trained", walk.training),
            ("A model is chatted with", walk.chat),
        ),
        start=1,
    ):  # fmt: skip
        begun = time.perf_counter()
        walk.say(f"[bold]{number}. {title}[/bold]")
        step()
        walk.say(f"  ({time.perf_counter() - begun:.1f} s)")
    return 0
