"""The first admin: every village has one, and says where the password is."""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

from cluster.errors import AlreadyExists, NotFound
from cluster.identity.records import User, user_id
from cluster.identity.service import Identity
from cluster.settings import Settings

SCOPES = frozenset({"read", "write", "admin"})


async def ensure_admin(identity: Identity, settings: Settings) -> Path | None:
    """Make the admin if there is none; the file that holds a made-up password, or None where the settings gave one.

    Idempotent, and safe to kill: the file is durable before the user exists, and a user made later takes its password.
    """
    name, file = settings.admin_username, settings.home / "admin.json"
    if settings.admin_password:
        await _with_password(identity, name, settings.admin_password)
        file.unlink(missing_ok=True)  # it would tell a password that is no longer the admin's
        return None
    kept = _read(file, name)
    if await identity.store.find(User, user_id(name)) is None:
        if not kept:
            kept = secrets.token_urlsafe(18)
            _write(file, name, kept)
        await _with_password(identity, name, kept)
    return file


async def _with_password(identity: Identity, name: str, password: str) -> None:
    try:
        await identity.create_user(name, password, SCOPES, "enterprise")
    except AlreadyExists:
        if not await identity.holds(name, password):
            with suppress(NotFound):  # removed on purpose; another admin is there, or `village user add` makes one
                await identity.set_password(name, password)


def _read(file: Path, username: str) -> str:
    try:
        kept = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return ""
    return kept.get("password", "") if kept.get("username") == username else ""


def _write(file: Path, username: str, password: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump({"username": username, "password": password}, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(fresh, file)
