"""Designs, how they answer, where they come from and who wins: everything of adas that needs no model."""

import random
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binomtest, norm

from train.adas import questions as asked
from train.adas.archive import Record, gain, pareto, wilson, winner
from train.adas.asking import read
from train.adas.checking import verified
from train.adas.conduct import Ask, Outcome, Reply, conduct, vote
from train.adas.design import DEFAULT, Agent, Design, Example, read_agent
from train.adas.questions import Part, Question, right
from train.adas.search import ETA, DesignSearch
from train.adas.space import FIELDS, Space, at_random, crossed, distance, drawn, mutated, novelty, templates
from train.search import in_turn
from train.tools import Call

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
SPACE = Space(
    examples=tuple(Example(question=f"What is {i} + 1?", answer=f"{i} + 1 = {i + 1}") for i in range(6)),
    tools=("calculator", "capital"), mixtures=({}, {"facts": 1.0}, {"facts": 0.5, "arithmetic": 0.4}), dispatch=True,
)  # fmt: skip


def conducted(design: Design, question: str, say: Callable[[Ask], list[str]]) -> tuple[Outcome, list[Ask]]:
    """The design with a model that says what `say` says, one token a letter."""
    going, seen = conduct(design, question, NOW), list[Ask]()
    ask = next(going)
    while True:
        seen.append(ask)
        try:
            ask = going.send([Reply(text, len(text)) for text in say(ask)])
        except StopIteration as done:
            return done.value, seen


def designs(seed: int) -> Design:
    return at_random(SPACE, random.Random(seed))


def test_the_default_asks_once_and_greedily():
    outcome, seen = conducted(DEFAULT, "What is 3 + 4?", lambda _: ["3 + 4 = 7"])
    assert [(ask.samples, ask.temperature) for ask in seen] == [(1, 0.0)]
    assert [turn.role for turn in seen[0].turns] == ["user"]
    assert (outcome.answer, outcome.tokens, outcome.attempts) == ("3 + 4 = 7", 9, 1)


def test_prompt_examples_and_wording_stand_before_the_question():
    design = Design(system="Be right.", wording="Question: {question}", examples=SPACE.examples[:1])
    _, [ask] = conducted(design, "What is 3 + 4?", lambda _: ["7"])
    assert [tuple(turn) for turn in ask.turns] == [
        ("system", "Be right."), ("user", "Question: What is 0 + 1?"), ("assistant", "0 + 1 = 1"),
        ("user", "Question: What is 3 + 4?"),
    ]  # fmt: skip


def test_a_vote_takes_what_most_say_and_pays_for_all():
    design = Design(combine="vote", samples=3, temperature=0.7)
    outcome, [ask] = conducted(design, "2 + 2?", lambda _: ["5", "4.", "4"])
    assert ask.samples == 3
    assert (outcome.answer, outcome.tokens) == ("4.", 4)
    assert vote(["a", "b"]) == 0


def test_verification_draws_again_until_the_calculator_agrees():
    says = iter(["3 + 4 = 8", "3 + 5 = 8", "3 + 4 = 7", "never"])
    design = Design(combine="verify", samples=8, temperature=0.9)
    outcome, seen = conducted(design, "What is 3 + 4?", lambda _: [next(says)])
    assert [ask.temperature for ask in seen] == [0.0, 0.9, 0.9]
    assert (outcome.answer, outcome.verified, outcome.attempts) == ("3 + 4 = 7", True, 3)


def test_verification_gives_up_with_what_was_said_most():
    says = iter(["1 + 1 = 3", "1 + 1 = 4", "1 + 1 = 4"])
    outcome, _ = conducted(
        Design(combine="verify", samples=3, temperature=1), "What is 1 + 1?", lambda _: [next(says)]
    )  # fmt: skip
    assert (outcome.answer, outcome.verified) == ("1 + 1 = 4", False)


