"""Byte-level BPE trained on the corpus, in the Hugging Face format, with the chat's special tokens and template."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers

PAD, BEGIN, END, SYSTEM, USER, ASSISTANT, TOOL, THINK, THOUGHT, CALL, CALLED = SPECIAL = (
    "<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|tool|>",  # the role of a tool's answer
    "<|think|>", "<|thought|>",  # around a thought
    "<|call|>", "<|called|>",  # around a tool call: {"name": ..., "arguments": {...}}
)  # fmt: skip
THINKS = "thinks"  # in tokenizer_config.json: prompts end with THINK
MARKS = (THINK, THOUGHT, CALL, CALLED)  # what an assistant's turn may have inside
TEMPLATE = (
    "{{ bos_token }}"
    # A request's tools stand in the system turn in the short form of `train.tools.described`.
    "{% if tools %}{% set known %}Tools: {% for tool in tools %}{% set function = tool['function'] or tool %}"
    "{{ function['name'] }}({{ ((function['parameters'] or {})['properties'] or {}) | join(', ') }})"
    "{{ ', ' if not loop.last }}{% endfor %}{% endset %}{% endif %}"
    "{% if tools and messages[0]['role'] != 'system' %}{{ '<|system|>' + known + eos_token }}{% endif %}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% set said = (message['content'] or '') | trim %}"
    "{{ said }}{% if tools and loop.first and message['role'] == 'system' %}{{ '\n' if said }}{{ known }}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}{% set function = call['function'] or call %}"
    "{% set arguments = function['arguments'] %}"
    '<|call|>{"name": {{ function["name"] | tojson }}, "arguments": '
    "{{ arguments if arguments is string else arguments | tojson }}}<|called|>"
    "{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING_TEMPLATE = TEMPLATE.replace(ASSISTANT, ASSISTANT + THINK)  # every reply begins with a thought


SPLIT = re.compile("(" + "|".join(re.escape(mark) for mark in MARKS) + ")")


class Turn(NamedTuple):
    """One message of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


class Tokenizer:
    """Text and conversations to ids and back. Marks are known in an assistant's turns only: no other content is one."""

    def __init__(self, bpe: Bpe, thinks: bool = False) -> None:
        self.bpe = bpe
        self.thinks = thinks  # whether the model's replies begin with a thought
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
        path = folder / "tokenizer_config.json"  # a farm's task brings none
        settings = json.loads(path.read_text()) if path.exists() else {}
        return cls(cls.read(folder / "tokenizer.json"), bool(settings.get(THINKS)))

    @staticmethod
    def read(path: Path) -> Bpe:
        """What `save` wrote in one file."""
        return Bpe.from_file(str(path))

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
            inside = self.marked(content.strip()) if role == "assistant" else self._content(content.strip())
            ids += [self.ids[f"<|{role}|>"], *inside, self.ids[END]]
        return ids

    def marked(self, content: str) -> list[int]:
        """Ids of an assistant's words, with thoughts and calls between their marks."""
        parts = SPLIT.split(content)
        return [i for part in parts if part for i in ([self.ids[part]] if part in MARKS else self._content(part))]

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation that the assistant is to go on with, by a thought first where the model thinks."""
        return [*self.chat(turns), self.ids[ASSISTANT], *([self.ids[THINK]] if self.thinks else [])]

    def decode(self, ids: Sequence[int], marks: bool = False) -> str:
        """Text of the ids; special tokens leave nothing, or with `marks` their names."""
        return self.bpe.decode(list(ids), skip_special_tokens=not marks)

    def _content(self, content: str) -> list[int]:
        return self.bpe.encode(content, add_special_tokens=False).ids

    def save(self, folder: Path, context: int) -> None:
        """Write the files that `AutoTokenizer` and vLLM read."""
        self.bpe.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, "bos_token": BEGIN,
            "eos_token": END, "pad_token": PAD, "additional_special_tokens": list(SPECIAL[3:]),
            "clean_up_tokenization_spaces": False, "chat_template": THINKING_TEMPLATE if self.thinks else TEMPLATE,
        } | ({THINKS: True} if self.thinks else {})  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
