"""A ChatEngine whose model is arithmetic: one token a byte, the next one a hash of all before. Keeps the contract."""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Sequence

from serve_apps.chat.engine import Delta, Finish, Loaded, ModelRef, Sampling, TokenLogprob, Turn
from serve_apps.chat.history import fit

LETTERS = "abcdefghijklmnopqrstuvwxyz "


class ScriptedEngine:
    """`fails_after` tokens it raises `failure`; `gate` holds every step until it is set."""

    def __init__(self) -> None:
        self.running = 0
        self.prompts: list[list[Turn]] = []
        self.failure: Exception | None = None
        self.fails_after = 0
        self.gate: asyncio.Event | None = None

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        return list("".join(f"{turn.role[0]}:{turn.content}\n" for turn in turns).encode())

    async def generate(
        self, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
    ) -> AsyncGenerator[Delta | Finish, None]:
        prompt = fit(messages, self.encode, model.context_length, sampling.max_tokens)
        self.prompts.append(list(messages))
        self.running += 1
        try:
            sent, text, odds, reason = 0, "", [], "length"
            for count in range(prompt.max_tokens):
                if self.failure is not None and count >= self.fails_after:
                    raise self.failure
                if self.gate is not None:
                    await self.gate.wait()
                await asyncio.sleep(0)
                digest = hashlib.sha256(bytes(token % 256 for token in prompt.token_ids) + text.encode()).digest()
                token = LETTERS[digest[0] % len(LETTERS)]
                text += token
                odds.append((1 + digest[1]) / 256)
                if any(stop in text for stop in sampling.stop):
                    text, reason = text[: min(text.index(stop) for stop in sampling.stop if stop in text)], "stop"
                    break
                if sampling.stream and not sampling.stop:
                    yield Delta(text[sent:], (ord(token),), entries(token, odds[-1], sampling.logprobs))
                    sent = len(text)
            if text[sent:]:
                yield Delta(text[sent:], tuple(text[sent:].encode()), None)
            yield Finish(
                "stop" if reason == "stop" else "length", len(prompt.token_ids), len(odds),
                sum(odds) / len(odds) if sampling.measure else None, prompt.dropped,
                prompt.max_tokens if (sampling.max_tokens or 0) > prompt.max_tokens else None,
            )  # fmt: skip
        finally:
            self.running -= 1

    def loaded(self) -> list[Loaded]:
        return [Loaded("key", "model", "scripted", 1.0, self.running, 256, 0.0)]

    @property
    def progress(self) -> dict[str, float]:
        return {}

    async def close(self) -> None:
        return None


def entries(token: str, odds: float, wanted: int | None) -> tuple[TokenLogprob, ...] | None:
    if wanted is None:
        return None
    top = tuple((token + str(i), math.log(odds) - i) for i in range(wanted))
    return (TokenLogprob(token, math.log(odds), top),)
