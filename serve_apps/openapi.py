"""`python -m serve_apps.openapi FILE`: the OpenAPI document as the code describes it (`make openapi`)."""

import json
import sys
from pathlib import Path
from typing import Any

from serve_apps.dialects import DIALECTS
from serve_apps.kit.openapi import merged


def document() -> dict[str, Any]:
    """The document, without a village."""
    return merged([dialect.app(None) for dialect in DIALECTS])


def text(told: dict[str, Any]) -> str:
    """As it is committed."""
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(document()))
