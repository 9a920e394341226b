from hypothesis import given
from hypothesis import strategies as st

from serve_apps.chat.engine import Loaded
from serve_apps.chat.residency import FEW, leaving, stream_interval


def loaded(name: str, memory_mb: float, idle_seconds: float, running: int = 0) -> Loaded:
    return Loaded(name, name, name, memory_mb, running, 256, idle_seconds)


def test_nothing_leaves_while_there_is_room():
    assert leaving([loaded("a", 500, 9)], 400, 1000) == []


def test_the_least_recently_used_leaves_first():
    models = [loaded("new", 300, 1), loaded("old", 300, 60), loaded("older", 300, 90)]
    assert leaving(models, 300, 1000) == ["older"]
    assert leaving(models, 600, 1000) == ["older", "old"]


def test_a_busy_model_stays():
    assert leaving([loaded("busy", 800, 99, running=1), loaded("idle", 100, 1)], 300, 1000) is None


def test_what_never_fits_unloads_nobody():
    assert leaving([loaded("idle", 100, 1)], 1100, 1000) is None


models = st.lists(
    st.builds(loaded, st.uuids().map(str), st.floats(0, 900), st.floats(0, 1e6), st.integers(0, 2)), max_size=8
)


@given(models, st.floats(0, 1000))
def test_what_stays_and_what_comes_fit_together(present, need_mb):
    gone = leaving(present, need_mb, 1000)
    if gone is not None:
        assert all(model.running == 0 for model in present if model.key in gone)
        assert sum(model.memory_mb for model in present if model.key not in gone) + need_mb <= 1000 + 1e-6


def test_few_streams_get_every_step_and_a_crowd_about_30_ms_at_a_time():
    assert stream_interval(0, 500) == stream_interval(FEW - 1, 500) == 1
    assert stream_interval(FEW, 100) == 3
    assert stream_interval(32, 0) == stream_interval(32, 5) == 1
