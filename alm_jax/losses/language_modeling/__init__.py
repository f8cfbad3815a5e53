"""Language-modelling losses: projection onto the vocabulary and cross-entropy in one, without all logits in memory.

Both losses return (sum, weight), whose quotient is the mean over the tokens that count, and share these arguments:

- ``hidden``: the last hidden states, float32 or bfloat16. All products run in their dtype and add up in float32;
  softmax, log-sum-exp and loss are float32.
- ``kernel``: [D V]; with ``tied``, an embedding table [V D]. Float32 or bfloat16, rounded to the dtype of ``hidden``
  for the products. ``bias``: [V], added to the logits.
- ``mask``: True for the tokens that count. Others are ignored, whatever their hidden states and labels hold, and cost
almost nothing in the forms ``chunked`` and ``one_pass``: no mask is a little faster than one of all True. -
``label_smoothing``, ``z_loss``: see ``terms``. - ``impl``, ``tile``: the form and its blocks; see ``plan``.
- ``vocab_axis_name``: inside ``shard_map``, the mapped axes that the words are spread over, in the order of
  ``lax.axis_index``: ``kernel`` and ``bias`` are one device's words, ``labels`` number all words, and tokens, sum and
  weight are the same along these axes. Tokens may be spread over other axes: then sum and weight are those of one
  device's tokens; differentiate ``psum(sum)``. Under ``pmap`` tokens alone can be spread: differentiate the local
  sum and ``psum`` the gradients of parameters.

Under ``jit`` in the scope of a mesh, tokens are spread over the mesh's batch axes and words over ``tensor`` (tokens
too, where it does not divide the vocabulary), and the loss runs there under ``shard_map``.

tokamax 0.0.12, which installs beside JAX 0.10, has a kernel of the same kind for TPUs from v5 on. It takes no mask,
bias, label smoothing, z-loss or tied table, and no words spread over devices, so that it would serve few of the
losses here, and is not used; as yet the two have not been compared.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from alm_jax.batch import BATCH_AXES
from alm_jax.errors import UserError
from alm_jax.losses.language_modeling import chunked, one_pass, reference
from alm_jax.losses.language_modeling.plan import Impl, Plan, pick_plan
from alm_jax.losses.sums import AxisName, vary

__all__ = ["Impl", "Plan", "next_token_loss", "pick_plan", "token_loss"]

VOCAB_AXIS = "tensor"
"""Axis of the device mesh over which the vocabulary is cut, where a mesh has it."""

SumAndWeight = tuple[Float[Array, ""], Float[Array, ""]]


def token_loss(
    hidden: Float[Array, "*n D"],
    kernel: Float[Array, "rows cols"],
    labels: Int[Array, "*n"],
    *,
    mask: Bool[Array, "*n"] | None = None,
    bias: Float[Array, " V"] | None = None,
    tied: bool = False,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    impl: Impl = "auto",
    tile: tuple[int, int] | None = None,
    vocab_axis_name: AxisName | None = None,
) -> SumAndWeight:
    """Cross-entropy of the token at each position, summed over those that count, and their number.

    The loss of non-autoregressive models (all positions of a codebook at once, VALL-E, arXiv 2301.02111) and of
    masked language models (``mask`` True where `alm_jax.ops.token_masking` chose a token; BERT, arXiv 1810.04805).

    Raises:
      UserError: for an unknown form, or shapes and settings that do not fit together.
    """
    axis = 0 if tied else 1
    if kernel.shape[1 - axis] != hidden.shape[-1] or (
        bias is not None and bias.shape[0] != kernel.shape[axis]
    ):
        raise UserError(
            f"hidden states of width {hidden.shape[-1]}, a {'tied ' if tied else ''}kernel of shape {kernel.shape} and "
            f"a bias of shape {None if bias is None else bias.shape} do not fit: a kernel is [width vocabulary], one "
            "with tied=True [vocabulary width]"
        )
    settings = {
        "impl": impl,
        "tile": tile,
        "tied": tied,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "vocab_axis_name": vocab_axis_name,
    }
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    mask = None if mask is None else mask.reshape(-1)
    weight = jnp.float32(labels.size) if mask is None else jnp.sum(mask, dtype=jnp.float32)
    return _spread(settings, hidden, kernel, bias, labels, mask), weight


def next_token_loss(
    hidden: Float[Array, "*B L D"],
    kernel: Float[Array, "rows cols"],
    tokens: Int[Array, "*B L"],
    *,
    mask: Bool[Array, "*B L"] | None = None,
    bias: Float[Array, " V"] | None = None,
    tied: bool = False,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    impl: Impl = "auto",
    tile: tuple[int, int] | None = None,
    vocab_axis_name: AxisName | None = None,
) -> SumAndWeight:
    """Cross-entropy of each token given those before it, summed over those that count, and their number.

    ``hidden[..., t, :]`` predicts ``tokens[..., t + 1]``: the shift is made here. ``mask`` is True where a *token* is
    one to be predicted: real, and part of the response where prompts do not train. The first token of a row is never
    predicted and never counts.

    Raises UserError as ``token_loss``.
    """
    if mask is None:
        mask = jnp.ones(tokens.shape, bool)
    # The labels move and the hidden states stay: a copy of them would be large.
    last = jnp.zeros((*tokens.shape[:-1], 1), tokens.dtype)
    labels = jnp.concatenate([tokens[..., 1:], last], axis=-1)
    counts = jnp.concatenate([mask[..., 1:], last.astype(bool)], axis=-1)
    return token_loss(
        hidden,
        kernel,
        labels,
        mask=counts,
        bias=bias,
        tied=tied,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        impl=impl,
        tile=tile,
        vocab_axis_name=vocab_axis_name,
    )


def _spread(
    settings: dict[str, Any],
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    mask: Array | None,
) -> Array:
    """Computes the sum of the losses on one device, on a mapped axis, or on a mesh in scope."""
    axis = 0 if settings["tied"] else 1
    mesh = jax.sharding.get_abstract_mesh()
    free = {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if size > 1 and kind is not AxisType.Manual and name in (*BATCH_AXES, VOCAB_AXIS)
    }
    mapped = settings["vocab_axis_name"] is not None or len(jax.typeof(hidden).manual_axis_type.varying) > 0
    if mapped or not free:
        return _sum(_plan(settings, hidden, kernel), hidden, kernel, bias, labels, mask)

    ways = free.get(VOCAB_AXIS, 1)
    if ways > 1 and settings["impl"] != "one_pass" and kernel.shape[axis] % ways == 0:
        settings = {**settings, "vocab_axis_name": VOCAB_AXIS}
    vocab_axis = settings["vocab_axis_name"]
    token_axes = tuple(name for name in free if name != vocab_axis)
    num_shards = math.prod(free[name] for name in token_axes)
    padding = -hidden.shape[0] % num_shards
    if padding:
        mask = jnp.ones(labels.shape, bool) if mask is None else mask
        hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
        labels, mask = (jnp.pad(x, (0, padding)) for x in (labels, mask))

    def on_device(hidden: Array, kernel: Array, bias: Any, labels: Array, mask: Any) -> Array:
        total = _sum(_plan(settings, hidden, kernel), hidden, kernel, bias, labels, mask)
        return lax.psum(total, token_axes)

    kernel_spec = P(vocab_axis, None) if axis == 0 else P(None, vocab_axis)
    rows = P(token_axes)
    specs = (rows, kernel_spec, P(vocab_axis), rows, rows)
    total: Any = jax.shard_map(on_device, in_specs=specs, out_specs=P())(hidden, kernel, bias, labels, mask)
    return total


def _sum(
    plan: Plan, hidden: Array, kernel: Array, bias: Array | None, labels: Array, mask: Array | None
) -> Array:
    """Computes the sum of this device's tokens in the form that ``plan`` names."""
    # Marks the parameters as different on each device that has tokens of its own: the transpose adds up gradients.
    kernel, bias = vary((kernel, bias), (hidden, labels, mask))
    hidden, labels, mask = vary((hidden, labels, mask), (hidden, labels, mask))
    form = {"reference": reference, "one_pass": one_pass, "chunked": chunked}[plan.impl]
    return form.token_loss_sum(plan, hidden, kernel, bias, labels, mask)


def _plan(settings: dict[str, Any], hidden: Array, kernel: Array) -> Plan:
    return pick_plan(
        num_tokens=hidden.shape[0],
        width=hidden.shape[1],
        vocab_size=kernel.shape[0 if settings["tied"] else 1],
        kernel_itemsize=kernel.dtype.itemsize,
        platform=_platform(),
        **settings,
    )


def _platform() -> str:
    """Returns the platform to compile for: that of the mesh in scope, else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
