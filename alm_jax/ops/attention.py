"""Scaled dot-product attention, used by every encoder, and the choice of its implementation.

Letters as in alm_jax/types.py, and inside attention Q queries, S keys and G heads of keys.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.errors import UserError
from alm_jax.ops.flash_attention import flash_attention, is_cut_evenly

AttentionImpl = Literal["auto", "reference", "xla", "cudnn", "flash"]
"""How attention is computed:

=========  ===================================================================================================
auto       `choose_attention`'s choice, or `attention_form`'s
reference  plain JAX, any leading axes, bias, mask and dropout
xla        `jax.nn.dot_product_attention`, the same products in XLA
cudnn      the same through cuDNN's fused kernel on a GPU: float16 or bfloat16, and no Q x S array in memory
flash      a TPU's kernel (ops/flash_attention.py): float32 or bfloat16, and no Q x S array; interpreted elsewhere
=========  ===================================================================================================
"""

Seen = Literal["all", "keys", "pairs"]
"""Kind of mask: none, some keys hidden from all queries, or any pairs."""

FLASH_LENGTH = 384
"""Minimum number of queries and keys with which ``auto`` chooses ``flash`` on a TPU. At this length it needs half the
memory and half the cycles of the reference (`python -m alm_jax.bench.attention v5e:2x2 --impl flash --length 384`).
See docs/performance.md, "Attention"."""

_form: contextvars.ContextVar[AttentionImpl] = contextvars.ContextVar("attention_form", default="auto")


@contextlib.contextmanager
def attention_form(impl: AttentionImpl) -> Iterator[None]:
    """Context that sets what ``auto`` stands for in programs traced inside, to compare implementations in a whole
    model."""
    token = _form.set(impl)
    try:
        yield
    finally:
        _form.reset(token)


def attend(
    query: Float[Array, "*B Q H K"],
    key: Float[Array, "*B S G K"],
    value: Float[Array, "*B S G K"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    key_lengths: Int[Array, "*B"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    impl: AttentionImpl = "auto",
) -> Float[Array, "*B Q H K"]:
    """Attention(q, k, v) = softmax(q k^T / sqrt(K) + bias) v over any number of leading axes.

    The matrix products run in the dtype of ``query`` and accumulate in float32; bias, mask and softmax
    are float32 (float64 where the inputs are). A query whose keys are all masked gets the plain mean of the
    values, never NaN; only the reference promises that. (Vaswani et al. 2017, equation 1.)

    G divides H: H / G consecutive heads of queries share a head of keys and values, which are not repeated.
    (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245)

    Args:
        bias: added to the scores; has their rank and broadcasts to [*B H Q S].
        mask: True where a query may attend to a key; has the scores' rank and broadcasts to them. One of keys
            alone, [*B 1 1 S], is a mask that ``flash`` takes.
        key_lengths: keys from this number on are padding; a mask that the fused kernels take.
        is_causal: query i sees no key after key i, whatever else masks them; the fused kernels skip those products.
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
        seen: Seen = "all" if mask is None else "keys" if _masks_keys(mask) else "pairs"
        is_plain = bias is None and dropout_key is None
        impl = choose_attention(_platform(), query, key, is_plain=is_plain, seen=seen)
    if impl == "xla" or impl == "cudnn":
        if dropout_key is not None:
            raise UserError(f"attention {impl!r} has no dropout; use 'reference' or a dropout of 0")
        if impl == "cudnn" and (bias is not None or mask is not None):
            raise UserError("attention 'cudnn' takes key_lengths, neither bias nor mask; use 'reference'")
        return _attend_by_library(query, key, value, bias, mask, key_lengths, is_causal, scale, impl)
    if key_lengths is not None:
        positions = jnp.expand_dims(jnp.arange(key.shape[-3]), tuple(range(key_lengths.ndim)))
        real = (positions < key_lengths[..., None])[..., None, None, :]
        mask = real if mask is None else mask & real
    if impl == "flash":
        if bias is not None or dropout_key is not None or (mask is not None and not _masks_keys(mask)):
            raise UserError(
                "attention 'flash' takes key_lengths, is_causal and a mask of keys [*B 1 1 S], neither a bias, nor a "
                "mask of pairs, nor dropout; use 'reference'"
            )
        return _attend_by_flash(query, key, value, mask, is_causal, scale)
    if is_causal:
        shape = (1,) * (query.ndim - 2) + (query.shape[-3], key.shape[-3])
        causal = jnp.tril(jnp.ones(shape, jnp.bool_))
        mask = causal if mask is None else mask & causal
    accumulated = jnp.promote_types(query.dtype, jnp.float32)
    groups = key.shape[-2]
    if groups == query.shape[-2]:
        scores = jnp.einsum("...qhk,...shk->...hqs", query, key, preferred_element_type=accumulated)
    else:
        grouped = query.reshape(*query.shape[:-2], groups, -1, query.shape[-1])
        scores = jnp.einsum("...qgrk,...sgk->...grqs", grouped, key, preferred_element_type=accumulated)
        scores = scores.reshape(*scores.shape[:-4], -1, *scores.shape[-2:])
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.astype(accumulated)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout_key is not None:
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, weights.shape)
        weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
    weights = weights.astype(value.dtype)
    if groups == query.shape[-2]:
        return jnp.einsum("...hqs,...shk->...qhk", weights, value)
    weights = weights.reshape(*weights.shape[:-3], groups, -1, *weights.shape[-2:])
    attended = jnp.einsum("...grqs,...sgk->...qgrk", weights, value)
    return attended.reshape(*attended.shape[:-3], -1, attended.shape[-1])


