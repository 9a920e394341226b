"""Which models stay in memory. Pure."""

from collections.abc import Sequence

from serve_apps.chat.engine import Loaded

FAST_MS = 30.0  # a reader does not see steps shorter than this
FEW = 8  # streams up to which every step is sent


def leaving(loaded: Sequence[Loaded], need_mb: float, budget_mb: float) -> list[str] | None:
    """Keys of the models to unload, least recently used first, so that `need_mb` more fit; None if they never do.

    A model with running requests stays.
    """
    held = sum(model.memory_mb for model in loaded)
    gone: list[str] = []
    for model in sorted((m for m in loaded if m.running == 0), key=lambda m: -m.idle_seconds):
        if held + need_mb <= budget_mb:
            break
        gone.append(model.key)
        held -= model.memory_mb
    return gone if held + need_mb <= budget_mb else None


def stream_interval(running: int, tokens_per_second: float) -> int:
    """Tokens per Delta of a new stream: one while few run, about 30 ms' worth when a crowd shares the processor.

    `tokens_per_second` is one stream's speed as measured of late; 0 when unknown.
    """
    if running < FEW:
        return 1
    return max(1, int(tokens_per_second * FAST_MS / 1000))
