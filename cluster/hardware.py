"""What this machine's processor or accelerator does by itself."""

from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp32"]  # auto: bf16 where the hardware has it


@cache
def native_bf16(device: "torch.device") -> bool:
    """Whether bf16 is computed by the hardware; elsewhere it is emulated, and an order slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def computed_in(precision: str, device: "torch.device") -> Literal["bf16", "fp32"]:
    """What `precision` comes to on the device."""
    return "bf16" if precision == "bf16" or (precision == "auto" and native_bf16(device)) else "fp32"