def choose_attention(
    platform: str,
    query: Float[Array, "*B Q H K"],
    key: Float[Array, "*B S G K"],
    *,
    is_plain: bool,
    seen: Seen = "all",
) -> AttentionImpl:
    """Chooses the form that ``auto`` stands for, from shapes, dtypes and the mesh in scope only.

    ``is_plain``: neither bias nor dropout; ``seen``: what ``mask`` leaves (``key_lengths`` and ``is_causal`` are
    none).

    - cuDNN where it applies: a GPU, no mask, 16-bit floats, heads of a multiple of 8 up to 128 (before Hopper it
      takes no more), even lengths (it refuses odd ones in training), one leading axis, and lengths from 128 on,
      below which its tile is not filled.
    - ``flash`` where it applies: a TPU, no mask of pairs, float32 or bfloat16, rows that the mesh cuts evenly, and
      ``FLASH_LENGTH`` queries and keys or more.
    - The reference serves all else.
    """
    lengths, size = (query.shape[-3], key.shape[-3]), query.shape[-1]
    if platform == "tpu":
        is_flash = (
            is_plain
            and seen != "pairs"
            and query.dtype in (jnp.bfloat16, jnp.float32)
            and min(lengths) >= FLASH_LENGTH
            and is_cut_evenly(math.prod(query.shape[:-3]))
        )
        return "flash" if is_flash else "reference"
    is_fused = (
        platform in ("gpu", "cuda")
        and is_plain
        and seen == "all"
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
    is_causal: bool,
    scale: float | None,
    impl: Literal["xla", "cudnn"],
) -> Array:
    """Calls `jax.nn.dot_product_attention`, which requires exactly one leading axis."""
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
        is_causal=is_causal,
        scale=scale,
        implementation=impl,
    )
    return attended.reshape(*lead, *attended.shape[1:])


def _attend_by_flash(
    query: Array, key: Array, value: Array, mask: Array | None, is_causal: bool, scale: float | None
) -> Array:
    """Calls `flash_attention`, which requires exactly one leading axis."""
    lead = query.shape[:-3]
    if mask is not None:
        mask = jnp.broadcast_to(mask[..., 0, 0, :], (*lead, key.shape[-3])).reshape(-1, key.shape[-3])
    attended = flash_attention(
        *(x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)),
        key_mask=mask,
        is_causal=is_causal,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        interpret=_platform() != "tpu",
    )
    return attended.reshape(*lead, *attended.shape[1:])


def _masks_keys(mask: Array) -> bool:
    return mask.shape[-3:-1] == (1, 1)


def _platform() -> str:
    """Returns the platform to compile for: that of the mesh in scope, else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
