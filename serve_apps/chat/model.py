"""Conversations, as the store keeps them. Pure."""

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from cluster.store import Index, Record
from serve_apps.chat.engine import Turn

KEPT = 64  # newest messages of a conversation that are stored: more than a small model's context ever holds
TITLE = 80  # characters of the first message


class Message(BaseModel):
    """One message. `complete` is false for a reply that was cut short: by its reader, or by a fault."""

    model_config = ConfigDict(frozen=True)

    role: Literal["user", "assistant"]
    content: str
    at: datetime
    tokens: int = 0  # of a reply, as the engine counted them
    complete: bool = True


class Conversation(Record):
    """What was said. `message_count` counts all of it, `messages` holds the newest `KEPT`."""

    kind: ClassVar[str] = "conversation"
    indexes: ClassVar[tuple[Index, ...]] = (Index("owner", lambda c: c.updated_at.timestamp(), lambda c: [(c.owner,)]),)

    conversation_id: str
    owner: str
    model_id: str
    title: str = ""
    created_at: datetime
    updated_at: datetime
    message_count: int = 0
    messages: tuple[Message, ...] = ()

    def turns(self) -> list[Turn]:
        """The conversation as a prompt."""
        return [Turn(message.role, message.content) for message in self.messages]


def said(before: Conversation, model_id: str, question: Message, answer: Message) -> Conversation:
    """The conversation with one exchange more."""
    return before.model_copy(
        update={
            "model_id": model_id,
            "title": before.title or " ".join(question.content.split())[:TITLE],
            "updated_at": answer.at,
            "message_count": before.message_count + 2,
            "messages": (*before.messages, question, answer)[-KEPT:],
        }
    )
