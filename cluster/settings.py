"""Process settings: environment variables `VILLAGE_*`, read once per process, then passed."""

import hashlib
import ipaddress
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SOCKET_PATH_LIMIT = 70  # sun_path holds 108 bytes; file names of ours take the rest


class Settings(BaseSettings):
    """Everything that a deployment may set. Empty `redis_url` or `ray_address` means: start one here."""

    model_config = SettingsConfigDict(env_prefix="VILLAGE_", frozen=True, extra="ignore")

    home: Path = Path(".village")
    profile: Literal["dev", "production"] = "dev"
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    farm_port: int = Field(default=8765, ge=0, le=65535)
    dashboard_port: int = Field(default=8265, ge=1, le=65535)
    ray_port: int = Field(default=6379, ge=1, le=65535)
    redis_url: str = ""
    redis_fsync: Literal["everysec", "always"] = "everysec"
    ray_address: str = ""
    admin_username: str = "admin@village.local"
    admin_password: str = ""
    chat_model: str = "seedling"
    chat_memory_mb: int = Field(default=2048, ge=256)  # what all loaded chat models may hold together
    chat_kv_mb: int = Field(default=256, ge=16)  # key-value cache of each loaded model
    chat_threads: int = Field(default=0, ge=0)  # OpenMP threads of an engine on a CPU; 0: one less than there are cores
    chat_api_key: str = ""  # for `chat_model=openai:URL`
    forge_open: bool = False
    trusted_proxies: str = ""  # networks whose X-Forwarded-For is believed, as in "10.0.0.0/8, 192.0.2.7"
    audit_keep_days: float = Field(default=30, ge=0)  # then entries of the audit log move from Redis to the archive
    audit_keep_entries: int = Field(default=50_000, ge=0)  # and sooner where there are more: 1.7 KB each
    tasks_keep_days: float = Field(default=7, ge=0)  # then tasks that have ended move from Redis to the archive
    tasks_keep: int = Field(default=200_000, ge=0)  # and sooner where more have ended
    farm_lease_seconds: float = Field(default=30, ge=0.1, le=3600)  # a farm client so long silent loses its rank
    farm_upload_mb: int = Field(default=2048, ge=1)  # of one checkpoint that a farm client uploads
    otlp_endpoint: str = ""  # where an OpenTelemetry collector takes OTLP over HTTP; empty: no traces
    otlp_ratio: float = Field(default=1.0, ge=0, le=1)  # share of the requests that are traced
    workers_config: Path = ROOT / "configs" / "workers.yaml"  # which callables the village's own workers run
    access_log: bool = False  # a log line for each request

    @field_validator("trusted_proxies")
    @classmethod
    def _networks_only(cls, value: str) -> str:
        networks(value)
        return value

    def model_post_init(self, _: object) -> None:
        """Paths are absolute from here on: actors and jobs run in other folders."""
        object.__setattr__(self, "home", self.home.expanduser().resolve())
        object.__setattr__(self, "workers_config", self.workers_config.expanduser().resolve())

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """Where proxies are that are believed."""
        return networks(self.trusted_proxies)

    @property
    def run_dir(self) -> Path:
        """Where sockets lie: the home's `run`, or a short path where the home's is too long for a socket."""
        wanted = self.home / "run"
        if len(str(wanted)) <= SOCKET_PATH_LIMIT:
            return wanted
        short = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"village-{short}"

    @property
    def embedded_redis(self) -> bool:
        """Whether `village up` runs the Redis server itself."""
        return not self.redis_url

    @property
    def redis(self) -> str:
        """The URL that every store connects to."""
        return self.redis_url or f"unix://{self.run_dir}/redis.sock"

    @property
    def ray(self) -> str:
        """Where the Ray cluster's control store answers."""
        return self.ray_address or f"127.0.0.1:{self.ray_port}"

    @property
    def dashboard(self) -> str:
        """Where the cluster's job server and Serve's REST API answer: on the head node."""
        return f"http://{self.ray.rpartition(':')[0]}:{self.dashboard_port}"

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return f"http://{self.host}:{self.port}"

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for processes that Ray starts."""
        fields = self.model_dump(mode="json", exclude={"admin_password"})
        return {f"VILLAGE_{name.upper()}": str(value) for name, value in fields.items()}


def networks(listed: str) -> tuple[Network, ...]:
    """`10.0.0.0/8, 192.0.2.7` as networks. Raises ValueError for what is none."""
    return tuple(ipaddress.ip_network(part.strip()) for part in listed.split(",") if part.strip())
