"""Data sets of one's own through a real Ray: read, told apart, held out, packed, and trained on from the disk."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from tiny_forge import TINY, forge

from cluster.settings import ROOT
from train import datasets
from train.causes import Cause, Failed
from train.data import prepared
from train.data.mapped import MappedRows
from train.data.sources import Document, read_documents
from train.phases.phase import PhaseConfig, run_folder


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


def words(seed: int, count: int) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 500, count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One data set in every form, some of its documents in two of them."""
    where = tmp_path_factory.mktemp("own") / "mine"
    where.mkdir()
    (where / "plain.txt").write_text("\n\n".join(words(i, 60) for i in range(200)))
    rows: list[Any] = [{"text": words(1000 + i, 40)} for i in range(150)]
    rows += [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(20)]
    said = [("user", "Say {}"), ("assistant", "{}")]
    rows += [{"messages": [{"role": r, "content": c.format(i)} for r, c in said]} for i in range(20)]
    rows += [{"instruction": "Add one.", "input": str(i), "output": str(i + 1)} for i in range(20)]
    rows += [{"label": 3}]
    (where / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\nnot json\n")
    pq.write_table(pa.table({"text": [words(1000 + i, 40) for i in range(60)]}), where / "twice.parquet")
    (where / "ignored.bin").write_bytes(b"\0")
    return where


@pytest.fixture(scope="module")
def gathered(folder: Path, tmp_path_factory) -> tuple[datasets.Gathered, Path]:
    out = tmp_path_factory.mktemp("shards")
    return datasets.gather([str(folder)], out, 0.2), out


def test_every_form_is_read_each_document_once(gathered):
    made, out = gathered
    documents = [d for path in sorted(out.glob("[0-9]*.jsonl")) for d in read_documents(path)]
    everything = documents + list(made.held_out)
    assert len({d.fingerprint for d in everything}) == len(everything)
    assert len(everything) == made.counts["training"] + made.counts["held_out"]
    assert made.counts["duplicates"] == 60
    assert made.counts["unknown"] == 2
    assert sum(len(d.turns) == 2 for d in everything) == 60
    assert sum(d.text.count(" ") == 39 for d in everything) == 150
    text = " ".join(d.text for d in everything)
    assert all(words(i, 60) in text for i in range(0, 200, 20))
    assert {d.source for d in everything} == {"data:mine"}
    assert 0.05 < len(made.held_out) / len(everything) < 0.4


def test_the_same_files_give_the_same_shards_whatever_the_pieces(gathered, folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(datasets, "SHARD_BYTES", 20_000)
    first = datasets.gather([str(folder / "rows.jsonl")], tmp_path / "one", 0.2)
    monkeypatch.setattr(datasets, "PIECE_BYTES", 1000)
    second = datasets.gather([str(folder / "rows.jsonl")], tmp_path / "two", 0.2)
    assert len(list((tmp_path / "one").glob("[0-9]*.jsonl"))) > 1
    assert first.digest == second.digest


@pytest.mark.parametrize("content", ['{"label": 1}\n', ""])
def test_data_without_documents_is_refused(tmp_path: Path, content: str):
    (tmp_path / "bad.jsonl").write_text(content or "\n")
    with pytest.raises(Failed, match="no documents") as failed:
        datasets.gather([str(tmp_path / "bad.jsonl")], tmp_path / "out", 0.1)
    assert failed.value.details["cause"] == Cause.DATA


def test_a_damaged_table_is_refused(tmp_path: Path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(Failed, match=r"bad\.parquet"):
        datasets.gather([str(tmp_path)], tmp_path / "out", 0.1)


def test_held_out_text_that_training_has_too_is_dropped_and_counted(tmp_path: Path, monkeypatch):
    rows = [words(i, 80) for i in range(100)]
    made = datasets.gather([str(jsonl(tmp_path / "clean.jsonl", rows))], tmp_path / "clean", 0.1)
    stolen = made.held_out[0].text
    inside = f"{words(900, 30)} {' '.join(stolen.split()[20:40]).upper()} {words(901, 30)}"
    config = PhaseConfig(datasets=(str(jsonl(tmp_path / "planted.jsonl", [*rows, inside])),), held_out=0.1)
    prepared.prepare(tmp_path / "data", ROOT, config)
    held_out = prepared.held_out(tmp_path / "data")
    assert stolen not in {d.text for d in held_out}
    assert {d.text for d in made.held_out[1:]} <= {d.text for d in held_out}
    without = PhaseConfig(held_out=0.1)
    prepared.prepare(tmp_path / "shipped", ROOT, without)
    counts, shipped = prepared.report(tmp_path / "data"), prepared.report(tmp_path / "shipped")
    assert counts["contaminated_documents"] == shipped["contaminated_documents"] + 1


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_a_corpus_too_large_for_memory_trains_from_packed_rows_and_resumes_exactly(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "IN_MEMORY_BYTES", 4096)
    monkeypatch.setattr(datasets, "SHARD_BYTES", 30_000)
    short = {"max_steps": 12, "checkpoint_steps": 5, "held_out_tokens": 256, "mix": {"shakespeare": 0.05}}
    phases = [("cognate", TINY | short | {"datasets": [str(folder)]})]

    class Killed(Exception):
        pass

    def die(progress) -> None:
        if progress.step == 8:
            raise Killed

    notes: list[str] = []
    whole = forge(tmp_path / "whole", phases)[0]
    with pytest.raises(Killed):
        forge(tmp_path / "broken", phases, report=die)
    broken = forge(tmp_path / "broken", phases, note=lambda message, **_: notes.append(message))[0]
    assert "resumed" in notes
    assert broken.digest == whole.digest
    data = run_folder(tmp_path / "whole", "task_tiny") / "data"
    assert prepared.streamed(data)
    assert sum(d.size for d in prepared.texts(data).training if d.source == "data:mine") < 3 * 4096
    rows = next((tmp_path / "whole/runs/task_tiny/0-cognate/rows").iterdir())
    epoch = MappedRows(rows, size=1, seed=1).epoch(0)
    tokens = sum(int((row[1] > 0).sum()) for row in epoch)
    assert tokens > sum(len(d.text.split()) for d in prepared.sharded(data))


def test_packing_takes_a_source_as_often_as_the_mix_says(tmp_path: Path):
    class Letters:
        vocab_size = 300

        def text(self, content: str) -> list[int]:
            return list(content.encode())

    documents = [Document("a", text=f"a{i:03}") for i in range(400)]
    documents += [Document("b", text=f"b{i:03}") for i in range(40)]
    packing = datasets.Packing(Letters(), {"a": 0.25, "b": 2.0}, 64, 0)
    packing.write(tmp_path / "rows.npy", iter(documents))
    tokens, numbers = np.load(tmp_path / "rows.npy").swapaxes(0, 1)
    kept = bytes(tokens[numbers > 0].tolist()).decode()
    assert kept.count("b") == 80
    assert 70 < kept.count("a") < 130
