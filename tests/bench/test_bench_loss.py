"""Rows of `alm bench loss`: their figures against closed forms, and their failures."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.bench import loss as bench
from alm_jax.bench import resident, torch_losses
from alm_jax.bench.loss_cases import LOSSES, LossCase
from alm_jax.bench.open_clip import clip_loss_pattern, load_loss_module
from alm_jax.bench.pictures import draw_memory, draw_throughput
from alm_jax.bench.topology import resolve
from alm_jax.errors import UserError
from alm_jax.losses.contrastive import symmetric_infonce
from alm_jax.training.mesh import MeshConfig, build_mesh

FIELDS = {
    *("loss", "impl", "batch", "dim", "vocab", "dtype", "devices", "platform", "topology"),
    *(
        "temp_bytes",
        "peak_bytes",
        "rss_bytes",
        "flops",
        "flops_over_b2d",
        "collective_bytes",
        "estimated_cycles",
        "kernel_cycles",
    ),
    *("step_ms", "pairs_per_s", "hbm_limit", "fits", "error"),
}
PNG = b"\x89PNG"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `aot`)"
)


def installed() -> bool:
    try:
        load_loss_module()
    except UserError:
        return False
    return True


needs_open_clip = pytest.mark.skipif(
    not installed(), reason="open_clip_torch is not installed (extra `bench`)"
)


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    """Resident memory takes a process a row; test_timing.py has its test, and below a slow one."""
    monkeypatch.setattr(resident, "growth_of", lambda target, **arguments: 1)


@pytest.fixture(scope="module")
def pairs():
    return LossCase("infonce", 16, 8, "float32").inputs()[0]


def test_open_clip_s_pattern_is_the_loss_at_twelve_products(pairs):
    mesh = build_mesh(MeshConfig(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        value, grads = jax.jit(jax.value_and_grad(clip_loss_pattern, argnums=(0, 1, 2)))(*pairs.values())

    def reference(*args):
        total, weight = symmetric_infonce(*args, impl="reference")
        return total / weight

    expected, expected_grads = jax.value_and_grad(reference, argnums=(0, 1, 2))(
        *map(jnp.asarray, pairs.values())
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-6)


def test_rows_on_several_devices():
    sweep = bench.LossSweep(
        losses=["infonce"],
        impls=["reference", "chunked", "open_clip_pattern"],
        batches=[64],
        dim=16,
        num_devices=4,
        repeats=2,
    )
    rows = list(bench.run_sweep(sweep))
    assert all(set(row) == FIELDS for row in rows)
    assert [row["error"] for row in rows] == [None] * 3
    assert [row["flops_over_b2d"] for row in rows] == [6, 8, 12]
    assert rows[1]["flops"] == 8 * 64 * 64 * 16 / 4
    # The partitioner chooses what the plain form sends.
    assert rows[0]["collective_bytes"] is None
    # The pattern gathers both sides and scatters both gradients back, and little else.
    assert 0 <= rows[2]["collective_bytes"] - 4 * 3 / 4 * 64 * 16 * 4 < 64
    for row in rows:
        assert row["step_ms"]["min"] <= row["step_ms"]["median"]
        assert row["pairs_per_s"] == pytest.approx(64e3 / row["step_ms"]["median"])
        assert row["peak_bytes"] >= 3 * 2 * 16 * 16 * 4
        assert row["devices"] == 4
        assert row["platform"] == "cpu"


@needs_open_clip
@pytest.mark.parametrize(
    ("loss", "peers"),
    [("infonce", ["open_clip", "transformers"]), ("sigmoid", ["open_clip"]), ("lm", ["pytorch"])],
)
def test_peers_compute_the_same(loss, peers):
    sweep = bench.LossSweep(
        losses=[loss],
        impls=["reference"],
        batches=[32, 64],
        dim=16,
        vocab=40,
        repeats=1,
        peers=peers,
    )
    rows = list(bench.run_sweep(sweep))
    assert [row["impl"] for row in rows] == ["reference", *peers] * 2
    assert [row["error"] for row in rows] == [None] * len(rows)
    assert all(row["step_ms"] and row["rss_bytes"] for row in rows)
    assert draw_memory(rows).startswith(PNG)
    assert draw_throughput(rows).startswith(PNG)
    assert draw_memory(rows[:2]) is None


def test_a_peer_that_computes_something_else_is_found_out(monkeypatch):
    peer = ("infonce", "transformers")
    monkeypatch.setitem(
        torch_losses.PEERS, peer, lambda: lambda audio_emb, text_emb, scale: (audio_emb * scale).sum()
    )
    sweep = bench.LossSweep(
        losses=["infonce"], impls=["reference"], batches=[8], dim=4, repeats=1, peers=["transformers"]
    )
    own, other = bench.run_sweep(sweep)
    assert own["error"] is None
    assert "the loss is" in other["error"]


def test_what_fails_is_a_row(monkeypatch):
    def explode(case, impl, num_devices):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")

    monkeypatch.setattr(bench, "jax_pass", explode)
    sweep = bench.LossSweep(losses=["infonce"], impls=["reference"], batches=[8], dim=4)
    (row,) = bench.run_sweep(sweep)
    assert row["fits"] is False
    assert "Out of memory" in row["error"]
    assert row["step_ms"] is None


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_traced_at_any_size_without_an_array(loss):
    case = LossCase(loss, 2**20, 512, "bfloat16", 2**17 if loss == "lm" else None)
    mesh = build_mesh(MeshConfig(data=8))
    traced = bench.trace(case, "chunked", mesh)
    arguments = jax.tree.leaves(traced.in_avals)
    assert {x.dtype.name for x in arguments if x.ndim == 2} == {"bfloat16"}
    counts = bench.counted(case, bench.count_jaxpr(traced.jaxpr, num_devices=8), 8)
    if loss in ("infonce", "sigmoid", "multi_positive"):
        assert counts["flops_over_b2d"] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ["nce"]}, "known are infonce"),
        ({"impls": ["fast"]}, "known are reference"),
        ({"dtypes": ["float16"]}, "expected one of float32"),
        ({"peers": ["openclip"]}, "known are open_clip"),
        ({"peers": ["pytorch"]}, "has none of the losses"),
        ({"peers": ["open_clip"], "num_devices": 2}, "open_clip_pattern"),
        ({"batches": [9], "num_devices": 2}, "does not divide"),
        ({"num_devices": 64, "batches": [64]}, "this machine has 8"),
    ],
)
def test_mistakes_are_told_before_anything_runs(changes, message):
    sweep = bench.LossSweep(**({"losses": ["infonce"], "batches": [8]} | changes))
    with pytest.raises(UserError, match=message):
        list(bench.run_sweep(sweep))


@pytest.mark.slow
@needs_libtpu
def test_rows_for_devices_that_are_not_here():
    sweep = bench.LossSweep(
        losses=["infonce"],
        impls=["ring", "open_clip_pattern"],
        batches=[2**20],
        dtypes=["bfloat16"],
        topology=resolve("v5e:2x2"),
    )
    ring, pattern = bench.run_sweep(sweep)
    assert set(ring) == FIELDS
    assert ring["flops_over_b2d"] == 8
    assert ring["fits"]
    assert ring["peak_bytes"] < ring["hbm_limit"] == 16 * 2**30
    assert ring["estimated_cycles"] > 0
    assert ring["topology"] == "v5e:2x2"
    assert pattern["fits"] is False
    assert "RESOURCE_EXHAUSTED" in pattern["error"]
    assert pattern["flops_over_b2d"] == 12


@pytest.mark.slow
@needs_open_clip
def test_resident_memory_of_tiles_and_of_the_whole_matrix(monkeypatch):
    monkeypatch.undo()
    sweep = bench.LossSweep(
        losses=["infonce"], impls=["reference", "chunked"], batches=[4096], repeats=1, peers=["open_clip"]
    )
    reference, chunked, peer = (row["rss_bytes"] for row in bench.run_sweep(sweep))
    matrix = 4096 * 4096 * 4
    assert min(reference, peer) > 2 * matrix
    assert chunked < 2 * matrix
