"""Who writes a knowledge answer: the model that is served, where what was measured of it is good enough."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import structlog

from cluster.errors import VillageError
from cluster.identity.model import Principal
from rag.model import Answer, AnswerMode, Writer
from serve_apps.chat.engine import Delta, Sampling, Turn
from serve_apps.core import Core
from train.registry import Model

log = structlog.get_logger()
MAX_TOKENS = 256


async def offered(core: Core, who: Principal) -> Writer | None:
    """The default chat model as a writer; None where none is served just now."""
    try:
        ref = await core.chat.model(who)
    except VillageError:
        return None
    record = await core.store.find(Model, ref.model_id)
    if record is None:
        # A checkpoint from elsewhere: two bytes a parameter, as they are shipped; nobody here measured its loss.
        return Writer(ref.name, ref.size_bytes // 2)
    return Writer(record.name, record.parameters, record.metrics.get("held_out_loss"))


async def written(core: Core, who: Principal, answer: Answer) -> Answer:
    """The answer in the model's words where it has a prompt for one; as it is where the model fails."""
    if not answer.prompt:
        return answer
    try:
        _, steps = await core.chat.complete(
            who, "", [Turn("user", answer.prompt)], Sampling(max_tokens=MAX_TOKENS, temperature=0.0)
        )
        text = await _text(steps)
    except VillageError as error:
        log.warning("the model could not write an answer", reason=error.message)
        text, why = "", f"the model could not write it: {error.message}"
    else:
        why = "the model wrote nothing"
    if not text:
        return replace(answer, prompt="", answer_mode=AnswerMode.EXTRACTIVE, answer_mode_reason=why)
    return replace(answer, prompt="", answer=text)


async def _text(steps: AsyncGenerator[Any, None]) -> str:
    parts = []
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Delta):
                parts.append(step.text)
    return "".join(parts).strip()
