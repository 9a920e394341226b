"""Our Llama is transformers' Llama, and what is written loads there."""

from pathlib import Path

import pytest
import tiny_training as tiny
import torch

from train.data.packing import batch, pack
from train.evaluate.perplexity import held_out_loss
from train.model import llama
from train.model.checkpoint import load_llama, publish, save_llama
from train.model.kernels import Normalised, RMSNorm, rotate
from train.model.llama import Llama
from train.model.shape import ARCHITECTURES, Shape, choose
from train.model.tokenizer import Tokenizer, Turn

TOKENIZER = Tokenizer.train(["What is the capital of France? The capital of France is Paris."], 300)
SHAPE = Shape(width=64, layers=2, heads=2, feed_forward=96, vocab_size=TOKENIZER.vocab_size, context=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("model")
    save_llama(Llama(SHAPE), SHAPE, TOKENIZER, folder)
    return folder


def test_transformers_computes_the_same_logits(folder: Path):
    from transformers import AutoModelForCausalLM

    ours, _ = load_llama(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, SHAPE.vocab_size, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_chat_template_renders_what_training_saw(folder: Path):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    turns = [Turn("system", "Be short."), Turn("user", "What is the capital of France? "), Turn("assistant", "Paris.")]
    messages = [turn._asdict() for turn in turns]
    assert theirs.apply_chat_template(messages, return_dict=False) == TOKENIZER.chat(turns)
    prompt = theirs.apply_chat_template(messages[:2], add_generation_prompt=True, return_dict=False)
    assert prompt == TOKENIZER.prompt(turns[:2])
    assert theirs.eos_token_id == TOKENIZER.ids["<|end|>"]


def test_a_packed_document_does_not_see_its_neighbours():
    torch.manual_seed(1)
    model = Llama(tiny.SHAPE).eval()
    alone, together = torch.tensor([[3, 4, 5]]), torch.tensor([[9, 9, 3, 4, 5]])
    with torch.no_grad():
        expected = model(alone)[0, -1]
        masked = model(together, torch.tensor([[1, 1, 2, 2, 2]]))[0, -1]
        unmasked = model(together)[0, -1]
    torch.testing.assert_close(masked, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(unmasked, expected, atol=1e-3)


def test_attention_in_stretches_is_attention(monkeypatch: pytest.MonkeyPatch):
    """Rows of several documents and of one, longer than a stretch: the same loss, the same gradients."""
    torch.manual_seed(2)
    model = Llama(Shape(width=64, layers=2, heads=2, feed_forward=96, vocab_size=64, context=300))
    tokens = torch.randint(64, (2, 300))
    documents = torch.stack((torch.arange(300) // 37, torch.ones(300, dtype=torch.long)))
    found = []
    for worth in (True, False):
        monkeypatch.setattr(llama, "worth_stretches", lambda mask, worth=worth: worth)
        model.zero_grad()
        logits = model(tokens, documents)
        logits.log_softmax(-1)[..., 5].mean().backward()
        found.append((logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-3)


def test_keys_that_no_query_looks_at_are_left_out():
    documents = torch.tensor([[1] * 100 + [2] * 100 + [3] * 100])
    found = llama.stretches(llama.same_document(documents), 2, torch.float32)
    assert [(s.queries.start, s.keys.start, s.keys.stop) for s in found] == [
        (0, 0, 128),
        (128, 100, 256),
        (256, 200, 300),
    ]
    assert [tuple(s.bias.shape) for s in found] == [(2, 128, 128), (2, 128, 156), (2, 44, 100)]


def test_kernels_have_the_gradients_of_what_they_compute():
    torch.manual_seed(3)
    x, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5, 8), (8,)))
    angles = torch.randn(1, 5, 4, dtype=torch.float64).repeat(1, 1, 2)
    norm = RMSNorm(8, 1e-5, dtype=torch.float64)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-5))
    assert torch.autograd.gradcheck(lambda x, weight: Normalised.apply(x, weight, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles.cos(), angles.sin()), (x,))


@pytest.mark.parametrize("shape", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_shapes_parameter_count_is_the_models(shape: Shape):
    with torch.device("meta"):
        model = Llama(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.width % shape.heads == 0 and shape.head_width in (32, 64)


@pytest.mark.parametrize(("budget", "layers"), [(1_100_000, 4), (4_000_000, 6), (10**9, 14)])
def test_auto_takes_the_largest_architecture_within_the_budget(budget, layers):
    assert choose("auto", budget, vocab_size=2048, context=512).layers == layers


def test_a_published_folder_appears_whole_or_not_at_all(tmp_path: Path):
    def die(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        publish(tmp_path / "model", die)
    assert not (tmp_path / "model").exists()
    publish(tmp_path / "model", lambda folder: (folder / "whole").write_text("1") and None)
    publish(tmp_path / "model", lambda folder: (folder / "whole").write_text("2") and None)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]
    assert (tmp_path / "model" / "whole").read_text() == "1"


def test_a_model_that_knows_nothing_has_the_loss_of_guessing():
    model = Llama(tiny.SHAPE)
    torch.nn.init.zeros_(model.lm_head.weight)
    rows = [batch(pack([list(range(1, 30))], 32), 32, pad=0)]
    loss, accuracy = held_out_loss(model, rows, "fp32")
    assert loss == pytest.approx(torch.tensor(float(tiny.SHAPE.vocab_size)).log().item())
    assert accuracy == 0
