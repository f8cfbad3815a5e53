"""Tokens drawn from a model's distribution: its temperature, the k likeliest, the nucleus.

Filters in the order, and with the ties, of transformers' TemperatureLogitsWarper, TopKLogitsWarper (Fan et al. 2018,
https://arxiv.org/abs/1805.04833) and TopPLogitsWarper (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from alm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Sampling: each token is chosen at random from the model's distribution."""

    temperature: float = 1.0
    """Divisor of the logits: below 1 likely tokens become more likely."""
    top_k: int | None = None
    """Number of most likely tokens that can be sampled; None: all."""
    top_p: float | None = None
    """Total probability: only the smallest set of most likely tokens that reaches it can be sampled; None: all
    tokens."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(
                f"temperature is {self.temperature}; it must be above 0 (for the likeliest token, decode greedily)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


def filter_logits(logits: Float[Array, "B V"], sample: Sample) -> Float[Array, "B V"]:
    """Logits of the distribution that ``sample`` draws from: -inf for what cannot be drawn."""
    logits = logits / sample.temperature
    if sample.top_k is not None:
        likeliest, _ = lax.top_k(logits, min(sample.top_k, logits.shape[-1]))
        logits = jnp.where(logits < likeliest[:, -1:], -jnp.inf, logits)
    if sample.top_p is not None:
        order = jnp.argsort(logits, axis=-1)
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        # From the unlikeliest up: what lies within the probability to leave out. The likeliest always stays.
        is_out = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) <= 1 - sample.top_p
        is_out = is_out.at[:, -1].set(False)
        rank = jnp.argsort(order, axis=-1)
        logits = jnp.where(jnp.take_along_axis(is_out, rank, axis=-1), -jnp.inf, logits)
    return logits


def draw(key: Array, logits: Float[Array, "B V"], sample: Sample) -> Int[Array, " B"]:
    """One token a row."""
    return jax.random.categorical(key, filter_logits(logits, sample), axis=-1)
