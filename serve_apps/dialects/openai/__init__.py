"""OpenAI: the face for the clients that people already have."""

from serve_apps.dialects.openai import routes_chat, routes_models
from serve_apps.dialects.openai.errors import CODES, error_body, limit_headers
from serve_apps.kit.dialect import Dialect

OPENAI = Dialect(
    name="OpenAI",
    tag="OpenAI",
    owns=("/openai/",),
    routers=(routes_chat.router, routes_models.router),
    codes=CODES,
    error_body=error_body,
    limit_headers=limit_headers,
)
