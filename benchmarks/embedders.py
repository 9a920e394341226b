"""Ways to run MiniLM, each in a process of its own: time to import and load, memory, texts per second.

python -m benchmarks.embedders        # figures -> benchmarks/results/embedders.json
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "embedders.json"
VARIANTS = [
    ("ours", "bfloat16"),
    ("ours", "float32"),
    ("transformers", "bfloat16"),
    ("sentence_transformers", "bfloat16"),
]
SENTENCE = "The manager picks a protocol for device {n} by its battery level and the state of the network."
SHORT = [SENTENCE.format(n=n) for n in range(256)]  # about 20 tokens
LONG = [" ".join(SHORT[n : n + 6]) for n in range(64)]  # about 130 tokens

Embed = Callable[[Sequence[str]], Any]


def build(variant: str, dtype: str) -> Embed:
    """The variant, ready to be called; what it imports is imported here."""
    import torch

    # The village runs one thread per call (see rag/service.py), so this is what is compared.
    torch.set_num_threads(1)
    from rag.embedding import MiniLM, minilm_folder

    if variant == "ours":
        return MiniLM(dtype=getattr(torch, dtype))
    if variant == "sentence_transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(minilm_folder()), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
        return lambda texts: model.encode(list(texts), batch_size=64)
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(minilm_folder())
    bert: Any = AutoModel.from_pretrained(minilm_folder(), dtype=getattr(torch, dtype))

    def embed(texts: Sequence[str]) -> Any:
        with torch.inference_mode():
            tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
            weight = tokens["attention_mask"].unsqueeze(-1)
            mean = (bert(**tokens).last_hidden_state.float() * weight).sum(1) / weight.sum(1)
            return torch.nn.functional.normalize(mean, dim=1).numpy()

    return embed


def measure(variant: str, dtype: str) -> dict[str, float]:
    """The figures of one variant, in this process."""
    begun = perf_counter()
    embed = build(variant, dtype)
    ready = perf_counter() - begun
    embed(SHORT[:8])
    single = []
    for text in SHORT[:50]:
        begun = perf_counter()
        embed([text])
        single.append((perf_counter() - begun) * 1000)
    rates = {}
    for name, texts in (("short", SHORT), ("long", LONG)):
        begun = perf_counter()
        for start in range(0, len(texts), 64):
            embed(texts[start : start + 64])
        rates[f"{name}_texts_per_s"] = round(len(texts) / (perf_counter() - begun), 1)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "ready_s": round(ready, 2),
        "one_text_p50_ms": round(float(np.median(single)), 2),
        "peak_mb": round(peak_mb),
    } | rates


def main() -> None:
    """Every variant, one after the other."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    found = {}
    for variant, dtype in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.embedders", variant, dtype]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[f"{variant} {dtype}"] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
