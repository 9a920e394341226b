"""`village user` and `village keys`, as typed."""

import asyncio
import io
import sys

import pytest

from cluster.cli.main import main
from cluster.events.model import Event
from cluster.identity.records import User
from cluster.identity.service import Identity
from cluster.store import Store

PASSWORD = "correct horse"


@pytest.fixture
def village(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path, capsys):
    """`village("user add ann", stdin)` -> exit status, output, error; over an empty store."""
    monkeypatch.setenv("VILLAGE_REDIS_URL", redis_url)
    monkeypatch.setenv("VILLAGE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    asyncio.run(with_store(redis_url, lambda store: store._redis.flushall()))

    def run(line: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["village", *line.split()])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


async def with_store(url: str, work):
    store = Store(url)
    try:
        return await work(store)
    finally:
        await store.close()


def ann(url: str) -> User:
    return asyncio.run(with_store(url, lambda store: Identity(store).named("ann")))


def test_a_users_life(village, redis_url):
    assert village("user add ann --tier premium", f"{PASSWORD}\n")[:2] == (0, "made ann (premium; read, write)\n")
    assert village("user scopes ann read tasks:write")[1] == "ann may read, tasks:write\n"
    assert village("user tier ann enterprise")[1] == "ann is enterprise\n"
    assert village("user disable ann")[0] == 0 and ann(redis_url).disabled
    status, listed, _ = village("user list --status disabled")
    assert status == 0 and "ann" in listed and "enterprise" in listed
    assert "ann" not in village("user list --status active")[1]
    assert village("user enable ann")[0] == 0 and not ann(redis_url).disabled
    assert village("user passwd ann", "another horse\n")[0] == 0
    signed_in = asyncio.run(with_store(redis_url, lambda store: Identity(store).token("ann", "another horse")))
    assert signed_in.scopes == ["read", "tasks:write"]
    shown = village("user show ann")[1]
    assert "tier: enterprise" in shown and "argon2" not in shown
    assert village("user remove ann")[1] == "ann is removed; 0 API keys of their clients are active\n"
    assert village("user show ann") == (1, "", "village: no user ann\n")


@pytest.mark.parametrize(
    ("line", "typed", "why"),
    [
        ("user add ann", "short\n", "8 to 1024 characters"), ("user add ann --scope fly", "correct horse\n", "fly"),
        ("user disable nobody", "", "no user nobody"), ("user passwd nobody", "correct horse\n", "no user nobody"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line(village, line, typed, why):
    status, out, err = village(line, typed)
    assert (status, out) == (1, "") and err.startswith("village: ") and why in err and err.count("\n") == 1


def test_what_the_command_line_does_is_told_with_who_did_it(village, redis_url):
    village("user add ann", f"{PASSWORD}\n")
    events: list[Event] = asyncio.run(with_store(redis_url, lambda store: store.events()))
    assert [event.kind for event in events] == ["user.created"]
    assert events[0].origin is not None and events[0].origin.principal_id == "cli" and events[0].origin.username


def test_signing_secrets_rotate(village):
    first = village("keys rotate")[1].splitlines()
    assert len(first) == 2 and first[0].endswith(": signs") and "good until" in first[1]
    assert len(village("keys rotate --now")[1].splitlines()) == 1
