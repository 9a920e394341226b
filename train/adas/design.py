"""What an agent that uses a model of the village is, as data, and the `agent.json` that a model folder carries.

Automated Design of Agentic Systems (arXiv:2408.08435) searches over agents written as code. A model of a million
weights writes no code, so an agent is a value of `Design` here: everything that the paper's hand-made agents differ in
(prompt, examples, sampling, voting, verification, tools, decomposition) is one of its fields. Pure: no torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

AGENT = "agent.json"
PLAIN = "{question}"


class Example(BaseModel):
    """A question with its answer, shown to the model as an earlier exchange."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    answer: str


class Design(BaseModel):
    """One agent. The default asks the plain question once and takes the likeliest answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str = Field(default="", max_length=2000)  # the system prompt; none where empty
    wording: str = Field(default=PLAIN, max_length=500)  # how a question is put; {question} is the question
    examples: tuple[Example, ...] = Field(default=(), max_length=8)
    decomposition: Literal["direct", "plan"] = "direct"  # plan: the steps are asked for first, then the answer
    combine: Literal["first", "vote", "verify"] = "first"  # verify: a checker tool judges, a refused answer is redrawn
    samples: int = Field(default=1, ge=1, le=32)  # answers at most; first takes one
    temperature: float = Field(default=0.0, ge=0, le=2)  # 0: the likeliest token; of verify's redrawn answers
    max_tokens: int = Field(default=32, ge=1, le=512)  # of one reply
    tools: tuple[str, ...] = ()  # of train.tools: calls of these are executed and answered
    offered: bool = True  # whether the system prompt lists the tools; a model may know them without
    experts: dict[str, float] = {}  # singular-value experts and their weights, on top of the folder's weights
    dispatch: bool = False  # two passes: the first finds the question's family, whose expert answers in the second

    @field_validator("wording")
    @classmethod
    def _asks(cls, wording: str) -> str:
        if "{question}" not in wording:
            raise ValueError("a wording has {question} in it")
        return wording

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def servable(self) -> bool:
        """Whether one set of weights is enough, which is what vLLM serves: fixed experts can be merged."""
        return not self.dispatch

    def canonical(self) -> "Design":
        """The same agent with fields that have no effect at their defaults, so that equal agents are equal values."""
        update: dict[str, object] = {
            "tools": tuple(sorted(set(self.tools))),
            "offered": self.offered or not self.tools,
            "experts": {} if self.dispatch else {n: w for n, w in sorted(self.experts.items()) if w},
        }
        if self.combine == "first" or self.samples == 1:
            update |= {"combine": "first", "samples": 1}
            if self.combine == "verify":
                update["temperature"] = 0.0  # its only answer is the likeliest
        elif self.temperature == 0:
            update |= {"combine": "first", "samples": 1}  # the same answer again and again
        return self.model_copy(update=update)


DEFAULT = Design()


class Measurement(BaseModel):
    """What a design came to on questions that the search had not seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    success: float  # share of right answers
    low: float  # 95 % interval of it (Wilson)
    high: float
    questions: int
    tokens_per_answer: float  # generated, over all of an answer's samples, retries, plans and thoughts
    seconds_per_answer: float  # on the machine that measured, many questions at once


class Agent(BaseModel):
    """`agent.json`: the agent that the search found best for the weights that lie beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    design: Design  # to be run with the folder's weights as they are: it names no experts
    merged: dict[str, float] = {}  # experts that are in the weights already, and their weights
    measured: Measurement | None = None
    default: Measurement | None = None  # the default design with the weights before, on the same questions


def read_agent(folder: Path) -> Agent:
    """The agent of a model folder; the default design where it has none."""
    path = folder / AGENT
    return Agent.model_validate_json(path.read_bytes()) if path.exists() else Agent(design=DEFAULT)
