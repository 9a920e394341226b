"""Rows of a data set to documents: plain text, conversations, prompts with responses, instructions. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from train.data.sources import Document
from train.model.tokenizer import Turn

DOCUMENT_BYTES = 4096  # about how much of a plain text becomes one document
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "function": "tool"}
ANSWERS = ("response", "completion", "output", "answer")
QUESTIONS = ("prompt", "instruction", "question")


def document(row: Mapping[str, Any], source: str) -> Document | None:
    """What the row says; None where it has none of the fields that are known, or nothing in them.

    Known are `messages` (or `conversations`) of role and content (or from and value), `prompt`, `instruction` or
    `question` with `response`, `completion`, `output` or `answer` and perhaps `input`, and `text` (or `content`).
    """
    for name in ("messages", "conversations"):
        if turns := conversation(row.get(name)):
            return Document(source, turns=turns)
    asked = next((row[name] for name in QUESTIONS if said(row.get(name))), None)
    answer = next((row[name] for name in ANSWERS if said(row.get(name))), None)
    if asked and answer:
        more = f"\n\n{row['input']}" if said(row.get("input")) else ""
        return Document(source, turns=(Turn("user", asked + more), Turn("assistant", answer)))
    text = next((row[name] for name in ("text", "content") if said(row.get(name))), None)
    return Document(source, text=text) if text else None


def said(value: Any) -> bool:
    """Whether it is text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def conversation(messages: Any) -> tuple[Turn, ...]:
    """Turns of a list of messages; none of what is not one."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return ()
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            return ()
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        role = ROLES.get(str(role), str(role))
        if role not in ("system", "user", "assistant", "tool") or not isinstance(content, str):
            return ()
        turns.append(Turn(role, content))
    return tuple(turns)


def json_rows(content: bytes) -> Iterator[dict[str, Any]]:
    """One object a line; a line that is none is an empty row, so that it is counted as unknown."""
    for line in content.splitlines():
        if line.strip():
            try:
                read = json.loads(line)
            except ValueError:
                read = None
            yield read if isinstance(read, dict) else {}


def passages(content: str) -> Iterator[dict[str, Any]]:
    """Plain text cut at empty lines into documents of about `DOCUMENT_BYTES`."""
    held: list[str] = []
    for paragraph in content.split("\n\n"):
        held.append(paragraph)
        if sum(map(len, held)) >= DOCUMENT_BYTES:
            yield {"text": "\n\n".join(held).strip("\n")}
            held = []
    yield {"text": "\n\n".join(held).strip("\n")}
