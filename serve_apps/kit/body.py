"""Bodies: read once, bounded, and strictly JSON where a route takes JSON, before anything else looks at them."""

from fastapi.exceptions import RequestValidationError
from pydantic_core import from_json
from starlette.types import Message, Receive, Scope

from cluster.errors import TooLarge, UnsupportedMedia

MAX_BYTES = 8 << 20  # of a JSON body; files have limits of their own


def header(scope: Scope, name: bytes) -> str:
    """The first header of that name, "" without one."""
    return next((value.decode("latin-1") for n, value in scope["headers"] if n == name), "")


async def read(scope: Scope, receive: Receive, most: int = MAX_BYTES) -> bytes:
    """The whole body. Raises `TooLarge`, by its own word before a byte is read."""
    told = header(scope, b"content-length")
    if told.isdecimal() and int(told) > most:
        raise too_large(most)
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > most:
            raise too_large(most)
        if not message.get("more_body"):
            break
    return b"".join(chunks)


def too_large(most: int) -> TooLarge:
    """The error for a body that is over the limit."""
    return TooLarge(f"the body is longer than {most} bytes", field="body", max_bytes=most)


def check_json(scope: Scope, body: bytes) -> None:
    """Return if the body is JSON and says so. Raises `UnsupportedMedia`, `RequestValidationError`.

    Stricter than the parser that follows: no NaN or Infinity, no lone surrogates, no invalid UTF-8, and no nesting or
    number that would be somebody else's stack overflow.
    """
    if not body:
        return
    media = header(scope, b"content-type").partition(";")[0].strip().lower()
    if media and media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMedia(
            f"this route takes application/json, not {media[:100]}", field="Content-Type",
            allowed_values=["application/json"],
        )  # fmt: skip
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        fault = {"type": "json_invalid", "loc": ("body", 0), "msg": "JSON decode error", "ctx": {"error": str(error)}}
        raise RequestValidationError([fault]) from error


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body again, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
