"""The eight phases of the forge, in order, and the pipelines made of them. A phase is the file that `where` names."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.errors import Invalid, NotBuilt
from cluster.settings import ROOT
from train import scale
from train.hyperparameters import corners, sampled
from train.phases.phase import Phase, PhaseConfig
from train.runs import Stage

CONFIGS = ROOT / "configs"
FIRST_ONLY = {"base_models", "datasets", "held_out", "held_out_tokens"}  # the run's, not a phase's


@dataclass(frozen=True)
class Entry:
    """A phase as it is known from outside."""

    name: str
    what: str
    paper: str
    where: str  # module:class, read when it is wanted
    aliases: tuple[str, ...] = ()

    def load(self) -> type[Phase[Any]]:
        """Its class. Raises `NotBuilt`."""
        module, _, name = self.where.partition(":")
        if find_spec(module) is None:
            raise NotBuilt(f"phase {self.name} is not built yet", phase=self.name)
        return getattr(import_module(module), name)


PHASES = (
    Entry("cognate", "a tokenizer and a model from nothing, or further training of one", "arXiv:2405.20233",
          "train.phases.cognate:Cognate"),
    Entry("evomerge", "evolutionary merging of models", "arXiv:2403.13187", "train.phases.evomerge:Evomerge"),
    Entry("quietstar", "thinking before speaking", "arXiv:2403.09629", "train.phases.quietstar:Quietstar"),
    Entry("bitnet", "ternary weights", "arXiv:2402.17764", "train.phases.bitnet:Bitnet"),
    Entry("training", "curriculum training on tasks with checkable answers", "arXiv:2405.20233",
          "train.phases.training:Training", aliases=("forge_training",)),
    Entry("tool_baking", "prompts and tools baked into weights", "arXiv:2409.13697",
          "train.phases.tool_baking:ToolBaking"),
    Entry("adas", "automated design of agentic systems", "arXiv:2408.08435", "train.phases.adas:Adas"),
    Entry("final_compression", "compression for delivery", "arXiv:2410.10714",
          "train.phases.final_compression:FinalCompression"),
)  # fmt: skip


def entry(name: str) -> Entry:
    """The phase of that name or alias. Raises `Invalid` with the names there are."""
    for known in PHASES:
        if name == known.name or name in known.aliases:
            return known
    names = [known.name for known in PHASES] + pipelines()
    raise Invalid(f"no phase {name}", field="phase_name", value=name, allowed_values=names)


def phase(name: str, parameters: dict[str, Any]) -> Phase[Any]:
    """The phase, configured and checked; what `parameters` leave out comes from `configs/phases/<name>.yaml`.

    Raises `Invalid`, or `NotBuilt` for a phase that is not there yet.
    """
    known = entry(name)
    kind = known.load()
    try:
        config = kind.Config.model_validate(values(known.name) | parameters)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise Invalid(f"{field}: {first['msg']}", field=field, phase=known.name, errors=problems) from error
    if config.scale != "auto":
        scale.known(config.scale)
    if config.search is not None:
        searchable(known.name, kind, config)
    made = kind(config)
    made.check()
    return made


def searchable(name: str, kind: type[Phase[Any]], config: PhaseConfig) -> None:
    """Raises `Invalid` for a search over what the phase does not have, or over values that it refuses."""
    assert config.search is not None
    if kind.place == "trials":
        raise Invalid(f"{name} is a search itself", field="search", phase=name)
    fixed = set(PhaseConfig.model_fields) - {"seed"}
    for field in config.search.space:
        if field not in kind.Config.model_fields or field in fixed:
            raise Invalid(f"{name} has no {field} to search over", field=f"search.space.{field}", phase=name)
    plain = config.model_dump(mode="json")
    for point in corners(config.search):
        try:
            kind.Config.model_validate(sampled(plain, point))
        except ValidationError as error:
            first = error.errors()[0]
            field = f"search.space.{'.'.join(str(part) for part in first['loc'])}"
            raise Invalid(f"{field}: {first['msg']}", field=field, phase=name) from error


def values(name: str, folder: Path = CONFIGS / "phases") -> dict[str, Any]:
    """The values of `configs/phases/<name>.yaml`."""
    path = folder / f"{name}.yaml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def pipelines() -> list[str]:
    """The names of `configs/pipelines/*.yaml`."""
    return sorted(path.stem for path in (CONFIGS / "pipelines").glob("*.yaml"))


def pipeline(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(phase, parameters) in order, of `configs/pipelines/<name>.yaml`: a list of names or of `{name: parameters}`."""
    read = yaml.safe_load((CONFIGS / "pipelines" / f"{name}.yaml").read_text())
    return [(item, {}) if isinstance(item, str) else next(iter(item.items())) for item in read]


def shared(wanted: list[tuple[str, dict[str, Any]]], parameters: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The phases with `parameters` given to each that has them; data and base models to the first alone.

    Raises `Invalid` for a parameter that no phase has.
    """
    left, found = set(parameters), []
    for number, (name, own) in enumerate(wanted):
        fields = set(entry(name).load().Config.model_fields) - (FIRST_ONLY if number else set())
        left -= fields
        found.append((name, own | {key: value for key, value in parameters.items() if key in fields}))
    if left:
        raise Invalid(f"no phase has {min(left)}", field=min(left))
    return found


def stages(wanted: list[tuple[str, dict[str, Any]]]) -> tuple[Stage, ...]:
    """The stages of a run of those phases, each checked. Raises `Invalid`, `NotBuilt`."""
    if not wanted:
        raise Invalid("a run needs a phase", field="phases")
    made = [phase(name, parameters) for name, parameters in wanted]
    for number, each in enumerate(made):
        if number and (each.config.base_models or each.config.datasets):
            raise Invalid("only a run's first phase takes base_models and datasets", field="phases", phase=each.name)
    return tuple(
        Stage(phase=each.name, config=each.config.model_dump(mode="json"), total_steps=each.total_steps)
        for each in made
    )
