"""What the worker trains: data, model files, snapshots, and one training without a network."""

import io
import json
import shutil
import tarfile
import threading
from pathlib import Path

import pytest
import tiny_farm
import tiny_training
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cluster.errors import Invalid, VillageError
from train.farm import data, models, snapshot
from train.farm.control import Control, Left, Stopped
from train.farm.messages import Requirements, Task
from train.farm.resources import Machine, lacking, parse_gpus
from train.farm.trainer import Job, Reporter, train


@given(st.lists(st.integers()), st.integers(1, 20))
def test_shards_are_disjoint_complete_and_even(items, world_size):
    shards = [data.shard(list(enumerate(items)), rank, world_size) for rank in range(world_size)]
    assert sorted(item for part in shards for item in part) == list(enumerate(items))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("name", [None, *data.BUILT_IN])
def test_every_dataset_that_is_shipped_has_text_to_learn_and_text_held_out(name):
    text = data.dataset(name, {})
    learnt = {document.fingerprint for document in text.training}
    assert learnt and text.held_out and learnt.isdisjoint(document.fingerprint for document in text.held_out)
    assert "project" not in {document.source for document in text.training}


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "s3://bucket", "tiny/../../x", "import os"])
def test_a_dataset_is_a_name_and_never_a_path(name):
    with pytest.raises(Invalid, match="does not have dataset"):
        data.dataset(name, {})


