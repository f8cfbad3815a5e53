"""Every form of every contrastive loss against its float64 formula: value and all gradients."""

import itertools
import logging

import jax
import numpy as np
import pytest
from contrastive_oracle import LOSSES, check, make_inputs, oracle, run, unit_rows

from alm_jax.errors import UserError
from alm_jax.losses.contrastive import pick_plan
from alm_jax.losses.contrastive.gathered import grid_shape
from alm_jax.losses.contrastive.plan import announce
from alm_jax.losses.contrastive.ring import closed_path

# float32 sums of up to 40 x 40 terms; the largest relative error measured is 4e-7, gradients are up to 14.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
TILED = ("chunked", "ring", "grid")
MANY = list(itertools.product(LOSSES, ("onesided", *TILED), ("jit", "shard_map", "pmap"), (1, 2, 4, 8)))
QUICK = {
    ("infonce", "ring", "pmap", 8),
    ("infonce", "grid", "shard_map", 8),
    ("multi_positive", "chunked", "shard_map", 4),
    ("hard_negatives_of_groups", "ring", "jit", 4),
    ("sigmoid_of_groups", "ring", "shard_map", 4),
    ("sigmoid", "grid", "jit", 4),
}


@pytest.mark.parametrize(
    ("name", "impl", "place", "num_devices"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in MANY],
)
def test_value_and_gradients(name: str, impl: str, place: str, num_devices: int) -> None:
    """Masks, rows without a group, and tiles that divide neither the 5 rows of a device nor the 40 of all."""
    x = make_inputs(40)
    check(run(place, num_devices, name, x, impl=impl, tile=3), oracle(name, x), **TOLERANCE)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("hard_negatives", "sigmoid")))
        for name in LOSSES
    ],
)
def test_the_plain_form(name: str) -> None:
    x = make_inputs(40)
    check(run("jit", 1, name, x, impl="reference"), oracle(name, x), **TOLERANCE)


@pytest.mark.parametrize("name", ["hard_negatives_of_groups", "sigmoid_of_groups"])
def test_the_formula_equals_torch_autograd(name: str) -> None:
    torch = pytest.importorskip("torch")
    x = make_inputs(12)
    keep = torch.from_numpy(x["mask"])
    leaves = {k: torch.tensor(x[k], dtype=torch.float64, requires_grad=True) for k in oracle(name, x)[2]}
    a, t = (leaves[k][keep] for k in ("audio", "text"))
    group = torch.from_numpy(x["groups"])[keep]
    positive = ((group[:, None] == group[None, :]) & (group[:, None] >= 0)) | torch.eye(len(a), dtype=bool)
    logits = leaves["scale"] * a @ t.T
    if name.startswith("sigmoid"):
        sign = positive.double() * 2 - 1
        total = -torch.nn.functional.logsigmoid(sign * (logits + leaves["bias"])).sum()
    else:
        target = positive.double() / positive.sum(1, keepdim=True)
        own = leaves["scale"] * torch.einsum("be,bke->bk", a, leaves["negatives"][keep])
        own = own.masked_fill(~torch.from_numpy(x["negative_mask"])[keep], -torch.inf)
        to_text = torch.cat([logits, own], 1).log_softmax(1)[:, : len(a)]
        total = -(target * (to_text + logits.log_softmax(0)) / 2).sum()
    total.backward()
    want = oracle(name, x)
    np.testing.assert_allclose(total.item(), want[0], rtol=1e-12)
    for key, leaf in leaves.items():
        np.testing.assert_allclose(leaf.grad.numpy(), want[2][key], atol=1e-12, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "impl", "num_devices"), list(itertools.product(LOSSES, ("reference", *TILED), (1, 8)))
)
def test_one_pair_a_device_at_the_largest_scale(name: str, impl: str, num_devices: int) -> None:
    x = make_inputs(num_devices) | {"scale": np.float32(100.0), "mask": np.ones(num_devices, bool)}
    # A log-sum-exp near 100 is kept to 4e-6, and so is the softmax that comes of it; times the scale 4e-4. The plain
    # form, whose softmax divides by the sum, is better than 1e-4; of the tiled ones 2.3e-4 was measured.
    atol = 1e-4 if impl == "reference" else 4e-4
    check(run("jit", num_devices, name, x, impl=impl), oracle(name, x), rtol=1e-5, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "impl"), list(itertools.product(LOSSES, ("reference", "onesided", *TILED))))
