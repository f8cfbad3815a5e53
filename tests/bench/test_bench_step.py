"""Rows of `alm bench step`: what is counted, and what is compiled for devices that are not here."""

import collections
import dataclasses
import importlib.util
from pathlib import Path

import jax
import pytest

from alm_jax.bench import estimates, figures
from alm_jax.bench import step as bench
from alm_jax.bench.chips import CHIPS
from alm_jax.bench.compiled_step import compile_row
from alm_jax.bench.counting import Counts, KernelCall
from alm_jax.bench.timing import Timing
from alm_jax.bench.topology import Topology, resolve
from alm_jax.errors import UserError
from alm_jax.run.experiment import load_config
from alm_jax.training.mesh import MeshConfig, build_mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `aot`)"
)


@pytest.fixture(scope="module")
def config():
    return load_config(Path(__file__).parents[1] / "cli" / "tiny_config.py")


def with_training(config, **changes):
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


def test_batches_of_shapes_are_those_of_arrays(config):
    example, abstract = bench.example_batch(config), bench.abstract_batch(config)
    assert {key: (x.shape, x.dtype) for key, x in example.items()} == {
        key: (x.shape, x.dtype) for key, x in abstract.items()
    }


@pytest.mark.slow
def test_rematerialised_flops_are_no_model_flops(config):
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    plain = bench.model_flops(config, 1)
    model = dataclasses.replace(config.objective.model, remat="block")
    remat = dataclasses.replace(config, objective=dataclasses.replace(config.objective, model=model))
    assert bench.model_flops(remat, 1) == plain
    traced = bench.build(remat, mesh).trace_step(bench.abstract_batch(remat))
    assert bench.count_jaxpr(traced.jaxpr).flops > 1.05 * plain


# 1.2 MB read and written: 1.47 us at the bandwidth, and 2 us by XLA's cycles.
COPY = (
    "HloModule m, is_scheduled=true\n\nENTRY %e (p: f32[150000]) -> f32[150000] {\n"
    "  %p = f32[150000]{0:T(1024)} parameter(0)\n"
    '  ROOT %c = f32[150000]{0:T(1024)} copy(%p), backend_config={"estimated_cycles":"3000"}\n}\n'
)
V5E = Topology("v5e:1x1", (), CHIPS["TPU v5 lite"])


def test_an_estimate_is_cycles_by_the_clock():
    row = estimates.estimates(COPY, 197e6, V5E, Counts())
    assert row["estimated_cycles"] == 3000
    assert row["estimated_ms"] == pytest.approx(2e-3)
    assert row["estimated_mfu"] == pytest.approx(0.5)
    assert row["roofline_ms"] == pytest.approx(1.47e-3, rel=5e-3)
    assert row["predicted_ms"] == row["estimated_ms"]
    assert row["collectives"] == []
    assert estimates.estimates(COPY, 1e6, Topology("h200:1", (), CHIPS["NVIDIA H200"]), Counts()) == {}


def test_the_bundles_of_kernels_are_part_of_an_estimate(monkeypatch):
    monkeypatch.setattr(estimates, "call_cycles", lambda call, topology: 1000)
    counts = Counts(kernels=collections.Counter({KernelCall("attention", (4,), ()): 1}))
    row = estimates.estimates(COPY, 197e6, V5E, counts)
    assert (row["estimated_cycles"], row["kernel_cycles"]) == (4000, 1000)
    assert row["estimated_mfu"] == pytest.approx(0.375)


def test_more_than_a_chip_can_do_is_no_estimate():
    with pytest.raises(RuntimeError, match="101%"):
        estimates.estimates(COPY, 1.01 * 394e6, V5E, Counts())


def test_ratios_are_of_neighbouring_runs():
    own, other = Timing((1.0, 2.0, 1.0), (0.0,) * 3), Timing((2.0, 2.0, 3.0), (0.0,) * 3)
    assert figures.times_ours(own, other) == {"min": 1.0, "median": 2.0, "max": 3.0}


@pytest.mark.parametrize(
    ("changes", "peers", "message"),
    [
        ({"parallelism": "pmap"}, [], "training.parallelism"),
        ({"batch_size": 9}, [], "does not divide"),
        ({}, ["torchaudio"], "known are transformers"),
        ({}, ["transformers"], "one device"),
    ],
)
def test_mistakes(config, changes, peers, message):
    with pytest.raises(UserError, match=message):
        bench.run_rows(with_training(config, **changes), peers, repeats=1)


@pytest.mark.slow
def test_a_step_beside_its_peer(config, monkeypatch):
    monkeypatch.setattr(bench, "build_mesh", lambda mesh, devices: build_mesh(mesh, jax.devices()[:1]))
    own, peer, whole = bench.run_rows(config, ["transformers", "transformers+features"], repeats=2)
    # BatchNorm's running statistics are no parameters here, and the peer has a second temperature.
    assert peer["parameters"] == own["parameters"] + 1
    assert own["step_ms"]["min"] > 0
    assert own["rss_bytes"] > 0
    assert peer["times_ours"]["median"] > 0
    assert whole["parameters"] == peer["parameters"]
    assert own["mfu"] is None


@pytest.mark.slow
@needs_libtpu
def test_a_step_for_devices_that_are_not_here(config):
    row, _, _ = compile_row(with_training(config, batch_size=64), resolve("v5e:2x2"))
    assert row["error"] is None
    assert row["fits"]
    assert row["devices"] == 4
    assert 0 < row["estimated_mfu"] < 1
