"""Small facts about routes that Starlette does not keep for us."""

import re
from collections.abc import Iterable
from typing import Any

from starlette.routing import Match
from starlette.types import Scope


def template(path: str) -> str:
    """A path with its parameters' names taken out, so that two spellings of one endpoint compare equal."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def order(route: Any) -> tuple[str, ...]:
    """Sort key: at each segment a literal comes before a parameter."""
    return tuple("\x7f" if segment.startswith("{") else segment for segment in route.path.split("/"))


def allowed_methods(routes: Iterable[Any], scope: Scope) -> list[str]:
    """Every method that some route takes on this path, for the `Allow` header."""
    matching = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})
