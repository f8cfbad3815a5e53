"""Scaled dot-product attention, the one function that every encoder calls, and how it is computed.

Letters as in alm_jax/types.py, and inside attention Q queries and S keys.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.errors import UserError

AttentionImpl = Literal["auto", "reference", "xla", "cudnn"]
"""How attention is computed:

=========  ===================================================================================================
auto       `choose_attention`'s choice, or `attention_form`'s
reference  plain JAX, any leading axes, bias, mask and dropout
xla        `jax.nn.dot_product_attention`, the same products in XLA
cudnn      the same through cuDNN's fused kernel on a GPU: float16 or bfloat16, and no Q x S array in memory
=========  ===================================================================================================
"""

_form: contextvars.ContextVar[AttentionImpl] = contextvars.ContextVar("attention_form", default="auto")


@contextlib.contextmanager
def attention_form(impl: AttentionImpl) -> Iterator[None]:
    """What ``auto`` stands for in programs that are traced inside, so that forms can be compared in a whole model."""
    token = _form.set(impl)
    try:
        yield
    finally:
        _form.reset(token)


def attend(
    query: Float[Array, "*B Q H K"],
    key: Float[Array, "*B S H K"],
    value: Float[Array, "*B S H K"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    key_lengths: Int[Array, "*B"] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    impl: AttentionImpl = "auto",
) -> Float[Array, "*B Q H K"]:
    """Attention(q, k, v) = softmax(q k^T / sqrt(K) + bias) v over any number of leading axes.

    The matrix products run in the dtype of ``query`` and accumulate in float32; bias, mask and softmax
    are float32 (float64 where the inputs are). A query whose keys are all masked gets the plain mean of the
    values, never NaN; only the reference promises that. (Vaswani et al. 2017, equation 1.)

    Args:
        bias: added to the scores; has their rank and broadcasts to [*B H Q S].
        mask: True where a query may attend to a key; has the scores' rank and broadcasts to them.
        key_lengths: keys from this number on are padding; a mask that the fused kernels take.
        scale: what the scores are multiplied by in place of 1 / sqrt(K); T5 has 1.
        dropout_rate: share of attention weights that are zeroed, the rest scaled up.
        dropout_key: PRNG key; without one nothing is dropped.

    Raises:
        UserError: ``impl`` names a form that cannot compute this.
    """
    if dropout_rate == 0.0:
        dropout_key = None
    if impl == "auto":
        impl = _form.get()
    if impl == "auto":
        is_plain = bias is None and mask is None and dropout_key is None
        impl = choose_attention(jax.default_backend(), query, key, is_plain=is_plain)
    if impl == "xla" or impl == "cudnn":
        if dropout_key is not None:
            raise UserError(f"attention {impl!r} has no dropout; use 'reference' or a dropout of 0")
        if impl == "cudnn" and (bias is not None or mask is not None):
            raise UserError("attention 'cudnn' takes key_lengths, neither bias nor mask; use 'reference'")
        return _attend_by_library(query, key, value, bias, mask, key_lengths, scale, impl)
    if key_lengths is not None:
        positions = jnp.expand_dims(jnp.arange(key.shape[-3]), tuple(range(key_lengths.ndim)))
        real = (positions < key_lengths[..., None])[..., None, None, :]
        mask = real if mask is None else mask & real
    accumulated = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("...qhk,...shk->...hqs", query, key, preferred_element_type=accumulated)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.astype(accumulated)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout_key is not None:
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, weights.shape)
        weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
    return jnp.einsum("...hqs,...shk->...qhk", weights.astype(value.dtype), value)


def choose_attention(
    platform: str, query: Float[Array, "*B Q H K"], key: Float[Array, "*B S H K"], *, is_plain: bool
) -> AttentionImpl:
    """The form that ``auto`` stands for; looks at shapes and dtypes alone.

    ``is_plain``: neither bias, nor mask (``key_lengths`` is none), nor dropout. cuDNN wins where it applies:
    a GPU, 16-bit floats, heads of a multiple of 8 up to 128 (before Hopper it takes no more), even lengths
    (it refuses odd ones in training), one leading axis, and lengths from 128 on, below which its tile is not
    filled. The reference serves all else.
    """
    lengths, size = (query.shape[-3], key.shape[-3]), query.shape[-1]
    is_fused = (
        platform in ("gpu", "cuda")
        and is_plain
        and query.ndim == 4
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and size % 8 == 0
        and size <= 128
        and all(length % 2 == 0 and length >= 128 for length in lengths)
    )
    return "cudnn" if is_fused else "reference"


def _attend_by_library(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    key_lengths: Array | None,
    scale: float | None,
    impl: Literal["xla", "cudnn"],
) -> Array:
    """`jax.nn.dot_product_attention`, which wants exactly one leading axis."""
    lead = query.shape[:-3]

    def flatten(x: Array) -> Array:
        return jnp.broadcast_to(x, (*lead, *x.shape[-3:])).reshape(-1, *x.shape[-3:])

    attended = jax.nn.dot_product_attention(
        flatten(query),
        flatten(key),
        flatten(value),
        bias=None if bias is None else flatten(bias),
        mask=None if mask is None else flatten(mask),
        key_value_seq_lengths=None if key_lengths is None else key_lengths.reshape(-1).astype(jnp.int32),
        scale=scale,
        implementation=impl,
    )
    return attended.reshape(*lead, *attended.shape[1:])