def test_the_operator_may_name_files_and_folders(tmp_path: Path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n\n" + "long " * 2000)
    rows = [
        {"text": "Three."},
        {"messages": [{"role": "user", "content": "Four?"}, {"role": "assistant", "content": "4"}]},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    text = data.dataset("mine", {"mine": tmp_path})
    everything = [*text.training, *text.held_out]
    assert all(len(document.text) <= data.SEGMENT for document in everything)
    assert {"One.\n\nTwo.", "Three."} <= {document.text for document in everything}
    assert any(document.turns for document in everything)


@pytest.mark.parametrize(
    "line", ["{}", "[]", "3", "{", '{"messages": [{"role": "root", "content": "x"}]}', '{"messages": 3}']
)
def test_a_row_that_is_neither_text_nor_messages_is_named_by_its_line_not_its_place(tmp_path: Path, line):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(Invalid, match="line 2") as caught:
        data.dataset("mine", {"mine": tmp_path / "x.jsonl"})
    assert str(tmp_path) not in caught.value.message


def test_a_snapshot_gives_back_what_it_was_given(tmp_path: Path):
    tied = torch.randn(3, 4)
    state = {
        "model": {"a": tied, "b": tied, "c": torch.zeros(0)}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
        "position": (1, 2), "list": [1.5, None, True, "x"], "random": torch.get_rng_state(), "part": tied[1:, ::2],
    }  # fmt: skip
    path = tmp_path / "s"
    path.write_bytes(snapshot.dump(state))
    got = snapshot.load(path)
    assert got["position"] == (1, 2) and got["list"] == state["list"] and 0 in got["optimizer"]["state"]
    for one, other in ((got["model"]["b"], tied), (got["random"], state["random"]), (got["part"], state["part"])):
        assert torch.equal(one, other)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x80\x04K\x01.", (2**60).to_bytes(8, "little") + b"{}"])
def test_what_is_no_snapshot_is_refused(tmp_path: Path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(Invalid):
        snapshot.load(tmp_path / "s")


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return path


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def test_an_archive_writes_the_three_known_files_and_nothing_else(tmp_path: Path):
    evil = [
        (tarfile.TarInfo("../../escaped"), b"x"), (tarfile.TarInfo("/tmp/escaped"), b"x"),
        (tarfile.TarInfo("m/pytorch_model.bin"), b"x"), (tarfile.TarInfo("m/modeling_evil.py"), b"x"),
        (link("m/config.json", "/etc/passwd"), b""), (link("m/tokenizer.json", "/etc/passwd", tarfile.LNKTYPE), b""),
        (link("m/model.safetensors", "x", tarfile.FIFOTYPE), b""), (tarfile.TarInfo("../../../config.json"), b"{}"),
        (tarfile.TarInfo("m/tokenizer.json"), b"{}"), (tarfile.TarInfo("a/b/model.safetensors"), b"w"),
    ]  # fmt: skip
    models.unpack(archive(tmp_path / "a.tar", *evil), tmp_path / "in" / "model")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()}
    assert found == {"a.tar", *(f"in/model/{name}" for name in models.FILES)}
    assert (tmp_path / "in/model/config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + b"z" * 600])
def test_what_is_no_archive_or_lacks_a_file_is_refused(tmp_path: Path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(Invalid):
        models.unpack(tmp_path / "a.tar", tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**9}, {"num_hidden_layers": 10**6}, {"vocab_size": 2**40}, {"num_attention_heads": 0},
        {"num_attention_heads": 7}, {"max_position_embeddings": 10**9}, {"hidden_size": "__import__('os')"},
        {"model_type": "gpt2"}, {"tie_word_embeddings": False}, {"num_key_value_heads": 4}, {"rope_theta": -1},
        {"vocab_size": 500_000}, {"auto_map": None, "rope_scaling": {"type": "dynamic"}}, {"vocab_size": 50},
    ],
)  # fmt: skip
def test_a_model_whose_numbers_are_not_believable_is_refused_before_it_is_built(tmp_path: Path, change):
    folder = tiny_farm.model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(Invalid):
        models.from_registry(folder)


def test_a_pickle_in_the_place_of_weights_is_not_opened(tmp_path: Path):
    folder = tiny_farm.model(tmp_path / "model")
    torch.save({"x": torch.zeros(100_000)}, folder / "model.safetensors")
    with pytest.raises(Invalid):
        models.from_registry(folder)
    assets = models.from_registry(tiny_farm.model(tmp_path / "good"))
    with pytest.raises(Invalid):
        models.load_weights(assets.model, folder / "model.safetensors")


def test_weights_of_another_shape_or_that_are_no_numbers_are_refused(tmp_path: Path):
    assets = models.from_registry(tiny_farm.model(tmp_path / "model"))
    path = tmp_path / "w.safetensors"
    models.save_weights(assets.model, path, {})
    state = load_file(path)
    models.load_weights(assets.model, path)
    for bad in (
        {**state, "model.norm.weight": torch.full((32,), torch.nan)}, {**state, "extra": torch.zeros(1)},
        {**state, "model.norm.weight": torch.zeros(31)}, {"model.norm.weight": torch.zeros(32)},
    ):  # fmt: skip
        save_file(bad, path)
        with pytest.raises(VillageError):
            models.load_weights(assets.model, path)


def test_equal_seeds_are_equal_weights_and_tokenizers():
    (one, other, third) = (models.fresh(data.tokenizer(), seed) for seed in (5, 5, 6))
    states = [assets.model.state_dict() for assets in (one, other, third)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0][models.TIED], states[2][models.TIED])
    assert one.tokenizer.bpe.to_str() == other.tokenizer.bpe.to_str()


# ---- one training


def job(tmp_path: Path, **config) -> Job:
    task = Task.model_validate({"id": "task_1", "config": tiny_farm.CONFIG | config})
    folder = tmp_path / "model"
    return Job(
        task, tmp_path / task.key, folder if folder.exists() else tiny_farm.model(folder),
        local={"tiny": tiny_farm.text(tmp_path / "tiny.txt")},
    )  # fmt: skip


def nothing(*_) -> None:
    return None


def test_a_training_learns_and_says_what_it_measured(tmp_path: Path):
    told = []
    trained = train(job(tmp_path), Control(), lambda percent, metrics: told.append((percent, metrics)), nothing)
    assert trained.status == "completed" and trained.step == 20 and trained.samples == 20 * 4
    assert trained.metrics["final_loss"] < trained.metrics["loss_before"]
    assert 0 <= trained.metrics["final_accuracy"] <= 1 and trained.metrics["training_time"] > 0
    assert told[-1][0] == 100 and {"loss", "accuracy", "learning_rate"} <= told[-1][1].keys()
    assert trained.weights and "model.embed_tokens.weight" in load_file(trained.weights)


def test_epochs_count_over_this_ranks_share(tmp_path: Path):
    whole = train(job(tmp_path, steps=None, epochs=1), Control(), nothing, nothing).samples
    halves = [
        train(job(tmp_path, steps=None, epochs=1, rank=rank, world_size=2), Control(), nothing, nothing).samples
        for rank in range(2)
    ]
    assert sum(halves) == pytest.approx(whole, abs=8)
    assert train(job(tmp_path, steps=None, epochs=3), Control(), nothing, nothing).samples > 2 * whole


def test_a_training_that_was_left_goes_on_with_the_same_losses(tmp_path: Path):
    """Model, optimizer, random state and place in the data are all in the snapshot."""
    given, control, notes = job(tmp_path), Control(), []
    unbroken = train(given, Control(), nothing, nothing)
    weights = load_file(unbroken.weights)
    shutil.rmtree(given.folder)
    with pytest.raises(Left):
        train(given, control, lambda *_: control.steer("leave"), nothing)
    resumed = train(given, Control(), nothing, notes.append)
    assert notes == ["going on from step 1 of 20"] and resumed.samples == unbroken.samples
    assert resumed.metrics["final_loss"] == pytest.approx(unbroken.metrics["final_loss"], rel=1e-4)
    for name, tensor in load_file(resumed.weights).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)


