"""Who gets which rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.farm.matching import Waiting, Work, lacks, match
from cluster.farm.resources import Requirements, Resources


def has(cores: int = 8, ram: int = 16_000, used: int = 8_000, gpus: tuple[tuple[int, int], ...] = ()) -> Resources:
    return Resources.model_validate(
        {
            "cpu": {"cores": cores, "usage": 1}, "ram": {"total": ram, "used": used},
            "gpu": [{"id": n, "memory": {"total": t, "used": u}} for n, (t, u) in enumerate(gpus)],
        }
    )  # fmt: skip


def wants(gpu: int = 0, cores: int = 0, ram: int = 0) -> Requirements:
    return Requirements(min_gpu_memory=gpu, min_cpu_cores=cores, min_ram=ram)


@pytest.mark.parametrize(
    ("wanted", "there", "lack"),
    [
        (wants(), None, ""),
        (wants(cores=1), None, "resources"),
        (wants(cores=1, ram=1), has(), ""),
        (wants(cores=9), has(), "min_cpu_cores"),
        (wants(ram=8_000), has(), ""),
        (wants(ram=8_001), has(), "min_ram"),
        (wants(gpu=1), has(), "min_gpu_memory"),
        (wants(gpu=7_000), has(gpus=((10_000, 3_000),)), ""),
        (wants(gpu=7_001), has(gpus=((10_000, 3_000),)), "min_gpu_memory"),
        (wants(gpu=7_001), has(gpus=((7_000, 0), (7_000, 0))), "min_gpu_memory"),
        (wants(cores=1), Resources(), "min_cpu_cores"),
    ],
)
def test_a_requirement_is_held_against_what_is_free(wanted, there, lack):
    assert lacks(wanted, there) == lack


def waiting(name: str, trust: float = 0.5, since: float = 0, resources: Resources | None = None) -> Waiting:
    return Waiting(name, resources, trust, since)


def test_the_older_task_goes_first_and_to_the_most_trusted():
    pairs = match(
        [Work("old", 1, wants()), Work("new", 5, wants())], [waiting("a", 0.4), waiting("b", 0.9), waiting("c")]
    )
    assert pairs == [("b", "old"), ("c", "new"), ("a", "new")]


def test_of_clients_trusted_alike_the_one_that_waits_longest_goes_first():
    assert match([Work("t", 1, wants())], [waiting("a", since=5), waiting("b", since=3)]) == [("b", "t")]


def test_a_task_that_nobody_can_hold_holds_nobody_up():
    assert match([Work("big", 9, wants(gpu=99)), Work("t", 1, wants())], [waiting("a")]) == [("a", "t")]


def test_who_has_failed_at_a_task_gets_it_only_where_nobody_else_can():
    work = Work("t", 1, wants(), frozenset({"a"}))
    assert match([work], [waiting("a", 0.9), waiting("b", 0.1)]) == [("b", "t")]
    assert match([work], [waiting("a", 0.9)]) == [("a", "t")]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=8),
    st.lists(st.tuples(st.floats(0, 1), st.none() | st.integers(0, 4)), max_size=10),
)
def test_no_client_twice_no_rank_too_many_nobody_idle_who_could_work(tasks, clients):
    work = [Work(f"t{n}", ranks, wants(cores=cores)) for n, (ranks, cores) in enumerate(tasks)]
    there = [
        waiting(f"c{n}", trust, resources=None if cores is None else has(cores))
        for n, (trust, cores) in enumerate(clients)
    ]
    pairs = match(work, there)
    by_id = {client.client_id: client for client in there}
    assert len({client for client, _ in pairs}) == len(pairs)
    for one in work:
        mine = [client for client, task in pairs if task == one.task_id]
        assert len(mine) <= one.ranks
        assert not [client for client in mine if lacks(one.requirements, by_id[client].resources)]
        idle = by_id.keys() - {client for client, _ in pairs}
        if len(mine) < one.ranks:
            assert not [client for client in idle if not lacks(one.requirements, by_id[client].resources)]
