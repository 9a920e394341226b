"""What a task asks of a machine, and what a machine says that it has. Memory in MB."""

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(frozen=True)


class Requirements(Frozen):
    """What a client must have free. Memory in MB; GPU memory on one GPU."""

    min_gpu_memory: int = Field(default=0, ge=0, le=10**9)
    min_cpu_cores: int = Field(default=0, ge=0, le=10**6)
    min_ram: int = Field(default=0, ge=0, le=10**9)


class System(Frozen):
    """Usage of a client's machine in percent; None where it did not say."""

    cpu_usage: float | None = Field(default=None, ge=0, le=100)
    ram_usage: float | None = Field(default=None, ge=0, le=100)
    gpu_usage: float | None = Field(default=None, ge=0, le=100)


class Cpu(Frozen):
    """A client's processor."""

    cores: int = Field(ge=0, le=10**6)
    usage: float | None = Field(default=None, ge=0, le=100)


class Memory(Frozen):
    """In MB."""

    total: float = Field(ge=0, le=10**12)
    used: float = Field(default=0, ge=0, le=10**12)

    @property
    def free(self) -> float:
        """What is left."""
        return max(0.0, self.total - self.used)


class Gpu(Frozen):
    """One GPU of a client."""

    id: int = Field(default=0, ge=0, le=10**6)
    name: str = Field(default="", max_length=200)
    memory: Memory


class Resources(Frozen):
    """What a client says that its machine has."""

    cpu: Cpu | None = None
    ram: Memory | None = None
    gpu: tuple[Gpu, ...] = Field((), max_length=64)
