import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli import torture as command
from cluster.cli.client import Refused
from cluster.settings import Settings
from cluster.tasks.service import TaskSpec
from cluster.torture.notes import CLOCK, Notes, read, shifted
from cluster.torture.plan import BADLY, CAPABILITIES, ENDS, WELL, Size, conduct, drawn

SMALL = Size(seconds=3.0, tasks=40, pause_seconds=1.0)


def test_a_seed_has_one_plan_in_whichever_process():
    code = (
        "import json; from cluster.torture.plan import *\n"
        "print(json.dumps(drawn(7, Size(3.0, 40, 1.0)).as_json()), conduct(7, 'push', {'n': 3}, 2))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1 and json.dumps(drawn(7, SMALL).as_json()) in told.pop()
    assert drawn(7, SMALL) == drawn(7, SMALL) != drawn(8, SMALL)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 200), st.floats(1, 30))
def test_every_plan_can_be_played(seed, tasks, seconds):
    plan = drawn(seed, Size(seconds, tasks, 3.0))
    assert [task.number for task in plan.tasks] == list(range(tasks))
    parts = {"router", "ledger", "stream", "gate-0", "gate-1", "worker-0", "redis", *(a.name for a in plan.agents)}
    for task in plan.tasks:
        TaskSpec(**task.spec)
        assert 0 <= task.at <= seconds and all(earlier < task.number for earlier in task.after)
        assert all(plan.tasks[earlier].client == task.client for earlier in task.after)
    assert all(fault.part in parts and 0 <= fault.at <= seconds for fault in plan.faults)
    assert all(fault.what == "clock" or fault.value >= 0 for fault in plan.faults)
    assert {tag for agent in plan.agents for tag in agent.tags} == set(CAPABILITIES)
    assert all(len({c.client for c in plan.tasks if c.batch == task.batch}) == 1 for task in plan.tasks[:20])


def test_every_conduct_comes_about():
    for way, badly in BADLY.items():
        seen = {conduct(1, way, {"n": n}, 1).what for n in range(2000)}
        assert seen == {kind for kind, _ in WELL[way] + badly}
        patient = {conduct(1, way, {"n": n, "patient": True}, 1).what for n in range(2000)}
        assert patient == seen & ENDS
        assert {conduct(1, way, {"n": n}, 1, well=True).what for n in range(100)} == {"done"}


def test_notes_are_read_by_time_whoever_wrote_them(tmp_path):
    notes = [Notes(tmp_path / "notes", name) for name in ("a", "b")]
    for n in range(6):
        notes[n % 2].note("said", n=n)
    assert [note["n"] for note in read(tmp_path / "notes")] == list(range(6))


def test_a_clock_is_right_at_first_and_steps_then(monkeypatch):
    times = iter([0.0, 0.5, 1.5])
    monkeypatch.setattr("cluster.torture.notes.time.monotonic", lambda: next(times))
    clock = shifted({CLOCK: "-30"})
    assert -31 < (clock() - clock()).total_seconds() - 30 < 1
    assert shifted({})().tzinfo is not None


def test_it_is_refused_in_production(monkeypatch, tmp_path):
    monkeypatch.setenv("VILLAGE_PROFILE", "production")
    with pytest.raises(Refused):
        command.run(Settings(home=tmp_path), parsed())


def parsed(*arguments: str):
    import argparse

    verbs = argparse.ArgumentParser().add_subparsers()
    made = {}

    def verb(name, action):
        made[name] = verbs.add_parser(name)
        return made[name]

    command.grammar(verb)
    return made["torture"].parse_args(arguments)


def test_a_history_that_was_kept_is_checked_again(tmp_path, capsys):
    from cluster.torture.history import History, save

    file = tmp_path / "history.jsonl"
    save(History(unsettled="3 tasks have not ended"), file)
    assert command.run(Settings(home=tmp_path), parsed("--check", str(file))) == 1
    assert "BROKEN  nothing waits for ever" in capsys.readouterr().out
    save(History(), file)
    assert command.run(Settings(home=tmp_path), parsed("--check", str(file))) == 0
