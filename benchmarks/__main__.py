"""`make bench`: every benchmark, each beside its peer, on this machine. Takes about an hour; results in results/.

Retrieval needs judged collections, which the project does not ship: `python -m benchmarks.retrieval FOLDER`.
"""

import subprocess
import sys
import threading

from benchmarks.gateway import api_key
from benchmarks.village import VILLAGE
from cluster import supervisor
from cluster.cli.client import Client, Refused
from cluster.settings import Settings


def run(*arguments: str) -> None:
    """One of them; a failure is said and does not keep the others from running."""
    print(f"\n== {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", *arguments], check=False).returncode
    if code:
        print(f"{arguments[0]} ended with status {code}", flush=True)


def wait_for_chat(settings: Settings) -> str:
    """The seedling's folder, once it answers."""
    pause = threading.Event()
    while not supervisor.readiness(settings).get("ready"):
        pause.wait(0.5)
    client = Client(settings)
    while True:
        try:
            client.post("/v1/chat", {"model_id": "seedling", "message": "Hello", "parameters": {"max_tokens": 1}})
            model = client.get("/v1/models/seedling")["model_id"]
            return str(settings.home / "models" / model)
        except Refused:
            pause.wait(2)


def main() -> None:
    """In order: what needs a village that is up, then what needs the machine alone."""
    settings = Settings()
    up = subprocess.Popen([VILLAGE, "up"], stdout=subprocess.DEVNULL)
    try:
        model = wait_for_chat(settings)
        run("benchmarks.gateway")
        run("benchmarks.task_door")
        door = ("--url", settings.url, "--key", api_key(settings), "--peers", "door")
        run("benchmarks.chat", "--model", model, *door)
    finally:
        up.terminate()
        up.wait(60)
    run("benchmarks.chat", "--model", model)
    run("benchmarks.tasks")
    run("benchmarks.webhooks")
    run("benchmarks.websockets")
    run("benchmarks.forge")
    run("benchmarks.merging")
    run("benchmarks.village")


if __name__ == "__main__":
    main()
