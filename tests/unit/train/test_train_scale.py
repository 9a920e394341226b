"""How many workers a run gets, on what, and how they compute."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster import hardware
from cluster.errors import Invalid
from train import scale
from train.phases import catalogue

ONE_MACHINE = {"CPU": 16.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("resources", "nodes", "name"),
    [({"CPU": 2.0}, 0, "cpu"), ({"CPU": 8.0, "GPU": 1.0}, 1, "gpu"), (ONE_MACHINE, 1, "gpu8"),
     ({"CPU": 64.0, "GPU": 16.0}, 2, "fsdp")],
)  # fmt: skip
def test_auto_is_what_the_resources_suggest(resources, nodes, name):
    assert scale.suggested(resources, nodes) == name


def test_every_file_of_configs_is_a_scale():
    assert scale.names() == ["cpu", "fsdp", "gpu", "gpu8"]
    assert [scale.known(name).strategy for name in scale.names()] == ["ddp", "fsdp", "ddp", "ddp"]


def test_a_machine_with_fewer_gpus_gets_fewer_workers():
    fitted = scale.fitted(scale.known("gpu8"), 0, {"CPU": 8.0, "GPU": 4.0}, {})
    assert (fitted.workers, fitted.least_workers, fitted.cpus_per_worker) == (4, 1, 2.0)


def test_all_gpus_of_a_cluster_share_a_model():
    assert scale.fitted(scale.known("fsdp"), 0, {"CPU": 256.0, "GPU": 32.0}, {}).workers == 32


@pytest.mark.parametrize(("name", "wanted"), [("gpu", 0), ("gpu8", 2), ("fsdp", 0)])
def test_gpus_that_are_not_there_are_an_error_and_not_a_wait_for_ever(name, wanted):
    with pytest.raises(Invalid):
        scale.fitted(scale.known(name), wanted, {"CPU": 2.0}, {"CPU": 2.0})


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(Invalid) as refused:
        catalogue.phase("cognate", {"scale": "tpu"})
    assert refused.value.details["allowed_values"] == ["auto", "cpu", "fsdp", "gpu", "gpu8"]


@given(free=st.floats(0, 4), wanted=st.integers(0, 4))
def test_a_worker_on_a_cpu_can_always_be_placed(free, wanted):
    fitted = scale.fitted(scale.known("cpu"), wanted, {"CPU": 4.0}, {"CPU": free})
    assert fitted.workers * fitted.cpus_per_worker <= max(free, fitted.workers * scale.SCRAP_OF_A_CPU)


@pytest.mark.parametrize(
    ("asked", "cores", "weights", "threads"),
    [(0, 2, 1_066_112, 1), (0, 2, 6_000_000, 2), (0, 16, 124_000_000, 16), (0, 16, 12_000_000, 4), (3, 2, 1, 3)],
)
def test_few_weights_are_trained_by_few_threads(asked: int, cores: int, weights: int, threads: int):
    assert scale.threads(asked, cores, weights) == threads


@pytest.mark.parametrize(("native", "computed"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_the_hardwares_unless_it_is_named(native: bool, computed: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware, "native_bf16", lambda device: native)
    device = torch.device("cpu")
    assert hardware.computed_in("auto", device) == computed
    assert [hardware.computed_in(named, device) for named in ("bf16", "fp32")] == ["bf16", "fp32"]
