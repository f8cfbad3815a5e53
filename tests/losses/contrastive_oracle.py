"""The contrastive losses and their gradients by formula, in float64 NumPy, and places to run ours in."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from alm_jax.losses import contrastive

Arrays = Mapping[str, Any]


def unit_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_inputs(num_rows: int, *, width: int = 8, num_negatives: int = 3, seed: int = 0) -> dict[str, Any]:
    """Rows of every kind that a loss may take: some are padding, some have no group, some negatives are none."""
    rng = np.random.default_rng(seed)
    audio = unit_rows(rng, num_rows, width)
    text = audio + unit_rows(rng, num_rows, width)
    return {
        "audio": audio,
        "text": (text / np.linalg.norm(text, axis=-1, keepdims=True)).astype(np.float32),
        "negatives": unit_rows(rng, num_rows, num_negatives, width),
        "negative_mask": rng.random((num_rows, num_negatives)) < 0.6,
        "groups": rng.integers(-1, max(num_rows // 3, 1), num_rows).astype(np.int32),
        "mask": rng.random(num_rows) < 0.8,
        "scale": np.float32(14.3),
        "bias": np.float32(-3.0),
    }


def _infonce(x: Arrays, **options: Any) -> Any:
    return contrastive.symmetric_infonce(x["audio"], x["text"], x["scale"], mask=x["mask"], **options)


def _multi_positive(x: Arrays, **options: Any) -> Any:
    arrays = x["audio"], x["text"], x["scale"], x["groups"]
    return contrastive.multi_positive_infonce(*arrays, mask=x["mask"], **options)


def _hard_negatives(x: Arrays, **options: Any) -> Any:
    arrays = x["audio"], x["text"], x["negatives"], x["scale"]
    return contrastive.hard_negative_infonce(
        *arrays, negative_mask=x["negative_mask"], mask=x["mask"], **options
    )


def _hard_negatives_of_groups(x: Arrays, **options: Any) -> Any:
    return _hard_negatives(x, group_ids=x["groups"], **options)


def _sigmoid(x: Arrays, **options: Any) -> Any:
    return contrastive.sigmoid_loss(x["audio"], x["text"], x["scale"], x["bias"], mask=x["mask"], **options)


def _sigmoid_of_groups(x: Arrays, **options: Any) -> Any:
    return _sigmoid(x, group_ids=x["groups"], **options)


LOSSES: dict[str, Callable[..., Any]] = {
    "infonce": _infonce,
    "multi_positive": _multi_positive,
    "hard_negatives": _hard_negatives,
    "hard_negatives_of_groups": _hard_negatives_of_groups,
    "sigmoid": _sigmoid,
    "sigmoid_of_groups": _sigmoid_of_groups,
}
"""name -> (inputs, **options) -> (sum, weight), by alm_jax."""


def oracle(name: str, x: Arrays) -> tuple[float, int, dict[str, np.ndarray]]:
    """Sum, weight, and gradients of the sum with respect to the float inputs that the loss takes."""
    keep = np.asarray(x["mask"])
    a, t = (np.asarray(x[key], np.float64)[keep] for key in ("audio", "text"))
    scale, cosine = float(x["scale"]), a @ t.T
    group = np.asarray(x["groups"])[keep] if "positive" in name or "groups" in name else np.full(len(a), -1)
    positive = (group[:, None] == group[None, :]) & (group[:, None] >= 0) | np.eye(len(a), dtype=bool)
    logits, grads = scale * cosine, {}
    if name.startswith("sigmoid"):
        sign = np.where(positive, 1, -1)
        agreement = sign * (logits + float(x["bias"]))
        total = np.logaddexp(0, -agreement).sum()
        d_logits = -sign / (1 + np.exp(agreement))
        grads["bias"] = d_logits.sum()
    else:
        target = positive / positive.sum(axis=1, keepdims=True)
        every = logits
        if name.startswith("hard"):
            negatives = np.asarray(x["negatives"], np.float64)[keep]
            products = np.einsum("be,bke->bk", a, negatives)
            own = np.where(np.asarray(x["negative_mask"])[keep], scale * products, -np.inf)
            every = np.concatenate([logits, own], axis=1)
        rows, cols = softmax(every, axis=1), softmax(logits, axis=0)
        total = (log_sum_exp(every, axis=1) + log_sum_exp(logits, axis=0)).sum() / 2 - (target * logits).sum()
        d_logits = (rows[:, : len(a)] + cols) / 2 - target
    d_audio, d_text = scale * d_logits @ t, scale * d_logits.T @ a
    d_scale = (d_logits * cosine).sum()
    if name.startswith("hard"):
        d_own = rows[:, len(a) :] / 2
        d_audio = d_audio + scale * np.einsum("bk,bke->be", d_own, negatives)
        d_scale = d_scale + (d_own * products).sum()
        grads["negatives"] = scatter(keep, scale * d_own[:, :, None] * a[:, None, :])
    grads |= {"audio": scatter(keep, d_audio), "text": scatter(keep, d_text), "scale": d_scale}
    return total, int(keep.sum()), grads


def log_sum_exp(x: np.ndarray, *, axis: int) -> np.ndarray:
    if not x.size:
        return np.zeros(0)
    peak = x.max(axis=axis, keepdims=True)
    return np.squeeze(peak, axis) + np.log(np.exp(x - peak).sum(axis=axis))


def softmax(x: np.ndarray, *, axis: int) -> np.ndarray:
    return np.exp(x - np.expand_dims(log_sum_exp(x, axis=axis), axis))


def scatter(keep: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows back where they were, zeros for padding."""
    out = np.zeros((len(keep), *rows.shape[1:]))
    out[keep] = rows
    return out


