"""The shape of a small Llama, and the table that `target_architecture` chooses from. No torch: the gateway reads it."""

from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import Invalid


@dataclass(frozen=True)
class Shape:
    """Everything that the weights' shapes follow from. Heads are 32 or 64 wide, which vLLM's CPU attention takes."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    vocab_size: int = 2048
    context: int = 512  # tokens
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """How many weights such a model has; the embedding is also the output matrix."""
        block = 4 * self.width**2 + 3 * self.width * self.feed_forward + 2 * self.width
        return self.vocab_size * self.width + self.layers * block + self.width


ARCHITECTURES = {  # rising size; the parameter counts in the names are for a vocabulary of 2048
    "llama-1m": Shape(width=128, layers=4, heads=4, feed_forward=352),
    "llama-3m": Shape(width=192, layers=6, heads=6, feed_forward=512),
    "llama-6m": Shape(width=256, layers=7, heads=8, feed_forward=688),
    "llama-25m": Shape(width=448, layers=10, heads=7, feed_forward=1200),
    "llama-100m": Shape(width=768, layers=14, heads=12, feed_forward=2048),
}


def choose(target: str, budget: int, vocab_size: int, context: int) -> Shape:
    """The architecture of that name; `auto` takes the largest with at most `budget` parameters. Raises `Invalid`."""
    shapes = {name: replace(shape, vocab_size=vocab_size, context=context) for name, shape in ARCHITECTURES.items()}
    if target == "auto":
        fitting = [shape for shape in shapes.values() if shape.parameters <= budget]
        if not fitting:
            smallest = next(iter(shapes.values())).parameters
            raise Invalid("no architecture is that small", field="parameter_budget", minimum=smallest)
        return fitting[-1]
    if target not in shapes:
        raise Invalid(f"no architecture {target}", field="target_architecture", allowed_values=["auto", *ARCHITECTURES])
    return shapes[target]


def hf_config(shape: Shape, tokens: dict[str, int]) -> dict[str, Any]:
    """The `config.json` that transformers and vLLM read for this shape; `tokens` gives the special tokens' ids."""
    return {
        "aivillage": True, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape.vocab_size,
        "hidden_size": shape.width, "intermediate_size": shape.feed_forward, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads, "head_dim": shape.head_width,
        "max_position_embeddings": shape.context, "rope_theta": shape.rope_theta, "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "initializer_range": 0.02, "use_cache": True, "dtype": "float32", **tokens,
    }  # fmt: skip
