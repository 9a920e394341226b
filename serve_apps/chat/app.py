"""Chat across Ray: a replica without an engine reaches one that has it over a Serve handle, token by token."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import Unavailable, VillageError
from serve_apps.chat.engine import Delta, Finish, Loaded, ModelRef, Sampling, Turn


class RemoteEngine:
    """`ChatEngine` over the handle of a deployment whose `generate` is the same async generator.

    It is for what gateway replicas and agents ask now and then; the front door sends chat itself to a chat replica.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._generate = handle.options(method_name="generate", stream=True)

    async def generate(
        self, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
    ) -> AsyncGenerator[Delta | Finish, None]:
        """See `ChatEngine`. Closing the iterator cancels the call, which aborts the request over there."""
        response: Any = self._generate.remote(model, list(messages), sampling)
        ended = False
        try:
            async for step in response:
                ended = isinstance(step, Finish)
                yield step
        except RayTaskError as error:
            ended = True
            if isinstance(error.cause, VillageError):
                raise error.cause from None
            raise Unavailable("the chat replica failed at this request", component="chat") from error
        except (RayError, RayServeException) as error:
            ended = True
            raise Unavailable("the chat replica is away", component="chat") from error
        finally:
            if not ended:
                response.cancel()

    def loaded(self) -> list[Loaded]:
        """Nothing here."""
        return []

    @property
    def progress(self) -> dict[str, float]:
        """Nothing here."""
        return {}

    async def close(self) -> None:
        """Nothing to give back."""
