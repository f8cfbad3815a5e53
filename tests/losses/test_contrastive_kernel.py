"""The TPU kernels, interpreted on the CPU, against float64 NumPy."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Whether there were races has no public name yet.
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from alm_jax.bench.counting import count
from alm_jax.losses.contrastive import (
    kernel,
    kernel_tpu,
    multi_positive_infonce,
    sigmoid_loss,
    symmetric_infonce,
    tiles,
)
from alm_jax.losses.contrastive.tile_table import (
    GENERATIONS,
    Generation,
    Tile,
    Tiling,
    find_tiling,
    fit_tiling,
)
from alm_jax.losses.sums import LogSumExp

WIDTH = 128
KERNELS: tuple[Any, ...] = ("statistics", "gradients")
SMALL = Tile(128, 256, 128)
ONE_CORE = Generation(name="", vmem_bytes=2**27, num_cores=1)
TWO_CORES = dataclasses.replace(ONE_CORE, num_cores=2)


def make_block(num_rows: int, num_cols: int, dtype: str, padding: int = 0) -> dict[str, Any]:
    """Unit embeddings of a block with its positives off the diagonal, the last ``padding`` of a side no pairs."""
    rng = np.random.default_rng(num_rows)
    audio, text = rng.standard_normal((num_rows, WIDTH)), rng.standard_normal((num_cols, WIDTH))
    audio_ids, text_ids = np.arange(num_rows) + 7, np.arange(num_cols)[::-1].copy()
    for row in range(0, num_rows, 2):
        # Every other pair matches well.
        text[text_ids == audio_ids[row]] = audio[row] + 0.1 * rng.standard_normal(WIDTH)
    for emb, ids in ((audio, audio_ids), (text, text_ids)):
        emb /= np.linalg.norm(emb, axis=1, keepdims=True)
        emb[len(emb) - padding :], ids[len(ids) - padding :] = 0, -1
    arrays = {"audio": jnp.asarray(audio, dtype), "text": jnp.asarray(text, dtype)}
    return arrays | {"audio_ids": jnp.asarray(audio_ids), "text_ids": jnp.asarray(text_ids)}


def split(kernel_name: Any, block: dict[str, Any], generation: Generation, num_groups: int) -> Tiling:
    """A tiling with as many groups of columns as are asked for."""
    size = (block["audio"].shape[0], block["text"].shape[0])
    tiling = fit_tiling(kernel_name, SMALL, generation, str(block["audio"].dtype), WIDTH, *size)
    assert tiling is not None
    return dataclasses.replace(tiling, col_tiles=-(-tiling.col_tiles // num_groups), num_groups=num_groups)


def log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    peak = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - peak).sum(axis)) + peak.squeeze(axis)


def expected(block: dict[str, Any], scale: float) -> dict[str, np.ndarray]:
    """Log-sum-exps and gradients of the block by the formulas, in float64; 0 for padding."""
    audio, text = (np.asarray(block[side], np.float64) for side in ("audio", "text"))
    rows, cols = (np.asarray(block[side])[:, None] for side in ("audio_ids", "text_ids"))
    logits = scale * audio @ text.T
    row_lse = np.where(rows[:, 0] < 0, 0, log_sum_exp(np.where(cols.T < 0, -np.inf, logits), 1))
    col_lse = np.where(cols[:, 0] < 0, 0, log_sum_exp(np.where(rows < 0, -np.inf, logits), 0))
    grad = np.exp(logits - row_lse[:, None]) + np.exp(logits - col_lse) - 2 * (rows == cols.T)
    grad[rows[:, 0] < 0], grad[:, cols[:, 0] < 0] = 0, 0
    return {"row": row_lse, "col": col_lse, "d_audio": grad @ text, "d_text": grad.T @ audio}


@functools.partial(jax.jit, static_argnames=("statistics", "gradients", "interpret"))
def run(
    block: dict[str, Any],
    scale: Any,
    lse: tuple[Any, Any],
    *,
    statistics: Tiling,
    gradients: Tiling,
    interpret: Any = True,
) -> dict[str, Any]:
    """Both kernels with accumulators that are not empty, which are taken off again; 0 for padding."""
    pairs = (block["audio"], block["text"], scale, block["audio_ids"], block["text_ids"])
    real_rows, real_cols = block["audio_ids"] >= 0, block["text_ids"] >= 0
    before = [LogSumExp(jnp.full(x.shape, 1.5), jnp.full(x.shape, 2.0)) for x in (real_rows, real_cols)]
    rows, cols = kernel_tpu.block_statistics(*pairs, *before, tiling=statistics, interpret=interpret)
    ones = (jnp.ones(pairs[0].shape), jnp.ones(pairs[1].shape))
    d_audio, d_text = kernel_tpu.block_gradients(*pairs, *lse, *ones, tiling=gradients, interpret=interpret)
    return {
        "row": jnp.where(real_rows, rows.value(), 0),
        "col": jnp.where(real_cols, cols.value(), 0),
        "d_audio": jnp.where(real_rows[:, None], d_audio - 1, 0),
        "d_text": jnp.where(real_cols[:, None], d_text - 1, 0),
    }


def check(
    block: dict[str, Any], scale: float, generation: Generation, num_groups: int, **kwargs: Any
) -> None:
    """The kernels against the formulas.

    The log-sum-exps to 1e-6 of the largest logit. The gradients to 5e-5: float32 measures 1e-5 at scale 100, which
    is the error of the logits, and to 4e-3 in bfloat16, where an element of G is rounded by up to 2^-9 of itself.
    """
    want = expected(block, scale)
    tilings = {name: split(name, block, generation, num_groups) for name in KERNELS}
    lse = tuple(jnp.asarray(want[side], jnp.float32) for side in ("row", "col"))
    have = run(block, jnp.float32(scale), lse, **tilings, **kwargs)
    for side, ids in (("row", block["audio_ids"]), ("col", block["text_ids"])):
        both = np.where(ids < 0, 0, np.logaddexp(want[side], 1.5 + np.log(2)))
        np.testing.assert_allclose(have[side], both, rtol=1e-6, atol=1e-6 + 4e-7 * scale, err_msg=side)
    tolerance = 4e-3 if block["audio"].dtype == jnp.bfloat16 else 5e-5
    for side in ("d_audio", "d_text"):
        np.testing.assert_allclose(have[side], want[side], atol=tolerance, rtol=0, err_msg=side)


UNEVEN = {"num_rows": 300, "num_cols": 700, "dtype": "float32", "padding": 9}


@pytest.mark.parametrize(
    ("block", "generation", "num_groups"),
    [
        pytest.param(UNEVEN, TWO_CORES, 3, id="uneven, padding, two cores, groups"),
        pytest.param(UNEVEN | {"dtype": "bfloat16"}, ONE_CORE, 1, id="bfloat16"),
        pytest.param(UNEVEN | {"num_rows": 40, "num_cols": 30}, ONE_CORE, 1, id="less than a tile"),
        pytest.param(UNEVEN | {"num_rows": 1, "num_cols": 1, "padding": 0}, ONE_CORE, 1, id="one pair"),
    ],
)
def test_kernels_equal_the_formulas(block, generation, num_groups):
    # At the lower scale the zero logits of padding would be seen in the sums, at the higher the rounding is.
    for scale in (10.0, 100.0):
        check(make_block(**block), scale, generation, num_groups)


@pytest.mark.slow
@pytest.mark.parametrize(("generation", "num_cores"), [(ONE_CORE, 1), (TWO_CORES, 2)])
def test_windows_and_cores_do_not_race(generation, num_cores):
    # This interpreter simulates the copies between HBM and VMEM, the cores, and memory that starts as NaN.
    interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=num_cores)
    check(make_block(**UNEVEN), 10.0, generation, 3, interpret=interpret)
    assert not interpret_pallas_call.races.races_found


def test_opposite_embeddings_overflow_nothing():
    # Every log-sum-exp is about -95, so that the logits of padding, 0, exceed them by more than exp can take.
    block = make_block(**UNEVEN)
    for side, sign in (("audio", 1), ("text", -1)):
        real = block[f"{side}_ids"][:, None] >= 0
        block[side] = jnp.where(real, sign * block["audio"][0], 0)
    assert expected(block, 100.0)["col"].min() < -90
    check(block, 100.0, TWO_CORES, 3)


def test_kernels_run_under_shard_map():
    # The interpreter loses which mesh axes its own values vary over, so the check of these types is off here; it is
    # on where the kernels are compiled for TPUs (test_contrastive_kernel_tpu.py).
    size, scale = 128, 20.0
    block = make_block(2 * size, size, "float32")
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    tilings = {name: fit_tiling(name, SMALL, ONE_CORE, "float32", WIDTH, size, size) for name in KERNELS}
    want = expected(block, scale)

    def both(audio: Any, audio_ids: Any, row_lse: Any) -> Any:
        pairs = (audio, block["text"], jnp.float32(scale), audio_ids, block["text_ids"])
        empty = LogSumExp.empty(size)
        rows, cols = kernel_tpu.block_statistics(
            *pairs, empty, empty, tiling=tilings["statistics"], interpret=True
        )
        zeros = jnp.zeros((size, WIDTH))
        col_lse = jnp.asarray(want["col"], jnp.float32)
        _, d_text = kernel_tpu.block_gradients(
            *pairs, row_lse, col_lse, zeros, zeros, tiling=tilings["gradients"], interpret=True
        )
        return rows.value(), jnp.exp(cols.value())[None], d_text[None]

    specs = (P("data"),) * 3
    run_both = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False))
    row_lse = jnp.asarray(want["row"], jnp.float32)
    rows, cols, d_text = run_both(block["audio"], block["audio_ids"], row_lse)
    np.testing.assert_allclose(rows, want["row"], atol=1e-5)
    np.testing.assert_allclose(np.log(cols.sum(axis=0)), want["col"], atol=1e-5)
    np.testing.assert_allclose(d_text.sum(axis=0), want["d_text"], atol=2e-5)


def test_the_loss_runs_on_the_kernels(monkeypatch):
    interpreted = [
        functools.partial(getattr(kernel_tpu, f"block_{name}"), interpret=True) for name in KERNELS
    ]
    for name, function in zip(KERNELS, interpreted, strict=True):
        monkeypatch.setattr(kernel_tpu, f"block_{name}", function)
    monkeypatch.setattr(kernel, "device_kind", lambda: "TPU v5 lite")
    size, scale = 200, 14.3
    block = make_block(size, size, "float32")
    # The pairs of the loss are the rows of both sides.
    block["text"], ids = block["text"][::-1], jnp.arange(size)
    want = expected(block | {"audio_ids": ids, "text_ids": ids}, scale)

    @jax.jit
    def value_and_grad(*args: Any) -> Any:
        return jax.value_and_grad(lambda *x: symmetric_infonce(*x, impl="kernel")[0], argnums=(0, 1, 2))(
            *args
        )

    arguments = (block["audio"], block["text"], jnp.float32(scale))
    assert "pallas_call" in str(jax.make_jaxpr(value_and_grad)(*arguments))
    total, grads = value_and_grad(*arguments)
    audio, text = (np.asarray(x, np.float64) for x in arguments[:2])
    cosines = (audio * text).sum()
    np.testing.assert_allclose(total, (want["row"] + want["col"]).sum() / 2 - scale * cosines, rtol=1e-5)
    np.testing.assert_allclose(grads[0], scale / 2 * want["d_audio"], atol=5e-5)
    np.testing.assert_allclose(grads[1], scale / 2 * want["d_text"], atol=5e-5)
    np.testing.assert_allclose(grads[2], (audio * want["d_audio"]).sum() / 2, rtol=1e-5)


def test_every_logit_is_computed_once_a_pass(monkeypatch):
    monkeypatch.setattr(kernel, "device_kind", lambda: "TPU v5 lite")
    size, width = 81_920, 512
    emb = jax.ShapeDtypeStruct((size, width), jnp.bfloat16)
    tiling = find_tiling("gradients", GENERATIONS["TPU v5 lite"], "bfloat16", width, size, size)
    assert tiling is not None
    assert tiling.num_groups > 1

    def value_and_grad(*args: Any) -> Any:
        return jax.value_and_grad(lambda *x: symmetric_infonce(*x, impl="kernel")[0], argnums=(0, 1, 2))(
            *args
        )

    scale = jax.ShapeDtypeStruct((), jnp.float32)
    assert count(value_and_grad, emb, emb, scale).flops == 8 * size**2 * width


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is called of XLA's tiles and of the kernels, which return the accumulators that they are given."""
    made: list[tuple[str, Any]] = []

    def record(module: Any, name: str, accumulators: slice) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append((module.__name__, kwargs))
            return args[accumulators]

        monkeypatch.setattr(module, name, call)

    record(kernel_tpu, "block_statistics", slice(5, 7))
    record(kernel_tpu, "block_gradients", slice(7, 9))
    record(tiles, "tile_statistics", slice(5, 7))
    record(tiles, "tile_gradients", slice(7, 9))
    kernel.announce_fallback.cache_clear()
    return made


