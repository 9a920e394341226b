"""Which messages a prompt keeps. Pure: counting tokens is an argument."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.errors import Invalid
from serve_apps.chat.engine import Turn

ANSWER_SHARE = 4  # history leaves at least a quarter of the context to the answer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What goes to the model: `token_ids` of the kept turns, how many were dropped, and room for the answer."""

    token_ids: list[int]
    dropped: int
    max_tokens: int


def fit(
    messages: Sequence[Turn],
    encode: Callable[[Sequence[Turn]], list[int]],
    context: int,
    max_tokens: int | None,
) -> Prompt:
    """The newest messages that leave room to answer in `context` tokens; system messages and the last one stay.

    Raises `Invalid` when those alone leave no room for a single token.
    """
    if not messages:
        raise Invalid("there is no message to answer", field="messages")
    wanted = min(max_tokens or context, max(1, context // ANSWER_SHARE))
    old = [index for index, turn in enumerate(messages[:-1]) if turn.role != "system"]

    def without(count: int) -> list[int]:
        gone = set(old[:count])
        return encode([turn for index, turn in enumerate(messages) if index not in gone])

    token_ids, dropped = without(0), 0
    if len(token_ids) + wanted > context and old:
        # Bisect: a prompt with fewer messages is never longer.
        low, high = 1, len(old)
        while low < high:
            middle = (low + high) // 2
            if len(without(middle)) + wanted <= context:
                high = middle
            else:
                low = middle + 1
        token_ids, dropped = without(low), low
    room = context - len(token_ids)
    if room < 1:
        raise Invalid(
            f"the prompt has {len(token_ids)} tokens and the model's context {context}",
            field="messages", prompt_tokens=len(token_ids), context_length=context,
        )  # fmt: skip
    return Prompt(token_ids, dropped, min(max_tokens or room, room))