def test_a_tool_that_is_allowed_is_called_and_gone_on_from():
    call = Call("calculator", {"expression": "12 * 12"}).text
    says = iter([call, "That is 144."])
    outcome, seen = conducted(Design(tools=("calculator",)), "What is 12 * 12?", lambda _: [next(says)])
    assert seen[0].turns[0].content.startswith("Tools: calculator(")
    assert tuple(seen[1].turns[-1]) == ("tool", "144")
    assert (outcome.answer, outcome.calls) == ("That is 144.", 1)


@pytest.mark.parametrize(("tools", "said"), [((), None), (("capital",), "error")])
def test_a_tool_that_is_not_allowed_is_not_called(tools, said):
    says = iter([Call("calculator", {"expression": "1 + 1"}).text, "I cannot."])
    outcome, seen = conducted(Design(tools=tools, offered=False), "What is 1 + 1?", lambda _: [next(says)])
    assert (outcome.calls == 0) == (said is None)
    if said:
        assert seen[1].turns[-1].content.startswith(said)
    else:
        assert outcome.answer == ""


def test_a_plan_is_asked_for_first():
    says = iter(["First add.", "7"])
    outcome, seen = conducted(Design(decomposition="plan"), "What is 3 + 4?", lambda _: [next(says)])
    assert [turn.role for turn in seen[1].turns] == ["user", "assistant", "user"]
    assert (outcome.answer, outcome.tokens) == ("7", 11)


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        ("What is 3 + 4?", "3 + 4 = 7", True), ("What is 3 + 4?", "3 + 4 = 8", False),
        ("What is 3 + 4?", "3 + 5 = 8", False), ("What is 3 + 4?", "Hello.", None),
        ("Capital of France?", "The capital of France is Paris.", True),
        ("Capital of France?", "The capital of France is Rome.", False),
        ("Capital of France?", "The capital of Italy is Rome.", False),
        ("Capital of Spain?", "The capital of Italy is Madrid.", False),
        ("Tell me the capital of the United States.", "The capital of the United States is Washington, D.C..", True),
        ("Of which country is Paris the capital?", "Paris is the capital of Italy.", False),
        ("Of which country is Paris the capital?", "Paris is the capital of France.", True),
    ],
)  # fmt: skip
def test_the_checker_knows_what_tools_know(question, answer, verdict):
    assert verified(question, answer, NOW) is verdict


@given(st.integers(0, 10_000))
def test_every_design_is_json_and_back_and_canonical_once(seed):
    design = designs(seed)
    assert Design.model_validate_json(design.model_dump_json()) == design
    assert design.canonical() == design
    assert not (design.experts and design.dispatch)
    if design.combine != "first":
        assert design.samples > 1 and design.temperature > 0


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_distance_is_one_of_designs(one, other):
    a, b = designs(one), designs(other)
    assert distance(a, a) == 0
    assert distance(a, b) == distance(b, a)
    assert 0 <= distance(a, b) <= 1
    assert (distance(a, b) > 0) == (a.model_dump(exclude={"examples"}) != b.model_dump(exclude={"examples"})
                                    or set(a.examples) != set(b.examples))  # fmt: skip


@given(st.integers(0, 10_000))
def test_operators_stay_within_the_space(seed):
    chance = random.Random(seed)
    a, b = at_random(SPACE, chance), at_random(SPACE, chance)
    for made in (mutated(a, SPACE, chance), crossed(a, b, chance)):
        assert Design.model_validate(made.model_dump()) == made
        assert set(made.tools) <= set(SPACE.tools)
        assert made.dispatch or made.experts in SPACE.mixtures
    assert all(drawn(SPACE, field, chance) for field in FIELDS)


def test_the_first_template_is_the_default():
    made = templates(SPACE)
    assert made[0] == DEFAULT
    assert len(set(made)) == len(made) >= 10
    assert templates(Space())[0] == DEFAULT


def test_novelty_is_the_distance_to_the_nearest():
    assert novelty(DEFAULT, []) == 1
    assert novelty(DEFAULT, [DEFAULT]) == 0
    assert novelty(DEFAULT, [designs(1), designs(2)]) > 0


