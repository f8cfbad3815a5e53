"""The language-modelling losses against their float64 formula: every form, in every place it runs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from alm_jax.bench.counting import count
from alm_jax.bench.memory import memory_of
from alm_jax.errors import UserError
from alm_jax.losses.language_modeling import next_token_loss, pick_plan, token_loss

FORMS = ("reference", "one_pass", "chunked")
WIDTH, VOCAB = 6, 24
TILE = (4, 10)  # uneven: 24 words in three blocks of 8, 13 tokens in four of 4
# A layer's; the largest error measured below is 2e-6.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
Result = tuple[Any, Any, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of one call: hidden [n D], kernel [D V], bias [V] or None, labels [n], mask [n] or None."""

    hidden: np.ndarray
    kernel: np.ndarray
    labels: np.ndarray
    bias: np.ndarray | None = None
    mask: np.ndarray | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    @property
    def settings(self) -> dict[str, float]:
        return {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}


def make_case(num_tokens: int = 13, vocab: int = VOCAB, *, scale: float = 1.0, **settings: Any) -> Case:
    rng = np.random.default_rng(num_tokens)
    return Case(
        (scale * rng.standard_normal((num_tokens, WIDTH))).astype(np.float32),
        rng.standard_normal((WIDTH, vocab)).astype(np.float32),
        rng.integers(0, vocab, num_tokens).astype(np.int32),
        bias=rng.standard_normal(vocab).astype(np.float32),
        **settings,
    )


def half_masked(case: Case) -> Case:
    """What does not count holds what must not be looked at."""
    mask = np.random.default_rng(1).random(len(case.labels)) < 0.5
    mask[0], mask[-1] = True, False
    hidden, labels = case.hidden.copy(), case.labels.copy()
    hidden[~mask], labels[~mask] = np.nan, -100
    return dataclasses.replace(case, hidden=hidden, labels=labels, mask=mask)


def oracle(case: Case) -> Result:
    """Sum, weight and gradients of the sum, term by term, in float64."""
    hidden, kernel = case.hidden.astype(np.float64), case.kernel.astype(np.float64)
    bias = 0 if case.bias is None else case.bias.astype(np.float64)
    keep = np.ones(len(hidden), bool) if case.mask is None else case.mask
    num_words = kernel.shape[1]
    target = np.full((keep.sum(), num_words), case.label_smoothing / num_words)
    target[np.arange(keep.sum()), case.labels[keep]] += 1 - case.label_smoothing
    logits = hidden[keep] @ kernel + bias
    peak = logits.max(axis=1, keepdims=True)
    lse = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    total = -(target * (logits - lse)).sum() + case.z_loss * (lse**2).sum()
    d_logits = np.exp(logits - lse) * (1 + 2 * case.z_loss * lse) - target
    d_hidden = np.zeros(hidden.shape)
    d_hidden[keep] = d_logits @ kernel.T
    grads = {"hidden": d_hidden, "kernel": hidden[keep].T @ d_logits, "bias": d_logits.sum(axis=0)}
    return total, keep.sum(), grads


def check(got: Result, want: Result, **tolerance: float) -> None:
    tolerance = tolerance or TOLERANCE
    np.testing.assert_allclose(got[0], want[0], **tolerance)
    assert got[1] == want[1]
    for name, grad in got[2].items():
        np.testing.assert_allclose(np.asarray(grad, np.float64), want[2][name], **tolerance, err_msg=name)


@functools.cache  # one compilation serves all tests that share shapes
def on_one_device(impl: str, tile: tuple[int, int] | None, tied: bool, settings: tuple) -> Any:
    @jax.jit
    def value_and_grad(params, labels, mask):
        def loss(params):
            return token_loss(
                params["hidden"],
                params["kernel"],
                labels,
                mask=mask,
                bias=params.get("bias"),
                tied=tied,
                impl=impl,
                tile=tile,
                **dict(settings),
            )

        (total, weight), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return total, weight, grads

    return value_and_grad


def params_of(case: Case) -> dict[str, np.ndarray]:
    params = {"hidden": case.hidden, "kernel": case.kernel, "bias": case.bias}
    return {name: x for name, x in params.items() if x is not None}


def run(case: Case, impl: str, *, tile: tuple[int, int] | None = TILE, tied: bool = False) -> Result:
    params = params_of(case)
    if tied:
        params["kernel"] = np.ascontiguousarray(params["kernel"].T)
    function = on_one_device(impl, tile, tied, tuple(case.settings.items()))
    total, weight, grads = function(params, case.labels, case.mask)
    return total, weight, {**grads, "kernel": grads["kernel"].T} if tied else grads


SMOOTH = {"label_smoothing": 0.2, "z_loss": 1e-2}