DIFFERENTIABLE = ("audio", "text", "negatives", "scale", "bias")
SCALARS = ("scale", "bias")


def split(x: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    """What gets gradients, and the rest."""
    return {k: x[k] for k in DIFFERENTIABLE}, {k: v for k, v in x.items() if k not in DIFFERENTIABLE}


def run(
    place: str, num_devices: int, name: str, x: Arrays, devices: Any = None, **options: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Sum, weight and gradients by alm_jax, in the global view, or in a device's view put together again."""
    devices = (jax.devices() if devices is None else devices)[:num_devices]
    loss = functools.partial(LOSSES[name], **options)
    if place == "pmap":
        return run_pmap(devices, loss, x)
    names = ("data", "fsdp") if num_devices > 2 and place == "shard_map" else ("data",)
    shape = (num_devices // 2, 2) if len(names) == 2 else (num_devices,)
    mesh = Mesh(np.array(devices).reshape(shape), names, axis_types=(AxisType.Auto,) * len(names))
    trained, fixed = split(x)
    if place == "jit":
        function = jax.value_and_grad(lambda trained, fixed: loss({**trained, **fixed}), has_aux=True)
        with jax.set_mesh(mesh):
            (total, weight), grads = jax.jit(function)(trained, fixed)
        return total, weight, grads

    def on_device(trained: Arrays, fixed: Arrays) -> Any:
        def global_sum(trained: Arrays) -> Any:
            total, weight = loss({**trained, **fixed}, axis_name=names)
            return jax.lax.psum(total, names), jax.lax.psum(weight, names)

        return jax.value_and_grad(global_sum, has_aux=True)(trained)

    specs = {key: P() if key in SCALARS else P(names) for key in trained}
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(specs, P(names)), out_specs=((P(), P()), specs))
    (total, weight), grads = jax.jit(mapped)(trained, fixed)
    return total, weight, grads


def run_pmap(devices: Any, loss: Callable[..., Any], x: Arrays) -> tuple[Any, Any, dict[str, Any]]:
    def cut(tree: Arrays) -> dict[str, Any]:
        return {k: v if k in SCALARS else v.reshape(len(devices), -1, *v.shape[1:]) for k, v in tree.items()}

    trained, fixed = (cut(tree) for tree in split(x))
    axes = {key: None if key in SCALARS else 0 for key in trained}
    function = jax.value_and_grad(
        lambda trained, fixed: loss({**trained, **fixed}, axis_name="data"), has_aux=True
    )
    mapped = jax.pmap(function, axis_name="data", in_axes=(axes, 0), devices=devices)
    (total, weight), grads = jax.device_get(mapped(trained, fixed))
    joined = {key: g.sum() if key in SCALARS else g.reshape(-1, *g.shape[2:]) for key, g in grads.items()}
    return total.sum(), weight.sum(), joined


def check(
    got: tuple[Any, Any, Mapping[str, Any]], want: tuple[Any, Any, Mapping[str, Any]], **tol: float
) -> None:
    """Sum, weight and the gradients that the formula has; the others are zero."""
    np.testing.assert_allclose(got[0], want[0], **tol)
    assert got[1] == want[1]
    for key, grad in got[2].items():
        expected = want[2].get(key, np.zeros_like(grad))
        np.testing.assert_allclose(np.asarray(grad, np.float64), expected, **tol, err_msg=key)
