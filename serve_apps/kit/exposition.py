"""What `/metrics` answers: the sum over all gateway processes, and what is true of the village as a whole.

A scrape reaches any replica by chance; without the sum its counters would jump between theirs. What a process said
last is kept in a file beside the sockets, so that one that has died or is slow takes nothing away from the counters: a
sum that falls looks to Prometheus like a restart of them all, and the whole sum is counted again.
"""

import asyncio
import fcntl
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serve_apps.kit.metrics import Metrics

SIBLING_SECONDS = 1.0
GONE_SECONDS = 3600.0  # a process that was silent for so long is dead: the dead are kept as one sum
PROCESS = "x-village-process"
DEAD = "dead"
LASTING = frozenset({"counter", "histogram"})


async def exposition(own: Metrics, sockets: Iterable[Path], memory: Path, village: Iterable[Metric] = ()) -> str:
    """This process, the others that answer on these Unix sockets, and the families of the whole `village`."""
    texts = dict(await asyncio.gather(*(_ask(path) for path in sockets)))
    texts.pop("", None)
    return await asyncio.to_thread(_summed, own, texts, memory, list(village))  # tens of milliseconds


async def _ask(socket: Path) -> tuple[str, str]:
    try:
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), timeout=SIBLING_SECONDS
        ) as client:
            answer = await client.get("http://gateway/metrics", params={"own": "true"})
            return answer.headers.get(PROCESS, ""), answer.text
    except httpx.HTTPError:  # a socket whose process is gone
        return "", ""


def _summed(own: Metrics, others: Mapping[str, str], memory: Path, village: list[Metric]) -> str:
    texts = {**others, own.process: own.text()}
    registry = CollectorRegistry()
    registry.register(Sum(texts.values(), remember(memory, texts, time.time())))
    registry.register(Given(village))
    return generate_latest(registry).decode()


def remember(file: Path, texts: Mapping[str, str], now: float) -> list[str]:
    """Keep what each process says now; what those said last that say nothing now."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        try:
            known: dict[str, dict[str, Any]] = json.loads(handle.read() or "{}")
        except ValueError:  # whoever wrote it was killed meanwhile
            known = {}
        silent = {process: said for process, said in known.items() if process not in texts}
        dead = [process for process, said in silent.items() if now - said["at"] > GONE_SECONDS]
        if len(dead) > 1:
            one = Sum((), [silent.pop(process)["text"] for process in dead])
            silent[DEAD] = {"at": 0.0, "text": _text(one)}
        said = {process: {"at": now, "text": text} for process, text in texts.items()}
        handle.truncate(0)
        handle.write(json.dumps(silent | said))
    return [said["text"] for said in silent.values()]


def _text(collector: Collector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


class Sum(Collector):
    """Families of several processes, sample by sample; of those that are `gone` only what counts up."""

    def __init__(self, texts: Iterable[str], gone: Iterable[str]) -> None:
        self.texts, self.gone = list(texts), list(gone)

    def collect(self) -> Iterator[Metric]:
        """See Prometheus."""
        families: dict[str, Metric] = {}
        sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = defaultdict(lambda: defaultdict(float))
        for here, text in [*((True, text) for text in self.texts), *((False, text) for text in self.gone)]:
            for family in text_string_to_metric_families(text):
                if not here and family.type not in LASTING:
                    continue
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    sums[family.name][(sample.name, tuple(sample.labels.items()))] += sample.value
        for name, family in families.items():
            for (sample, labels), value in sums[name].items():
                family.add_sample(sample, dict(labels), value)
            yield family


class Given(Collector):
    """Families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        """See Prometheus."""
        yield from self.families