@pytest.mark.parametrize("impl", FORMS)
def test_plain(impl: str) -> None:
    case = dataclasses.replace(make_case(), bias=None)
    check(run(case, impl), oracle(case))


@pytest.mark.parametrize("impl", FORMS)
def test_with_everything(impl: str) -> None:
    """Mask, bias, an embedding table, smoothing, z-loss; uneven blocks. Then the same program on nothing at all."""
    case = half_masked(make_case(**SMOOTH))
    check(run(case, impl, tied=True), oracle(case))
    nothing = dataclasses.replace(case, mask=np.zeros(13, bool))
    total, weight, grads = run(nothing, impl, tied=True)
    assert (total, weight) == (0, 0)
    for grad in grads.values():
        np.testing.assert_array_equal(grad, 0)
    only_last = dataclasses.replace(make_case(**SMOOTH), mask=np.arange(13) == 12)
    check(run(only_last, impl, tied=True), oracle(only_last))


@pytest.mark.slow
@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"z_loss": 1e-2}])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tile", [(13, 24), (1, 1), (5, 24)])
def test_every_combination(impl: str, settings: dict, masked: bool, tied: bool, tile: Any) -> None:
    case = half_masked(make_case(**settings)) if masked else make_case(**settings)
    check(run(case, impl, tied=tied, tile=tile), oracle(case))


@pytest.mark.parametrize("impl", FORMS)
def test_one_token_and_large_logits(impl: str) -> None:
    """Logits up to 1e4: relative errors are those of float32 numbers of that size."""
    case = dataclasses.replace(make_case(1), bias=None)
    check(run(case, impl), oracle(case))
    large = dataclasses.replace(make_case(1, scale=1e3), bias=None)
    want = oracle(large)
    assert abs(large.hidden @ large.kernel).max() > 3e3
    check(run(large, impl), want, rtol=1e-5, atol=1e-2)  # measured 1e-3 where gradients cancel
    np.testing.assert_allclose(run(large, impl)[0], want[0], rtol=1e-6)


@pytest.mark.parametrize("impl", FORMS)
def test_bfloat16(impl: str) -> None:
    """The value is exact for the rounded inputs; gradients are rounded as outputs, and once a block on their way."""
    case = half_masked(make_case(label_smoothing=0.1))
    hidden, kernel = (jnp.asarray(x, jnp.bfloat16) for x in (case.hidden, case.kernel))
    rounded = dataclasses.replace(
        case, hidden=np.asarray(hidden.astype(jnp.float32)), kernel=np.asarray(kernel.astype(jnp.float32))
    )
    want = oracle(rounded)
    got = run(dataclasses.replace(case, hidden=hidden, kernel=kernel), impl)  # type: ignore[arg-type]
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert got[2]["hidden"].dtype == got[2]["kernel"].dtype == jnp.bfloat16
    assert got[2]["bias"].dtype == jnp.float32
    # Four roundings of 2^-9 of numbers up to 4; measured 0.012.
    check(got, want, rtol=2**-7, atol=2**-6)


def test_a_float32_kernel_serves_bfloat16_states() -> None:
    """Master weights: products in bfloat16, the gradient of the kernel float32 and as good as the products."""
    case = make_case()
    hidden = jnp.asarray(case.hidden, jnp.bfloat16)
    got = run(dataclasses.replace(case, hidden=hidden), "chunked")  # type: ignore[arg-type]
    assert got[2]["kernel"].dtype == jnp.float32
    check(got, oracle(case), rtol=2**-6, atol=2**-5)


# Many devices.

AXES = ("data", "fsdp", "tensor")


def mesh_of(*shape: int) -> Mesh:
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def global_view(case: Case, impl: str, shape: tuple[int, int, int]) -> Result:
    """Under jit in the scope of a mesh: the loss spreads itself."""
    with jax.set_mesh(mesh_of(*shape)):
        return run(case, impl)


def device_view(case: Case, impl: str, shape: tuple[int, int, int]) -> Result:
    """Under shard_map: tokens over data and fsdp, words over tensor; psum, then grad."""
    vocab_axis = None if impl == "one_pass" else "tensor"
    tokens = P(("data", "fsdp"))
    specs = {"hidden": tokens, "kernel": P(None, vocab_axis), "bias": P(vocab_axis)}
    mask = np.ones(len(case.labels), bool) if case.mask is None else case.mask

    def loss(params, labels, mask):
        total, weight = token_loss(
            params["hidden"],
            params["kernel"],
            labels,
            mask=mask,
            bias=params["bias"],
            impl=impl,
            tile=TILE,
            vocab_axis_name=vocab_axis,
            **case.settings,
        )
        return jax.lax.psum(total, ("data", "fsdp")), jax.lax.psum(weight, ("data", "fsdp"))

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh_of(*shape),
        in_specs=(specs, tokens, tokens),
        out_specs=(P(), P(), specs),
    )
    def value_and_grad(params, labels, mask):
        (total, weight), grads = jax.value_and_grad(loss, has_aux=True)(params, labels, mask)
        return total, weight, grads

    return value_and_grad(params_of(case), case.labels, mask)


