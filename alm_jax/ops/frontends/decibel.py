"""Power to decibels, with an absolute floor and, for some families, a floor below each clip's loudest bin."""

import jax.numpy as jnp
from jaxtyping import Array, Float

POWER_FLOOR = 1e-10


def power_to_db(power: Float[Array, "*shape"], *, floor: float = POWER_FLOOR) -> Float[Array, "*shape"]:
    """10 log10(max(power, floor)): librosa's ``power_to_db`` with ref 1, amin ``floor`` and top_db None."""
    return 10.0 * jnp.log10(jnp.maximum(power, floor))


def limit_range(level: Float[Array, "*B T F"], span: float) -> Float[Array, "*B T F"]:
    """Raises what lies more than ``span`` below the highest level of its own clip to that level.

    librosa's and torchaudio's ``top_db``, taken clip by clip: torchaudio takes a batch of spectrograms for
    one of several channels and looks for the maximum in the whole batch, so that a clip's features depend
    on its neighbours.
    """
    return jnp.maximum(level, jnp.max(level, axis=(-2, -1), keepdims=True) - span)
