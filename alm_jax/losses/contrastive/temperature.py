"""The clamped exponential temperature of CLIP and LAION-CLAP: scale = exp(theta), theta kept in [0, ln 100].

Published code clamps the parameter after every optimiser step, not in the forward pass, so a parameter at the
bound keeps its gradient and can come back.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

LOG_SCALE_INIT = math.log(1 / 0.07)
LOG_SCALE_MAX = math.log(100.0)


def logit_scale(log_logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Multiplier of the cosine similarities, exp(log_logit_scale), float32."""
    return jnp.exp(log_logit_scale.astype(jnp.float32))


def clamp_log_scale(log_logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The parameter back in [0, ln 100]; to be applied after every optimiser step."""
    return jnp.clip(log_logit_scale, 0.0, LOG_SCALE_MAX)
