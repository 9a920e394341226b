import json
from pathlib import Path

import pytest
import torch
from tiny_forge import TINY, forge

from train.bitnet.linear import effective, is_ternary, ternary
from train.compression.artifact import ARTIFACT, expand, read, tensors
from train.compression.compress import REPORT
from train.data.sources import Document, write_documents
from train.manifest import folder_digest
from train.model.checkpoint import publish
from train.model.learner import REPLAY, load
from train.phases.phase import Outcome

SMALL = {
    "codecs": ["kquant"], "calibration_tokens": 256, "measured_tokens": 256, "measured": 1, "timed_tokens": 4,
    "tolerance_nats": 0.1,
}  # fmt: skip
PHASES = [("cognate", TINY), ("final_compression", SMALL)]
BASE = Path("runs/task_tiny/0-cognate/model")
STAGE = Path("runs/task_tiny/1-final_compression")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list]:
    home = tmp_path_factory.mktemp("compression")
    return home, forge(home, PHASES)


def logits(folder: Path) -> torch.Tensor:
    model = load(folder).model.eval()
    with torch.no_grad():
        return model(torch.arange(40)[None])


def test_the_model_is_smaller_and_as_good_as_was_allowed(made):
    home, (_, outcome) = made
    assert outcome.verdict.outcome is Outcome.PASS, outcome.verdict.reason
    assert outcome.after.loss - outcome.before.loss <= 0.1
    size = (home / STAGE / "model" / ARTIFACT).stat().st_size
    base = (home / BASE / "model.safetensors").stat().st_size
    told = outcome.metrics
    assert told["artifact_bytes"] == size and told["base_bytes"] == base
    assert told["compression_ratio"] == pytest.approx(1 - size / base)
    assert told["compression_ratio"] > 0.8 and told["bits_per_weight"] < 6
    assert min(told["inference_ms_per_token"], told["expand_seconds"], told["load_seconds"]) > 0


def test_the_folder_holds_its_weights_once(made):
    home, _ = made
    names = {path.name for path in (home / STAGE / "model").iterdir()}
    assert {ARTIFACT, "config.json", "tokenizer.json", REPORT} <= names
    assert not any(name.endswith(".safetensors") for name in names)
    assert sorted(path.name for path in (home / STAGE).iterdir() if path.is_dir()) == ["model"]


def test_it_loads_as_exactly_what_was_decoded(made, tmp_path):
    home, _ = made
    folder = home / STAGE / "model"
    expand(folder, tmp_path)
    assert torch.equal(logits(folder), logits(tmp_path))
    state = load(folder).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors(folder).items())


def test_transformers_loads_the_expanded_folder_alike(made, tmp_path):
    from transformers import AutoModelForCausalLM

    home, _ = made
    expand(home / STAGE / "model", tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(torch.arange(40)[None]).logits, logits(home / STAGE / "model"), atol=1e-4)


def test_every_tensor_is_reported_and_none_is_larger_than_plain(made):
    home, _ = made
    folder = home / STAGE / "model"
    report = json.loads((folder / REPORT).read_text())["tensors"]
    entries = {entry.name: entry for entry in read(folder / ARTIFACT)}
    assert {row["name"] for row in report} == set(entries)
    for row in report:
        assert row["codec"] == entries[row["name"]].encoded.codec
        assert 8 * len(entries[row["name"]].encoded.data) / torch.Size(row["shape"]).numel() == row["bits_per_weight"]
        assert row["bits_per_weight"] <= 16


class Killed(Exception):
    pass


