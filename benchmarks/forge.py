"""The forge's speed: `python -m benchmarks.forge` runs each of these by itself, so that none warms up for another.

`forge_worker`: the loop inside its Ray worker beside a plain PyTorch loop. `forge_nanogpt`: loop and model beside
nanoGPT's. `forge_gpu`: the step of a 124 M model, where there is a GPU. `forge_overhead RUN` tells where a run's time
went and needs a run that is over; `merging` is evomerge's.
"""

import subprocess
import sys

PARTS = ("forge_worker", "forge_nanogpt")
ON_A_GPU = ("forge_gpu",)


def main() -> None:
    """In turn; a failure of one does not keep the others from running."""
    import torch

    failed = []
    for name in PARTS + (ON_A_GPU if torch.cuda.is_available() else ()):
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
