"""The commands of `village`."""

import argparse
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import supervisor
from cluster.cli import audit, logs, torture, training, trust, users, webhooks, worker
from cluster.cli import status as status_table
from cluster.cli import tour as guided
from cluster.cli.agent import TAGS, DemoAgent
from cluster.cli.client import Client, Refused
from cluster.processes import AlreadyUp
from cluster.settings import Settings
from cluster.supervisor import CannotStart

Told = argparse.Namespace
console = Console(highlight=False)


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


def up(settings: Settings, _: Told) -> int:
    """Run the village here until Ctrl-C."""
    try:
        return supervisor.Village(settings, say).up()
    except AlreadyUp as error:
        say(str(error))
        return 0
    except CannotStart as error:
        print(f"village: {error}", file=sys.stderr)
        return 1


def down(settings: Settings, _: Told) -> int:
    """End the village of this home."""
    return supervisor.end(settings, say)


def status(settings: Settings, _: Told) -> int:
    """Show what runs where."""
    return status_table.show(settings, console)


def token(settings: Settings, told: Told) -> int:
    """Print an access token of the admin, or of another user, whose password is read as in `user add`."""
    client = Client(settings)
    if told.username:
        say(client.sign_in(told.username, users.read_password())["access_token"])
    else:
        say(client.token)
    return 0


def chat(settings: Settings, told: Told) -> int:
    """Talk with a model; an empty line or Ctrl-D ends it."""
    client = Client(settings)
    conversation = None
    messages = iter([told.message]) if told.message else iter(ask_person, "")
    try:
        for message in messages:
            body = {"model_id": told.model or settings.chat_model, "message": message, "stream": True,
                    "parameters": {"temperature": told.temperature, "max_tokens": told.max_tokens}}  # fmt: skip
            if conversation:
                body["conversation_id"] = conversation
            last = guided.print_reply(client.events("/v1/chat", body))
            conversation = last.get("conversation_id", conversation)
    except (EOFError, KeyboardInterrupt):
        say("")
    return 0


def ask_person() -> str:
    """One line from whoever sits there."""
    return input("you> ").strip()


def ask(settings: Settings, told: Told) -> int:
    """Ask a question of the village's knowledge; `--add` adds a file first."""
    client = Client(settings)
    if told.add:
        file = Path(told.add)
        added = client.post("/v1/knowledge", {"content": file.read_text(), "metadata": {"title": file.name}})
        say(f"added {added['document_id']} in {added['chunks_created']} chunks")
    guided.print_answer(client.post("/v1/query", {"query": told.question, "include_sources": True}), say)
    return 0


def agent_demo(settings: Settings, told: Told) -> int:
    """Run a small real agent that registers, does tasks and reports, until Ctrl-C."""

    def report(task: dict[str, Any], answer: dict[str, Any]) -> None:
        say(f"{task['task_id']} {task['task_type']}: {json.dumps(answer)[:200]}")

    agent = DemoAgent(told.name, report)
    agent.start()
    made = Client(settings).post("/ains/agents", agent.registration())
    say(f"registered {made['agent_id']} at {agent.endpoint} for {', '.join(TAGS)}; trust {made['trust_score']}")
    try:
        threading.Event().wait(told.seconds)
    except KeyboardInterrupt:
        say("")
    agent.stop()
    return 0


def tour(settings: Settings, told: Told) -> int:
    """Do one real thing with every part of the running village and say what happened."""
    return guided.tour(Client(settings), console, told.steps)


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    top = argparse.ArgumentParser(prog="village", description="One village: agents, training, chat and knowledge.")
    verbs = top.add_subparsers(required=True, metavar="command")

    def verb(name: str, action: Callable[[Settings, Told], int], of: Any = verbs) -> argparse.ArgumentParser:
        made = of.add_parser(name, help=(action.__doc__ or "").strip(), description=action.__doc__)
        made.set_defaults(action=action)
        return made

    verb("up", up)
    verb("down", down)
    verb("status", status)
    logs.grammar(verbs, verb)
    users.grammar(verbs, verb)
    audit.grammar(verbs, verb)
    trust.grammar(verbs, verb)
    webhooks.grammar(verbs, verb)
    worker.grammar(verb)
    torture.grammar(verb)
    verb("token", token).add_argument("username", nargs="?")
    training.grammar(verbs, verb)
    talking = verb("chat", chat)
    talking.add_argument("message", nargs="?")
    talking.add_argument("--model", default="")
    talking.add_argument("--temperature", type=float, default=0.3)
    talking.add_argument("--max-tokens", type=int, default=120)
    asking = verb("ask", ask)
    asking.add_argument("question")
    asking.add_argument("--add", metavar="FILE")
    agents = verbs.add_parser("agent", help="Agents.").add_subparsers(required=True, metavar="command")
    demo = verb("demo", agent_demo, agents)
    demo.add_argument("--name", default="")
    demo.add_argument("--seconds", type=float)
    verb("tour", tour).add_argument("--steps", type=int, default=60, help="training steps of the tour's own model")
    return top


def main() -> None:
    """Parse and run; an error of the village is one line and exit status 1."""
    told = parser().parse_args()
    try:
        sys.exit(told.action(Settings(), told))
    except Refused as error:
        print(f"village: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
