"""Callables that every village has, as configs/workers.yaml names them; more come from the operator's own packages."""

import hashlib
from typing import Any

from cluster.workers.work import Job


def echo(input_data: dict[str, Any], job: Job) -> dict[str, Any]:
    """The input, unchanged: for trying out and for measuring what a task costs without any work."""
    return input_data


def count_words(input_data: dict[str, Any], job: Job) -> dict[str, int]:
    """Characters, words and lines of `text`."""
    text = str(input_data["text"])
    return {"characters": len(text), "words": len(text.split()), "lines": len(text.splitlines())}


def digest(input_data: dict[str, Any], job: Job) -> dict[str, str]:
    """The SHA-256 of `text`, in hexadecimal."""
    return {"sha256": hashlib.sha256(str(input_data["text"]).encode()).hexdigest()}
