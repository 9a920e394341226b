"""Base models: further training of ours and of transformers', and the average of several."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_forge import TINY, forge
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers

from cluster.errors import Invalid, NotBuilt
from train.causes import Cause, Failed
from train.phases import catalogue
from train.pretraining import imported
from train.stage import Ended

SHORT = TINY | {"max_steps": 24}


def model_of(home: Path) -> Path:
    return home / "runs/task_tiny/0-cognate/model"


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("first")
    forge(home, [("cognate", SHORT)])
    return model_of(home)


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("second")
    forge(home, [("cognate", SHORT | {"base_models": [str(first)], "seed": 7, "max_steps": 80})])
    return model_of(home)


def strange(folder: Path, kind: str) -> Path:
    """A tiny transformers model with random weights, and a tokenizer of bytes without a chat template."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Bpe(models.BPE(vocab=letters | {"<eos>": len(letters)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>").save_pretrained(folder)
    config = AutoConfig.for_model(
        kind, vocab_size=len(letters) + 8, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=48, tie_word_embeddings=kind == "qwen2",
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def fell(outcome: Ended) -> bool:
    return outcome.after.loss < outcome.before.loss


def test_further_training_begins_where_the_base_model_ended(first: Path, tmp_path: Path):
    before = forge(tmp_path, [("cognate", SHORT | {"base_models": [str(first)], "max_steps": 80})])[0].before
    ended = Ended.model_validate_json((first.parent / "outcome.json").read_bytes()).after
    assert before.loss == pytest.approx(ended.loss, rel=1e-3)
    assert (model_of(tmp_path) / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_transformers_model_is_trained_further_and_stays_one(tmp_path: Path, kind: str):
    from transformers import AutoModelForCausalLM

    base = strange(tmp_path / "base", kind)
    outcome = forge(tmp_path, [("cognate", SHORT | {"base_models": [str(base)], "learning_rate": 0.01})])[0]
    assert fell(outcome)
    made = AutoModelForCausalLM.from_pretrained(model_of(tmp_path))
    assert made.config.model_type == kind
    assert made.config.max_position_embeddings == 48


def test_several_base_models_are_averaged(first: Path, second: Path):
    merged = imported((first, second)).model.state_dict()
    for name, tensor in load_file(first / "model.safetensors").items():
        other = load_file(second / "model.safetensors")[name]
        assert torch.allclose(merged[name], (tensor + other) / 2, atol=1e-7)


def test_a_run_of_several_base_models_begins_at_their_average(first: Path, second: Path, tmp_path: Path):
    given = SHORT | {"base_models": [str(first), str(second)], "merge_strategy": "linear"}
    outcome = forge(tmp_path, [("cognate", given | {"learning_rate": 1e-9})])[0]
    state = load_file(model_of(tmp_path) / "model.safetensors")
    for name, tensor in imported((first, second)).model.state_dict().items():
        if name in state:
            assert torch.allclose(state[name], tensor, atol=1e-6)
    assert outcome.metrics["held_out_loss"] > 0


def test_models_of_different_shapes_are_not_averaged(first: Path, tmp_path: Path):
    wide = SHORT | {"target_architecture": "llama-3m", "max_steps": 4}
    forge(tmp_path, [("cognate", wide)])
    with pytest.raises(Failed, match=r"\(512, 128\) and \(512, 192\)") as failed:
        imported((first, model_of(tmp_path)))
    assert failed.value.details["cause"] == Cause.BASE_MODEL


def test_models_that_cut_text_differently_are_not_averaged(first: Path, tmp_path: Path):
    forge(tmp_path, [("cognate", SHORT | {"held_out": 0.4})])
    with pytest.raises(Failed, match="different tokenizers"):
        imported((first, model_of(tmp_path)))


def test_evolution_of_several_base_models_is_left_to_its_own_phase(first: Path):
    with pytest.raises(NotBuilt, match="evomerge"):
        catalogue.phase("cognate", {"base_models": [str(first), str(first)]})


def test_a_folder_without_a_model_is_refused_before_anything_starts(tmp_path: Path):
    with pytest.raises(Invalid, match="no model"):
        catalogue.phase("cognate", {"base_models": [str(tmp_path)]})