def pmap_view(case: Case, impl: str, shape: tuple[int, int, int]) -> Result:
    """Under pmap: the local sum differentiated, gradients of parameters psum-ed."""
    num_devices = shape[0]

    @functools.partial(
        jax.pmap, axis_name="data", in_axes=(0, None, 0, 0), devices=jax.devices()[:num_devices]
    )
    def value_and_grad(hidden, rest, labels, mask):
        def loss(params):
            return token_loss(
                params["hidden"],
                params["kernel"],
                labels,
                mask=mask,
                bias=params["bias"],
                impl=impl,
                tile=TILE,
                **case.settings,
            )

        grad = jax.value_and_grad(loss, has_aux=True)
        (total, weight), grads = grad({"hidden": hidden, **rest})
        d_hidden = grads.pop("hidden")
        return jax.lax.psum((total, weight, grads), "data"), d_hidden

    params = params_of(case)
    hidden, labels, mask = (
        x.reshape(num_devices, -1, *x.shape[1:]) for x in (params.pop("hidden"), case.labels, case.mask)
    )
    (total, weight, grads), d_hidden = value_and_grad(hidden, params, labels, mask)
    grads = {**{name: x[0] for name, x in grads.items()}, "hidden": d_hidden.reshape(-1, WIDTH)}
    return total[0], weight[0], grads


VIEWS = {"jit": global_view, "shard_map": device_view, "pmap": pmap_view}
ONE_TO_EIGHT = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (8, 1, 1), (1, 1, 2), (2, 1, 2), (1, 1, 8), (2, 2, 2)]
EVERYWHERE = [
    (view, impl, shape)
    for view in VIEWS
    for impl in FORMS
    for shape in ONE_TO_EIGHT
    if not (view == "pmap" and shape[1:] != (1, 1))
    and not (view == "shard_map" and impl == "one_pass" and shape[2] > 1)
]
QUICK = [
    ("jit", "chunked", (2, 2, 2)),
    ("jit", "one_pass", (2, 1, 2)),
    ("shard_map", "chunked", (1, 1, 8)),
    ("shard_map", "reference", (2, 2, 2)),
    ("pmap", "chunked", (8, 1, 1)),
]
PLACES = QUICK + [pytest.param(*place, marks=pytest.mark.slow) for place in EVERYWHERE if place not in QUICK]


@pytest.mark.parametrize(("view", "impl", "shape"), PLACES)
def test_many_devices(view: str, impl: str, shape: tuple[int, int, int]) -> None:
    """32 tokens, of which some devices have few that count, and the last of eight none."""
    case = half_masked(make_case(32, **SMOOTH))
    assert case.mask is not None
    mask = case.mask & (np.arange(32) < 28)
    case = dataclasses.replace(case, mask=mask)
    check(VIEWS[view](case, impl, shape), oracle(case))


@pytest.mark.parametrize(
    ("num_tokens", "vocab", "shape"),
    [(13, 24, (2, 1, 2)), pytest.param(13, 25, (2, 1, 4), marks=pytest.mark.slow)],
)
def test_a_mesh_that_divides_nothing(num_tokens: int, vocab: int, shape: tuple[int, int, int]) -> None:
    """Tokens are filled up; a vocabulary that cannot be cut is kept whole, and the tokens are cut in its place."""
    case = make_case(num_tokens, vocab)
    check(global_view(case, "chunked", shape), oracle(case))


# What is asked, and what is chosen.


