"""Byte-level BPE trained on the corpus, in the Hugging Face format, with the chat's special tokens and template."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers

PAD, BEGIN, END, SYSTEM, USER, ASSISTANT = SPECIAL = (
    "<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
)  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ message['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Turn(NamedTuple):
    """One message of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


class Tokenizer:
    """Text and conversations to ids and back. Content never becomes a special token, whatever it says."""

    def __init__(self, bpe: Bpe) -> None:
        self.bpe = bpe
        self.bpe.encode_special_tokens = True
        self.ids = {token: number for token, number in bpe.get_vocab().items() if token in SPECIAL}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn at most `vocab_size` tokens, the 256 bytes and the special ones among them. Deterministic."""
        bpe = Bpe(models.BPE())
        # One digit a token: arithmetic is learnt digit by digit.
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer that `save` wrote."""
        return cls(Bpe.from_file(str(folder / "tokenizer.json")))

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.bpe.get_vocab_size()

    def text(self, content: str) -> list[int]:
        """Ids of a plain text, between a begin and an end."""
        return [self.ids[BEGIN], *self._content(content), self.ids[END]]

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation: what the template renders, tokenized."""
        ids = [self.ids[BEGIN]]
        for role, content in turns:
            ids += [self.ids[f"<|{role}|>"], *self._content(content.strip()), self.ids[END]]
        return ids

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation that the assistant is to go on with."""
        return [*self.chat(turns), self.ids[ASSISTANT]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens leave nothing."""
        return self.bpe.decode(list(ids), skip_special_tokens=True)

    def _content(self, content: str) -> list[int]:
        return self.bpe.encode(content, add_special_tokens=False).ids

    def save(self, folder: Path, context: int) -> None:
        """Write the files that `AutoTokenizer` and vLLM read."""
        self.bpe.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, "bos_token": BEGIN,
            "eos_token": END, "pad_token": PAD, "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
            "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE,
        }  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
