"""What is trained: a module and its tokenizer, from nothing or from a Hugging Face folder, and back to one."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.bitnet.linear import effective
from train.causes import Cause, Failed
from train.compression.artifact import expanded, is_compressed
from train.data.sources import Document, read_documents, write_documents
from train.manifest import write_durably
from train.model.checkpoint import load_latents, load_llama, save_latents, save_llama
from train.model.llama import Llama, same_document
from train.model.shape import Shape
from train.model.tokenizer import PAD, TEMPLATE, Tokenizer, Turn
from train.tools import spellings

REPLAY = "replay.jsonl"
SPELLED = 100  # times that a tokenizer sees every shape of a tool call


@dataclass
class Learner:
    """A model with its tokenizer.

    `model(tokens, documents)` gives logits; `model.hidden(tokens, mask)` and `model.lm_head` are its two halves;
    `model.grow(tokens, seen, past)` goes on at a text's end. `write` is how the model becomes files.
    """

    model: nn.Module
    tokenizer: Any  # Tokenizer, or HubTokenizer with the same methods
    context: int  # tokens
    pad: int
    write: Callable[["Learner", Path], None]
    phases: list[str] = field(default_factory=list)  # of the forge, that the weights went through before
    shape: Shape | None = None  # of a Llama of ours
    replay: list[Document] = field(default_factory=list)  # what later phases mix in, or the model forgets what it shows

    @property
    def parameters(self) -> int:
        """How many weights there are; a tied one counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def tokenizer_digest(self) -> str:
        """Says whether two models cut text alike."""
        return hashlib.sha256(self.tokenizer.bpe.to_str().encode()).hexdigest()

    def ids(self, document: Document) -> list[int]:
        """Of a text or a conversation."""
        return self.tokenizer.chat(document.turns) if document.turns else self.tokenizer.text(document.text)

    def save(self, folder: Path) -> None:
        """Weights, configuration and tokenizer, as transformers and vLLM read them."""
        self.write(self, folder)
        if self.replay:
            with (folder / REPLAY).open("wb") as file:
                write_documents(file, self.replay)


def fresh(shape: Shape, tokenizer: Tokenizer) -> Learner:
    """Random weights."""
    return Learner(Llama(shape), tokenizer, shape.context, tokenizer.ids[PAD], _write_llama, shape=shape)