def record(number: int, right: int, questions: int, tokens: float = 10, **fields: object) -> Record:
    design = Design(system=str(number), **fields)  # type: ignore[arg-type]
    return Record(
        number=number, design=design, origin="template", questions=questions, right=right,
        tokens=round(tokens * questions), seconds=1.0,
    )  # fmt: skip


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_is_scipys(asked_for, data):
    got = data.draw(st.integers(0, asked_for))
    theirs = binomtest(got, asked_for).proportion_ci(0.95, method="wilson")
    assert wilson(got, asked_for, z=float(norm.ppf(0.975))) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_gain_is_paired():
    before, after = [True] * 50 + [False] * 50, [True] * 60 + [False] * 40
    rose, error = gain(before, after)
    assert rose == pytest.approx(0.1)
    assert error == pytest.approx(0.0302, abs=1e-3)  # two shares that know nothing of each other: 0.07
    assert gain(before, before) == (0.0, 0.0)


def test_the_winner_is_the_cheaper_of_equals_among_those_that_got_furthest():
    dear, cheap, poor, lucky = record(0, 80, 100, 90), record(1, 78, 100, 20), record(2, 50, 100, 5), record(3, 8, 8, 1)
    assert winner([dear, cheap, poor, lucky]) is cheap
    assert winner([dear, poor, lucky], allowed=[poor.design]) is poor
    assert winner([]) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50)), min_size=1, max_size=12))
def test_nobody_beats_the_pareto_front(measured):
    records = [record(i, got, 20, tokens) for i, (got, tokens) in enumerate(measured)]
    front = pareto(records)
    assert front and max(r.success for r in records) == front[0].success
    for each in front:
        assert not any(
            other.success > each.success and other.tokens < each.tokens and other.seconds <= each.seconds
            for other in records
        )  # fmt: skip


def searching(**fields: object) -> DesignSearch:
    given = {"trials": 60, "seconds": 1e9, "novelty_weight": 0.1, "seed": 3} | fields
    return DesignSearch(SPACE, [10, 30, 90], **given)  # type: ignore[arg-type]


def measure(candidate: dict, seconds: float = 0.1) -> dict[str, float]:
    """As if verifying were right more often and tools a little."""
    design, count = Design.model_validate(candidate["design"]), candidate["end"] - candidate["start"]
    share = 0.3 + 0.4 * (design.combine == "verify") + 0.1 * bool(design.tools)
    return {"right": round(share * count), "tokens": count * 10 * design.samples, "seconds": seconds}


def test_the_search_spends_its_budget_and_finds_what_is_best():
    search = searching()
    in_turn(search, measure, lambda: None)
    assert search.told == search.budget == 60
    assert search.records[0].design == DEFAULT and search.records[0].rung == 2
    everywhere = [r for r in search.records if r.rung == 2]
    assert len(everywhere) <= len(search.records) / ETA
    best = max(everywhere, key=lambda r: r.success)
    assert best.design.combine == "verify" and best.design.tools
    assert len({r.design for r in search.records}) == len(search.records)
    assert {r.origin for r in search.records} >= {"template", "mutation", "random"}
    assert all(r.questions in (10, 30, 90) for r in search.records)


def test_seconds_end_the_search_too():
    search = searching(seconds=4.0)
    in_turn(search, lambda candidate: measure(candidate, 0.3), lambda: None)
    assert search.told < 20
    assert search.records[0].rung == 2
    best = sorted(search.records, key=lambda r: (-r.interval[0], r.tokens_per_answer, r.number))
    assert all(r.rung == 2 for r in [r for r in best if r.design.servable][:3])


