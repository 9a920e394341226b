"""The eight phases of the forge, in order. Adding one: a file beside this one, and its class here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.errors import Invalid, NotBuilt
from cluster.settings import ROOT
from train.phases.cognate import Cognate
from train.phases.phase import Phase


@dataclass(frozen=True)
class Entry:
    """A phase as it is known from outside; `phase` is None until it is built."""

    name: str
    what: str
    paper: str
    phase: type[Phase[Any]] | None = None
    aliases: tuple[str, ...] = ()


PHASES = (
    Entry("cognate", "a tokenizer and a model from nothing", "arXiv:2405.20233", Cognate),
    Entry("evomerge", "evolutionary merging of models", "arXiv:2403.13187"),
    Entry("quietstar", "thinking before speaking", "arXiv:2403.09629"),
    Entry("bitnet", "ternary weights", "arXiv:2402.17764"),
    Entry("training", "curriculum training", "arXiv:2405.20233", aliases=("forge_training",)),
    Entry("tool_baking", "prompts and tools baked into weights", "arXiv:2409.13697"),
    Entry("adas", "automated design of agentic systems", "arXiv:2408.08435"),
    Entry("final_compression", "compression for delivery", "arXiv:2410.10714"),
)


def entry(name: str) -> Entry:
    """The phase of that name or alias. Raises `Invalid` with the names there are."""
    for known in PHASES:
        if name == known.name or name in known.aliases:
            return known
    raise Invalid(f"no phase {name}", field="phase_name", value=name, allowed_values=[known.name for known in PHASES])


def phase(name: str, parameters: dict[str, Any]) -> Phase[Any]:
    """The phase, configured and checked; what `parameters` leave out comes from `configs/phases/<name>.yaml`.

    Raises `Invalid`, or `NotBuilt` for a phase that is not there yet.
    """
    known = entry(name)
    if known.phase is None:
        raise NotBuilt(f"phase {known.name} is not built yet", phase=known.name)
    try:
        config = known.phase.Config.model_validate(values(known.name) | parameters)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise Invalid(f"{field}: {first['msg']}", field=field, errors=problems) from error
    made = known.phase(config)
    made.check()
    return made


def values(name: str, folder: Path = ROOT / "configs" / "phases") -> dict[str, Any]:
    """The values of `configs/phases/<name>.yaml`."""
    return yaml.safe_load((folder / f"{name}.yaml").read_text()) or {}
