"""Identifiers: a prefix that says what the thing is, and 96 random bits."""

import secrets


def new_id(prefix: str) -> str:
    """`new_id("task")` -> `task_` and 24 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(12)}"
