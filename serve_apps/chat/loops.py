"""An async generator of one thread's event loop, read on another's."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def across(
    loop: asyncio.AbstractEventLoop, steps: Callable[[], AsyncGenerator[T, None]]
) -> AsyncGenerator[T, None]:
    """An async generator that runs on another thread's event loop: the engine's, for a call that Serve runs on its own.

    Closing this one closes that one.
    """
    here = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def tell(what: str, value: Any = None) -> None:
        with suppress(RuntimeError):  # this loop may be closed already: nobody is left to tell
            here.call_soon_threadsafe(queue.put_nowait, (what, value))

    async def pump() -> None:
        try:
            async with aclosing(steps()) as there:
                async for step in there:
                    tell("step", step)
        except Exception as error:
            tell("error", error)
        else:
            tell("end")

    pumping = asyncio.run_coroutine_threadsafe(pump(), loop)
    try:
        while (told := await queue.get())[0] == "step":
            yield told[1]
        if told[0] == "error":
            raise told[1]
    finally:
        pumping.cancel()