def call_both(width: int) -> None:
    emb, ids, scale = jnp.zeros((256, width)), jnp.arange(256), jnp.float32(1)
    empty = LogSumExp.empty(256)
    kernel.tile_statistics(emb, emb, scale, ids, ids, empty, empty, tile=64)
    numbers = jnp.zeros(256)
    kernel.tile_gradients(emb, emb, scale, ids, ids, numbers, numbers, emb, emb, tile=64)


def test_a_tpu_runs_the_kernels_with_the_tiles_of_its_generation(calls, monkeypatch):
    monkeypatch.setattr(kernel, "device_kind", lambda: "TPU v5")
    call_both(512)
    tilings = [kwargs["tiling"] for module, kwargs in calls if module == kernel_tpu.__name__]
    assert [tiling.num_cores for tiling in tilings] == [2, 2]


@pytest.mark.parametrize(("device", "width"), [("cpu", 512), ("TPU v5 lite", 72), ("TPU v3", 512)])
def test_anywhere_else_xla_tiles_take_their_place_and_the_log_says_so_once(
    device, width, calls, monkeypatch, caplog
):
    monkeypatch.setattr(kernel, "device_kind", lambda: device)
    with caplog.at_level(logging.WARNING):
        call_both(width)
        call_both(width)
    assert calls == [(tiles.__name__, {"tile": 64})] * 4
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert f"{width} wide on {device}" in caplog.text


def test_losses_without_a_kernel_say_so_once(caplog):
    kernel.announce_no_kernel.cache_clear()
    emb, one = jax.ShapeDtypeStruct((256, WIDTH), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    groups = jax.ShapeDtypeStruct((256,), jnp.int32)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            jax.eval_shape(functools.partial(multi_positive_infonce, impl="kernel"), emb, emb, one, groups)
            jax.eval_shape(functools.partial(sigmoid_loss, impl="kernel"), emb, emb, one, one)
    assert ["several positives" in record.message for record in caplog.records] == [True, False]
    assert "sigmoid" in caplog.records[1].message


def test_the_device_is_the_one_the_program_is_for():
    assert kernel.device_kind() == jax.devices()[0].device_kind