@pytest.mark.parametrize("place", ["jit", "pmap"])
def test_padding_may_hold_anything_and_nothing_but_padding_is_zero(name: str, impl: str, place: str) -> None:
    x = make_inputs(16)
    want = oracle(name, x)
    for key in ("audio", "text", "negatives"):
        x[key][~x["mask"]] = np.nan
    check(run(place, 8, name, x, impl=impl, tile=2), want, **TOLERANCE)
    total, weight, grads = run(place, 8, name, x | {"mask": np.zeros(16, bool)}, impl=impl, tile=2)
    assert total == weight == 0
    assert all((np.asarray(grad) == 0).all() for grad in jax.tree.leaves(grads))


@pytest.mark.parametrize("impl", ["ring", pytest.param("chunked", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["infonce", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_bfloat16_keeps_the_precision_of_well_matched_pairs(name: str, impl: str) -> None:
    """The gradient of a pair with a probability of 0.9 is its 0.1, not the 0.9 rounded to 8 bits less 1."""
    rng = np.random.default_rng(0)
    x = make_inputs(16, width=32) | {
        "mask": np.ones(16, bool),
        "scale": np.float32(8),
        "bias": np.float32(-4),
    }
    text = x["audio"] + 0.3 * unit_rows(rng, 16, 32)
    x |= {"text": text / np.linalg.norm(text, axis=-1, keepdims=True)}
    x |= {key: jax.numpy.asarray(x[key], jax.numpy.bfloat16) for key in ("audio", "text")}
    total, _, grads = run("shard_map", 4, name, x, impl=impl, tile=4)
    want_total, _, want = oracle(name, x)
    np.testing.assert_allclose(total, want_total, rtol=1e-4)
    for key in ("audio", "text"):
        assert grads[key].dtype == jax.numpy.bfloat16
        error = np.linalg.norm(np.asarray(grads[key], np.float64) - want[key], axis=1)
        # Rounded to 8 bits twice: as the gradient of a logit, and at the end.
        assert (error / np.linalg.norm(want[key], axis=1)).max() < 2**-7


@pytest.mark.parametrize(
    ("shards", "batch_size", "platform", "impl"),
    [
        (1, 1024, "cpu", "reference"),
        (1, 16384, "cpu", "chunked"),
        (8, 1024, "tpu", "onesided"),
        (8, 65536, "tpu", "ring"),
        (256, 262144, "tpu", "grid"),
        (32, 12582912, "tpu", "ring"),
    ],
)
def test_auto_picks_from_the_table_and_says_so_once(shards, batch_size, platform, impl, caplog) -> None:
    announce.cache_clear()
    arguments = {"batch_size": batch_size, "num_shards": shards, "platform": platform}
    with caplog.at_level(logging.INFO, logger="alm_jax"):
        assert pick_plan("auto", **arguments).impl == impl
        pick_plan("auto", **arguments)
    assert [record.message for record in caplog.records if f"picks {impl} for {batch_size}" in record.message]
    assert len(caplog.records) == 1


def test_kernels_take_a_tiled_form() -> None:
    plan = pick_plan("kernel", batch_size=64, num_shards=1, platform="tpu")
    assert (plan.impl, plan.kernel) == ("chunked", True)


def test_unknown_forms_and_tiles_are_refused() -> None:
    with pytest.raises(UserError, match="known are auto, reference"):
        pick_plan("tiled", batch_size=64, platform="cpu")
    with pytest.raises(UserError, match="at least 1"):
        pick_plan("ring", batch_size=64, platform="cpu", tile=0)


@pytest.mark.parametrize(("num_x", "num_y"), [(2, 2), (2, 4), (4, 8), (16, 16), (6, 3), (2, 1)])
def test_the_ring_goes_from_neighbour_to_neighbour(num_x: int, num_y: int) -> None:
    path = closed_path(num_x, num_y)
    assert sorted(path) == list(range(num_x * num_y))
    places = np.array([divmod(place, num_y) for place in path])
    assert (np.abs(places - np.roll(places, -1, axis=0)).sum(axis=1) == 1).all()


@pytest.mark.parametrize(("n", "shape"), [(1, (1, 1)), (2, (2, 1)), (8, (4, 2)), (16, (4, 4)), (7, (7, 1))])
def test_grids_are_as_square_as_can_be(n: int, shape: tuple[int, int]) -> None:
    assert grid_shape(n) == shape