def load(folder: Path) -> Learner:
    """A model folder, compressed or not: one of ours as a `Llama`, any other through transformers. Raises `Failed`."""
    try:
        told = folder / "training.json"
        phases = json.loads(told.read_text())["phases"] if told.exists() else []
        if ours(folder):
            model, shape = load_llama(folder)
            tokenizer = Tokenizer.load(folder)
            made = Learner(model, tokenizer, shape.context, tokenizer.ids[PAD], _write_llama, shape=shape)
        else:
            with expanded(folder) as plain:
                made = hub(str(plain))
            load_latents(made.model, folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Failed(f"the model in {folder} cannot be loaded: {error}", Cause.BASE_MODEL) from error
    made.phases = phases
    if (folder / REPLAY).exists():
        made.replay = list(read_documents(folder / REPLAY))
    return made


def ours(folder: Path) -> bool:
    """Whether the folder is one that `save_llama` wrote, with all the special tokens."""
    read = json.loads((folder / "config.json").read_text())
    return bool(read.get("aivillage")) and (is_compressed(folder) or (folder / "model.safetensors").exists())


def _write_llama(learner: Learner, folder: Path) -> None:
    assert isinstance(learner.model, Llama) and learner.shape is not None
    save_llama(learner.model, learner.shape, learner.tokenizer, folder)


class HubPast:
    """A transformers cache under our signature."""

    def __init__(self) -> None:
        self.cache: Any = None

    def choose(self, rows: Tensor) -> None:
        """See `Past.choose`."""
        self.cache.batch_select_indices(rows)


class Hub(nn.Module):
    """A transformers model under our signature."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    @property
    def lm_head(self) -> nn.Module:
        """Hidden states to logits."""
        return self.inner.get_output_embeddings()

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, T) ids and document numbers -> (B, T, V)."""
        return self.lm_head(self.hidden(tokens, None if documents is None else same_document(documents)))

    def hidden(
        self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, past: HubPast | None = None
    ) -> Tensor:
        """See `Llama.hidden`."""
        where = None if positions is None else positions.expand(tokens.shape[0], -1)
        body = self.inner.get_decoder() if hasattr(self.inner, "get_decoder") else self.inner.model
        out = body(
            input_ids=tokens, attention_mask=mask, position_ids=where, past_key_values=past and past.cache,
            use_cache=past is not None,
        )  # fmt: skip
        if past is not None:
            past.cache = out.past_key_values
        return out.last_hidden_state

    def past(self) -> HubPast:
        """See `Llama.past`."""
        return HubPast()

    def grow(self, tokens: Tensor, seen: Tensor, past: HubPast) -> Tensor:
        """See `Llama.grow`."""
        out = self.inner(input_ids=tokens, attention_mask=seen.long(), past_key_values=past.cache, use_cache=True)
        past.cache = out.past_key_values
        return out.logits[:, -1]


class HubTokenizer:
    """A transformers tokenizer with the methods of ours."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.bpe = inner.backend_tokenizer
        self.ids = inner.get_vocab()

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self.inner)

    def text(self, content: str) -> list[int]:
        """Ids of a plain text, with an end."""
        return [*self.inner.encode(content, add_special_tokens=False), self.inner.eos_token_id]

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation, by the model's own template."""
        return self._templated(turns, False)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation that the assistant is to go on with."""
        return self._templated(turns, True)

    def marked(self, content: str) -> list[int]:
        """Ids of an assistant's words."""
        return self.inner.encode(content, add_special_tokens=False)

    def decode(self, ids: Sequence[int], marks: bool = False) -> str:
        """Text of the ids; special tokens leave nothing, or with `marks` their names."""
        return self.inner.decode(list(ids), skip_special_tokens=not marks)

    def _templated(self, turns: Sequence[Turn], prompt: bool) -> list[int]:
        messages = [turn._asdict() for turn in turns]
        return list(
            self.inner.apply_chat_template(messages, tokenize=True, return_dict=False, add_generation_prompt=prompt)
        )


def hub(name: str) -> Learner:
    """A transformers checkpoint by folder or hub id. Raises `OSError` or `ValueError` where it cannot be had."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE  # a base model has none: the marks are plain text
    inner: Any = AutoModelForCausalLM.from_pretrained(name, attn_implementation="sdpa", dtype=torch.float32)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    context = int(getattr(inner.config, "max_position_embeddings", tokenizer.model_max_length))
    return Learner(Hub(inner), HubTokenizer(tokenizer), context, pad, _write_hub)


def _write_hub(learner: Learner, folder: Path) -> None:
    assert isinstance(learner.model, Hub)
    prefix = "inner."  # of every name in our signature's module
    state = learner.model.state_dict() | effective(learner.model)
    learner.model.inner.save_pretrained(folder, state_dict={name.removeprefix(prefix): w for name, w in state.items()})
    save_latents(learner.model, folder)
    learner.tokenizer.inner.save_pretrained(folder)


def tokenizer_for(kept: Path, texts: Callable[[], Iterable[Document]], vocab_size: int) -> Tokenizer:
    """The tokenizer in the file `kept`, which is made of the texts first. Deterministic: every worker has the same."""
    if kept.exists():
        return Tokenizer(Tokenizer.read(kept))
    words = (document.text or "\n".join(turn.content for turn in document.turns) for document in texts())
    tokenizer = Tokenizer.train(chain(words, spellings() * SPELLED), vocab_size)
    write_durably(kept, lambda file: file.write(tokenizer.bpe.to_str().encode()))
    return tokenizer
