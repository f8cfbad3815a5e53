"""Power to decibels with an absolute floor and no ceiling on the dynamic range."""

import jax.numpy as jnp
from jaxtyping import Array, Float

POWER_FLOOR = 1e-10


def power_to_db(power: Float[Array, "*shape"], *, floor: float = POWER_FLOOR) -> Float[Array, "*shape"]:
    """10 log10(max(power, floor)): librosa's ``power_to_db`` with ref 1, amin ``floor`` and top_db None."""
    return 10.0 * jnp.log10(jnp.maximum(power, floor))