def test_a_killed_compression_goes_on_and_ends_alike(made, tmp_path):
    home, (_, unbroken) = made
    alike = {"held_out_tokens": TINY["held_out_tokens"], "base_models": [str(home / BASE)]}
    phases = [("final_compression", SMALL | alike)]
    encodings = tmp_path / "runs/task_tiny/0-final_compression/encodings"

    def killing(progress) -> None:
        if progress.step == 7:
            raise Killed

    with pytest.raises(Killed):
        forge(tmp_path, phases, report=killing)
    kept = {path: path.stat().st_mtime_ns for path in sorted(encodings.iterdir())}
    assert len(kept) == 7
    damaged = list(kept)[1]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    reached: list[set[Path]] = []

    def looking(progress) -> None:
        reached.append({path for path, at in kept.items() if path.exists() and path.stat().st_mtime_ns == at})

    (outcome,) = forge(tmp_path, phases, report=looking)
    assert reached[6] == set(kept) - {damaged}  # what was done and whole was not done again
    assert folder_digest(encodings.parent / "model") == folder_digest(home / STAGE / "model")
    assert outcome.after == unbroken.after


def test_where_nothing_may_be_lost_the_model_is_kept_plain_or_nearly(made, tmp_path):
    home, _ = made
    base = str(home / BASE)
    ways = SMALL | {"codecs": [], "tolerance_nats": 1e-3, "base_models": [base]}
    (outcome,) = forge(tmp_path, [("final_compression", ways)])
    assert outcome.metrics["bits_per_weight"] == pytest.approx(16, rel=0.01)
    assert outcome.metrics["compression_ratio"] == pytest.approx(0.5, abs=0.01)


def test_a_size_can_be_asked_for(made, tmp_path):
    home, _ = made
    ways = SMALL | {"codecs": ["gptq"], "measured": 0, "smallest": 40_000, "target_bits": 7.0}
    ways |= {"base_models": [str(home / BASE)]}
    (outcome,) = forge(tmp_path, [("final_compression", ways)])
    assert 6.5 < outcome.metrics["bits_per_weight"] < 7.1


def test_ternary_layers_stay_ternary_without_loss(made, tmp_path):
    home, _ = made
    learner = load(home / BASE)
    ternary(learner.model)
    publish(tmp_path / "base", learner.save)
    ways = SMALL | {"measured": 0, "base_models": [str(tmp_path / "base")]}
    (outcome,) = forge(tmp_path, [("final_compression", ways)])
    folder = tmp_path / "runs/task_tiny/0-final_compression/model"
    codecs = {entry.name: entry.encoded.codec for entry in read(folder / ARTIFACT)}
    wanted = effective(learner.model)
    assert {name for name, codec in codecs.items() if codec == "trits"} == set(wanted)
    loaded = tensors(folder)
    assert all(torch.equal(loaded[name], weight) for name, weight in wanted.items())
    assert not is_ternary(load(folder).model)  # as it is served: nothing there to train latent weights with
    assert outcome.metrics["bits_per_weight"] < 4


def test_a_transformers_model_is_compressed_too(made, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    home, _ = made
    base, target = tmp_path / "base", tmp_path / "target"
    AutoTokenizer.from_pretrained(home / BASE).save_pretrained(base)
    config = AutoConfig.for_model(
        "qwen2", vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    with (base / REPLAY).open("wb") as file:
        write_documents(file, [Document("thoughts", text=f"{i} and {i} are {2 * i}") for i in range(8)])
    ways = SMALL | {"held_out_tokens": 256, "base_models": [str(base)]}
    (outcome,) = forge(tmp_path, [("final_compression", ways)])
    folder = tmp_path / "runs/task_tiny/0-final_compression/model"
    codecs = {entry.name: entry.encoded.codec for entry in read(folder / ARTIFACT)}
    assert codecs["model.embed_tokens.weight"] == codecs["lm_head.weight"] == "kquant"
    assert codecs["model.layers.0.self_attn.q_proj.bias"] == "cast"  # vectors keep two bytes a number
    assert outcome.metrics["bits_per_weight"] < 9
    assert len(load(folder).replay) == 8  # measured on, and handed on
    target.mkdir()
    expand(folder, target)
    assert torch.equal(logits(folder), logits(target))
