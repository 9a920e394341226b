"""Envelopes: a dialect that wraps its answers gives its routers a route class that does it."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.requests import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from serve_apps.kit.call import Call, call_of

Envelope = Callable[[bytes, Call], bytes]
UNSAID = "Successful Response"  # FastAPI's own description, which is no message


def enveloped(envelope: Envelope) -> type[APIRoute]:
    """A route class whose JSON answers leave in `envelope(body, call)`. Streams and files pass as they are.

    The body arrives as JSON bytes and stays so: the envelope is written around it, nothing is parsed again.
    """

    class Enveloped(APIRoute):
        wraps = True  # the merged OpenAPI document shows the envelope too

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            message = "" if self.response_description == UNSAID else self.response_description

            async def wrapped(request: Request) -> Response:
                response = await handle(request)
                body = getattr(response, "body", None)
                if not body or not response.headers.get("content-type", "").startswith("application/json"):
                    return response
                call = call_of(request.scope)
                call.message = call.message or message
                response.body = envelope(body, call)
                response.headers["content-length"] = str(len(response.body))
                return response

            return wrapped

    return Enveloped
