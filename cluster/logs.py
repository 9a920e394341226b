"""Log lines of every process: one JSON object each on standard error, with the request and the trace that it is of.

`request_id`, `principal_id` and `trace_id` come from the `Origin` of what the process works on, so a request's lines
are found in whichever process wrote them. What looks like a credential is blotted out of the finished line.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, BinaryIO

import orjson
import structlog
from structlog.stdlib import ProcessorFormatter

from cluster import tracing
from cluster.origin import current

Fields = MutableMapping[str, Any]
QUIET = {"httpx": logging.WARNING, "httpcore": logging.WARNING, "opentelemetry": logging.ERROR}  # a line per request
# Possessive throughout: a caller's own words are among what is searched, and must not make it slow.
SECRET = re.compile(
    rb"""(?ix)
    ( (?: password | secret | token | authorization | api[_-]key | (?:totp|mfa)_code ) [\\"']*+ \s*+ [:=] \s*+ )
        (?: \\*+" [^"\\]*+ | ' [^'\\]*+ | (?:bearer\s++)? [^\s"'\\&,}]++ )
    | bearer\s++[\w.~+/=-]{8,} | ains_[\w-]{20,} | whsec_[\w+/=]{16,} | eyJ[\w-]{8,500}+\.[\w-]++\.[\w-]++
    """
)
SIGNS = (b"password", b"secret", b"token", b"authorization", b"api", b"_code", b"bearer", b"ains_", b"whsec_", b"eyj")


def scrub(line: bytes) -> bytes:
    """The line without what looks like a password, token or key."""
    seen = line.lower()
    # Nine lines of ten have none of these words, and looking for them costs a thirtieth of the expression.
    return SECRET.sub(_blot, line) if any(sign in seen for sign in SIGNS) else line


def _blot(found: re.Match[bytes]) -> bytes:
    before = found.group(1) or b""
    opened = found.group(0)[len(before) :]
    quote = opened[: len(opened) - len(opened.lstrip(b"\\\"'"))]
    return before + quote + b"[redacted]"


def _of_whom(_: Any, __: str, fields: Fields) -> Fields:
    """Whose request it is. A field that the line names itself stays."""
    origin = current()
    if origin is not None and origin.request_id:
        fields.setdefault("request_id", origin.request_id)
        fields.setdefault("principal_id", origin.principal_id)
    if header := tracing.traceparent() or (origin.traceparent if origin is not None else ""):
        fields.setdefault("trace_id", header.split("-")[1])
    return fields


def _rendered(_: Any, __: str, fields: Fields) -> bytes:
    return scrub(orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS))


def _as_text(logger: Any, name: str, fields: Fields) -> str:
    return _rendered(logger, name, fields).decode()


class Lines(logging.StreamHandler[Any]):
    """Ours, so that configuring twice does not write each line twice."""


def configure(part: str, stream: BinaryIO | None = None) -> None:
    """Have this process, the village's `part`, log to `stream`: its standard error, unless a test wants to read."""
    # `sys.stderr` may be somebody's wrapper: Serve puts one in that writes lines of its own form.
    out: Any = stream or (sys.__stderr__ or sys.stderr).buffer
    known: Fields = {"part": part, "pid": os.getpid()}

    def whose(_: Any, __: str, fields: Fields) -> Fields:
        return {**known, **fields}

    shared: list[Callable[..., Any]] = [
        structlog.contextvars.merge_contextvars,
        whose,
        _of_whom,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # structlog's default prints every frame's locals, which are other people's passwords and prompts.
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, _rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    lines = Lines(_Text(out))
    finish = [ProcessorFormatter.remove_processors_meta, _as_text]
    before = [structlog.stdlib.add_logger_name, *shared]
    lines.setFormatter(ProcessorFormatter(foreign_pre_chain=before, processors=finish))
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, Lines)] + [lines]
    root.setLevel(logging.INFO)
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)


class _Text:
    def __init__(self, out: Any) -> None:
        self.write: Callable[[str], int] = lambda text: out.write(text.encode())
        self.flush = out.flush
