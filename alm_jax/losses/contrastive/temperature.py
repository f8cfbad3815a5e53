"""The three published temperatures: each turns a trained parameter into the multiplier of the cosine similarities.

=====================  ==========================  ===============  ==============================================
form                   trained                     scale            published with
=====================  ==========================  ===============  ==============================================
clamped exponential    theta, ln(1 / 0.07) first   exp(theta)       CLIP, LAION-CLAP: theta kept in [0, ln 100]
learned temperature    tau, 0.07 first             1 / tau          WavCaps, ML-CLAP; BLIP: tau in [0.001, 0.5]
scale and bias         theta, ln 10 first; bias,   exp(theta), and  SigLIP, for its sigmoid loss
                       -10 first                   bias is added
=====================  ==========================  ===============  ==============================================

Published code clamps the parameter after every optimiser step (or, which is the same, before every forward pass)
and not in the function that is differentiated, so a parameter at the bound keeps its gradient and can come back.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

LOG_SCALE_INIT = math.log(1 / 0.07)
LOG_SCALE_MAX = math.log(100.0)
TAU_INIT = 0.07
SIGMOID_LOG_SCALE_INIT = math.log(10.0)
SIGMOID_BIAS_INIT = -10.0


def logit_scale(log_logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Multiplier of the cosine similarities, exp(log_logit_scale), float32."""
    return jnp.exp(log_logit_scale.astype(jnp.float32))


def clamp_log_scale(log_logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Clamps the parameter to [0, ln 100]; apply it after every optimiser step."""
    return jnp.clip(log_logit_scale, 0.0, LOG_SCALE_MAX)


def inverse_tau(tau: Float[Array, ""]) -> Float[Array, ""]:
    """Multiplier of the cosine similarities, 1 / tau, float32.

    Its gradient differs from that of the exponential form by a factor -tau, and with it the course of training.
    """
    return 1 / tau.astype(jnp.float32)


def clamp_tau(tau: Float[Array, ""], lowest: float, highest: float) -> Float[Array, ""]:
    """Clamps the parameter to [lowest, highest]; apply it after every optimiser step."""
    return jnp.clip(tau, lowest, highest)


def scale_and_bias(
    log_logit_scale: Float[Array, ""], logit_bias: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Multiplier of the cosine similarities and what is added to their product, float32; neither is clamped."""
    return jnp.exp(log_logit_scale.astype(jnp.float32)), logit_bias.astype(jnp.float32)
