"""What is trained: a module, its tokenizer and how both become a Hugging Face folder. From nothing, or from a base."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from cluster.errors import Invalid, NotBuilt
from train.data.sources import Document
from train.model.checkpoint import save_llama
from train.model.llama import Llama, same_document
from train.model.shape import choose
from train.model.tokenizer import PAD, Tokenizer, Turn

if TYPE_CHECKING:
    from train.phases.cognate import CognateConfig


class Learner(Protocol):
    """`model(tokens, documents)` gives logits; the rest is text in and files out."""

    model: nn.Module
    pad: int
    phases: list[str]  # of the forge, that the weights went through before

    @property
    def parameters(self) -> int:
        """How many weights are trained."""
        ...

    @property
    def tokenizer_digest(self) -> str:
        """Says whether two models cut text alike."""
        ...

    def text(self, content: str) -> list[int]:
        """Ids of a plain document."""
        ...

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation."""
        ...

    def save(self, folder: Path) -> None:
        """Weights, configuration and tokenizer."""
        ...


class FreshLlama:
    """Random weights, and a tokenizer trained on the corpus."""

    def __init__(self, config: "CognateConfig", tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.shape = choose(
            config.target_architecture, config.parameter_budget, tokenizer.vocab_size, config.context_length
        )
        self.model: nn.Module = Llama(self.shape)
        self.pad, self.phases = tokenizer.ids[PAD], []
        self.text, self.chat = tokenizer.text, tokenizer.chat

    @property
    def parameters(self) -> int:
        """See `Learner`."""
        return self.shape.parameters

    @property
    def tokenizer_digest(self) -> str:
        """See `Learner`."""
        return hashlib.sha256(self.tokenizer.bpe.to_str().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """See `Learner`."""
        assert isinstance(self.model, Llama)
        save_llama(self.model, self.shape, self.tokenizer, folder)


class Logits(nn.Module):
    """A transformers model under our signature."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor, documents: Tensor) -> Tensor:
        """(B, T) ids and document numbers -> (B, T, V)."""
        return self.inner(input_ids=tokens, attention_mask=same_document(documents), use_cache=False).logits


class FromBase:
    """A transformers checkpoint, trained further."""

    def __init__(self, name: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            inner: Any = AutoModelForCausalLM.from_pretrained(name, attn_implementation="sdpa").float()
        except (OSError, ValueError) as error:
            raise Invalid(f"base model {name} cannot be loaded: {error}", field="base_models", value=name) from error
        self.model: nn.Module = Logits(inner)
        self.pad = self.tokenizer.pad_token_id or self.tokenizer.eos_token_id
        self.phases: list[str] = []

    @property
    def parameters(self) -> int:
        """See `Learner`."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def tokenizer_digest(self) -> str:
        """See `Learner`."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def text(self, content: str) -> list[int]:
        """See `Learner`."""
        return [*self.tokenizer.encode(content, add_special_tokens=False), self.tokenizer.eos_token_id]

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """See `Learner`."""
        messages = [turn._asdict() for turn in turns]
        return list(self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))

    def save(self, folder: Path) -> None:
        """See `Learner`."""
        assert isinstance(self.model, Logits)
        self.model.inner.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def learner(config: "CognateConfig", folder: Path, make: Callable[[], Iterable[Document]]) -> Learner:
    """What the configuration asks for. Training a tokenizer is deterministic, so every worker and attempt has the same.

    Raises `Invalid` for a base model that cannot be had, `NotBuilt` for several.
    """
    if len(config.base_models) > 1:
        raise NotBuilt("several base models are merged by phase evomerge, which is not built yet", phase="evomerge")
    if config.base_models:
        return FromBase(config.base_models[0])
    kept = folder / "tokenizer.json"
    if kept.exists():
        return FreshLlama(config, Tokenizer.load(folder))
    texts = (document.text or "\n".join(turn.content for turn in document.turns) for document in make())
    tokenizer = Tokenizer.train(texts, config.vocab_size)
    from train.manifest import write_durably

    write_durably(kept, lambda file: file.write(tokenizer.bpe.to_str().encode()))
    return FreshLlama(config, tokenizer)