def test_next_token() -> None:
    """Against PyTorch, put together as transformers' causal models do, and against the positions by hand."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((3, 5, WIDTH)).astype(np.float32)
    kernel = rng.standard_normal((WIDTH, VOCAB)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (3, 5))
    response = np.arange(5) >= np.array([[0], [2], [4]])
    arrays = jnp.asarray(hidden), jnp.asarray(kernel), jnp.asarray(tokens, jnp.int32)
    total, weight = next_token_loss(*arrays, mask=jnp.asarray(response), label_smoothing=0.1)
    targets = torch.tensor(np.where(response, tokens, -100)[:, 1:]).reshape(-1)
    logits = (torch.tensor(hidden) @ torch.tensor(kernel))[:, :-1].reshape(-1, VOCAB)
    want = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")
    np.testing.assert_allclose(total, float(want), rtol=1e-5)
    assert weight == response[:, 1:].sum() == 8

    total, weight = next_token_loss(*arrays)
    flat = Case(hidden[:, :-1].reshape(-1, WIDTH), kernel, tokens[:, 1:].reshape(-1))
    want_total, want_weight, _ = oracle(flat)
    np.testing.assert_allclose(total, want_total, rtol=1e-5)
    assert weight == want_weight == 12


def shapes(num_tokens: int, width: int, vocab: int, dtype: Any = jnp.float32) -> tuple[Any, ...]:
    shape = jax.ShapeDtypeStruct
    return shape((num_tokens, width), dtype), shape((width, vocab), dtype), shape((num_tokens,), jnp.int32)


def mean_and_grad(impl: str, tile: tuple[int, int] | None = None, **settings: Any) -> Any:
    def mean(hidden, kernel, labels):
        total, weight = token_loss(hidden, kernel, labels, impl=impl, tile=tile, **settings)
        return total / weight

    return jax.value_and_grad(mean, argnums=(0, 1))


@pytest.mark.parametrize(("impl", "factor"), [("reference", 6), ("one_pass", 6), ("chunked", 8)])
def test_flops(impl: str, factor: int) -> None:
    counts = count(mean_and_grad(impl, (64, 128)), *shapes(256, 32, 1024))
    assert counts.flops == factor * 256 * 32 * 1024
    assert counts.num_unknown_loops == 0


def test_flops_and_traffic_of_a_device() -> None:
    """Every device has its share of the logits, and two exchanges a token group: statistics, and d_hidden."""
    num_tokens, width, vocab = 256, 32, 1024
    with jax.set_mesh(mesh_of(2, 1, 4)):
        counts = count(mean_and_grad("chunked", (64, 128)), *shapes(num_tokens, width, vocab), num_devices=8)
    assert counts.flops == num_tokens * width * vocab
    # All-reduces, twice (k - 1) / k: four numbers a token and d_hidden over 4, d_kernel over 2, the sum.
    rows, cols = num_tokens // 2, vocab // 4
    want = 2 * (3 / 4 * 4 * rows * (4 + width) + 1 / 2 * 4 * (width * cols + 1))
    assert counts.collective_bytes == pytest.approx(want, rel=0.01)


def temp_bytes(impl: str, num_tokens: int, vocab: int) -> int:
    function = jax.jit(mean_and_grad(impl, (256, vocab if impl == "one_pass" else 512)))
    return memory_of(function.lower(*shapes(num_tokens, 64, vocab)).compile()).temp_bytes


def test_memory_beside_inputs_and_gradients() -> None:
    """A few tiles, whatever the numbers of tokens and words; the plain form holds the logits twice."""
    tile_bytes = 4 * 256 * 512
    small, large = temp_bytes("chunked", 1024, 4096), temp_bytes("chunked", 4096, 16384)
    assert small <= 4 * tile_bytes
    # What is kept a token is a log-sum-exp and what it is made of.
    assert large - small <= 6 * 4 * (4096 - 1024)
    assert temp_bytes("one_pass", 1024, 4096) <= 3 * 4 * 256 * 4096 + 2 * 4 * 64 * 4096
    assert temp_bytes("reference", 1024, 4096) >= 4 * 1024 * 4096


@pytest.mark.parametrize(
    ("platform", "num_tokens", "width", "vocab", "itemsize", "axis", "want"),
    [
        ("cpu", 100, 512, 16384, 4, None, "reference"),
        ("cpu", 2048, 512, 16384, 4, None, "one_pass"),
        ("cpu", 2048, 512, 16384, 4, "tensor", "chunked"),
        ("cpu", 32768, 4096, 131072, 2, None, "chunked"),
        ("tpu", 32768, 768, 50304, 2, None, "chunked"),
        ("gpu", 32768, 4096, 131072, 2, None, "chunked"),
    ],
)
def test_what_auto_picks(
    platform: str, num_tokens: int, width: int, vocab: int, itemsize: int, axis: str | None, want: str
) -> None:
    plan = pick_plan(
        num_tokens=num_tokens,
        width=width,
        vocab_size=vocab,
        kernel_itemsize=itemsize,
        platform=platform,
        vocab_axis_name=axis,
    )
    assert plan.impl == want


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": (0, 8)}, "at least 1"),
        ({"label_smoothing": 1.0}, "below 1"),
        ({"z_loss": -1.0}, "not negative"),
        ({"impl": "one_pass", "vocab_axis_name": "tensor"}, "chunked"),
        ({"tied": True}, r"\[vocabulary width\]"),
        ({"bias": np.zeros(3, np.float32)}, "do not fit"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    case = make_case()
    settings = {name: jnp.asarray(x) if name == "bias" else x for name, x in settings.items()}
    with pytest.raises(UserError, match=message):
        token_loss(*map(jnp.asarray, (case.hidden, case.kernel, case.labels)), **settings)