def test_a_snapshot_that_does_not_fit_is_removed_and_the_next_try_begins_anew(tmp_path: Path):
    given = job(tmp_path)
    train(given, Control(), nothing, nothing)
    tiny_farm.model(tmp_path / "model", width=64)
    with pytest.raises(VillageError, match="anew"):
        train(given, Control(), nothing, nothing)
    assert train(given, Control(), nothing, nothing).status == "completed"


def test_a_pause_computes_nothing_and_a_stop_ends_within_a_step(tmp_path: Path):
    control, seen, reached = Control(), [], threading.Event()

    def tell(_, metrics) -> None:
        seen.append(metrics["step"])
        reached.set()

    outcome = []
    given = job(tmp_path, steps=100_000)
    thread = threading.Thread(target=lambda: outcome.append(train(given, control, tell, nothing)))
    thread.start()
    assert reached.wait(20)
    control.steer("pause")
    reached.clear()
    assert reached.wait(20)  # said once more when it comes to rest, after it has saved
    at = seen[-1]
    assert snapshot.load(sorted(given.folder.rglob("step-*.safetensors"))[-1])["progress"]["step"] == at
    used = _cpu_seconds(thread)
    thread.join(0.5)
    assert thread.is_alive() and seen[-1] == at and _cpu_seconds(thread) - used < 0.05
    control.steer("resume")
    reached.clear()
    assert reached.wait(20) and seen[-1] > at
    control.steer("stop")
    thread.join(20)
    [ended] = outcome
    assert ended.status == "stopped" and ended.weights is None and seen[-1] <= ended.step < 100_000
    with pytest.raises(Stopped):
        control.obey()


def _cpu_seconds(thread: threading.Thread) -> float:
    """CPU time of one thread of ours, as the kernel counts it."""
    fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_what_cannot_fit_is_refused_before_it_begins_and_ended_when_it_grows(tmp_path: Path):
    given = job(tmp_path)
    with pytest.raises(VillageError, match="needs at least"):
        train(Job(**vars(given) | {"memory_mb": 1.0}), Control(), nothing, nothing)
    loop = tiny_training.loop()
    loop.report = Reporter(Job(**vars(given) | {"memory_mb": 1.0}), loop, Control(), nothing, 30)
    with pytest.raises(VillageError, match="may have 1"):
        loop.run()
    assert loop.progress.step == 1


@pytest.mark.parametrize(
    ("change", "says"), [({"dataset": "x"}, "does not have"), ({"rank": 900, "world_size": 1000}, "too few")]
)
def test_a_share_that_cannot_be_had_is_an_error_in_words(tmp_path: Path, change, says):
    with pytest.raises(VillageError, match=says):
        train(job(tmp_path, **change), Control(), nothing, nothing)


# ---- the machine


async def test_the_machine_says_what_it_measured():
    system, resources = await Machine("cpu").measure()
    assert resources["cpu"]["cores"] >= 1 and 0 < resources["ram"]["used"] < resources["ram"]["total"]
    assert resources["gpu"] == [] and system["gpu_usage"] is None and 0 <= system["ram_usage"] <= 100
    _, limited = await Machine("cpu", 1000).measure()
    assert limited["ram"]["total"] == 1000 and 0 <= limited["ram"]["used"] <= 1000


def test_gpus_are_read_from_the_drivers_tool():
    told = (
        "0, NVIDIA H200, 143771, 4, 17\n1, NVIDIA H200 MIG, [N/A], [N/A], [N/A]\n2, A, B, 3\n3, X, 10240, 3072, [N/A]\n"
    )
    one, other = parse_gpus(told)
    assert (one.id, one.name, one.total_mb, one.used_mb, one.usage) == (0, "NVIDIA H200", 143771, 4, 17)
    assert other.id == 3 and other.usage is None


def test_requirements_are_compared_with_what_is_there():
    has = {"cpu": {"cores": 4}, "ram": {"total": 8192}, "gpu": [{"memory": {"total": 10240}}]}
    assert lacking(Requirements(min_gpu_memory=10240, min_cpu_cores=4, min_ram=8192), has) == ""
    said = lacking(Requirements(min_gpu_memory=1, min_cpu_cores=5, min_ram=9000), {**has, "gpu": []})
    assert said.count("required") == 3