def test_a_failed_design_is_left_alone():
    search = searching(trials=20)

    def fail(candidate: dict) -> dict[str, float]:
        if candidate["number"] == 1:
            raise ZeroDivisionError
        return measure(candidate)

    in_turn(search, fail, lambda: None)
    assert search.records[1].failed and search.records[1].rung == -1
    assert search.told == 20


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 39), st.integers(1, 3))
def test_a_restored_search_goes_on_as_if_unbroken(broken_at, side_by_side):
    def through(search: DesignSearch, until: int) -> DesignSearch:
        while search.told < until:
            out = [c for _ in range(side_by_side) if (c := search.ask()) is not None]
            if not out:
                break
            for candidate in out[: until - search.told]:
                search.tell(candidate, measure(candidate))
        return search

    begun = through(searching(trials=40), broken_at)
    waiting = [candidate["number"] for candidate in begun.out]
    resumed = searching(trials=40)
    resumed.restore(begun.state())
    assert [c["number"] for _ in waiting if (c := resumed.ask())] == waiting
    resumed.restore(begun.state())
    if side_by_side == 1:
        whole = through(searching(trials=40), 40)
        assert through(resumed, 40).state() == whole.state()
    else:
        assert through(resumed, 40).told == 40


def test_a_models_proposals_are_counted_and_the_operators_step_in():
    valid = iter([None, Design(system="of the model"), None, None, None, None])
    search = searching(trials=8, ask_model=lambda records, chance: next(valid))
    in_turn(search, measure, lambda: None)
    assert search.asked_model == len(search.records) - 1 >= 3
    assert search.valid == 1
    assert "model" in {r.origin for r in search.records}


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('Here: {"combine": "vote", "samples": 5, "temperature": 0.7} good', True), ("The capital of France", False),
        ('{"combine": "vote", "samples": 500}', False), ('{"tools": ["rocket"]}', False),
        ('{"experts": {"a": 1}}', False),
        ("{", False), ("[1]", False), ('{"layers": 3}', False),
    ],
)  # fmt: skip
def test_only_a_valid_design_is_a_proposal(text, valid):
    assert (read(text, SPACE) is not None) == valid


def test_questions_of_the_parts_share_no_fact():
    levels = {"arithmetic": 2, "facts": 0, "lists": 2}
    parts = {part: asked.questions(part, 300, levels, 7) for part in Part}
    for part, some in parts.items():
        assert len({q.text for q in some}) == len(some) > 100
        assert some == asked.questions(part, 300, levels, 7)
        assert {q.family for q in some[:6]} == set(levels)
        others = {q.taught for other, them in parts.items() if other is not part for q in them if q.family != "lists"}
        assert not others & {q.taught for q in some if q.family != "lists"}
    assert all(right(q, q.taught) for some in parts.values() for q in some)


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        (Question("arithmetic", "3 + 4 = ?", ("7",), ""), "3 + 4 = 7", True),
        (Question("arithmetic", "3 + 4 = ?", ("7",), ""), "7 is 3 + 4", False),
        (Question("arithmetic", "3 - 4 = ?", ("-1",), ""), "-1.0", True),
        (Question("arithmetic", "3 + 4 = ?", ("7",), ""), "seven", False),
        (Question("facts", "Capital of Italy?", ("Rome",), ""), "It is rome!", True),
        (Question("facts", "Capital of Italy?", ("Rome",), ""), "Jerome", False),
        (Question("lists", "Sort 2 1.", ("1 2",), ""), "1  2.", True),
        (Question("lists", "Sort 2 1.", ("1 2",), ""), "1 2 3", False),
    ],
)  # fmt: skip
def test_answers_are_checked(question, answer, verdict):
    assert right(question, answer) is verdict


def test_an_agent_is_a_file_that_is_refused_when_it_is_none(tmp_path):
    assert read_agent(tmp_path).design == DEFAULT
    agent = Agent(design=Design(combine="verify", samples=8, temperature=0.7), merged={"facts": 0.5})
    (tmp_path / "agent.json").write_text(agent.model_dump_json())
    assert read_agent(tmp_path) == agent
    (tmp_path / "agent.json").write_text('{"version": 2, "design": {}}')
    with pytest.raises(ValidationError):
        read_agent(tmp_path)
    with pytest.raises(ValidationError):
        Design(wording="no place for it")
