"""Parameters whose axes have names, which training/sharding.py maps to mesh axes.

======================  ===========================================================================
name                    axis
======================  ===========================================================================
embed                   a tower's width
audio_embed             an audio encoder's width, where a layer takes it into a language model or a decoder
mlp                     hidden width of a feed-forward half
heads, head_dim         attention heads, size of one
qkv                     the three of query, key and value
layers                  a stack of equal layers
vocab                   tokens of a vocabulary
positions, token_types  rows of BERT's tables
time_positions          steps of time and
frequency_positions     bands that factorised positions are learned for
coordinates             time and frequency, in the network that makes a bias of a distance, and
bias_hidden             its hidden size
relative_positions      offsets between two tokens of a Swin window, buckets of them in T5
patch                   pixels of a patch
merged                  the four neighbours that patch merging joins
mel                     mel bins
window                  taps of a convolution over time
window_rows, _columns   taps of a convolution over two axes
gates, state            the four gates of an LSTM, its state; the two of BEATs' attention
summands                numbers that make up one of these two
channels_in, channels   what a convolution consumes and produces, where that is no width
pooled                  output of BERT's pooler
classes                 outputs of a classifier
codes, code_dim         rows of a codebook of audio labels, size of one
queries                 learned queries, each for a vector that comes out
rank                    what a low-rank adapter passes through
joint_hidden, joint     the projection into the space that the towers share
======================  ===========================================================================

No parameter has one name twice, so a table of rules can never put two of its axes on one mesh axis by
naming an axis once.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from alm_jax.nn.layout import constrain_parameter

truncated_normal = nn.initializers.truncated_normal(stddev=0.02)
"""Initialisation of BERT and Swin: N(0, 0.02), cut at two standard deviations."""
KERNEL_INITS = {
    "normal": truncated_normal,
    "fan_in": nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
}
"""Initialisation of a tower's kernels. 0.02 suits widths near 768, where it is close to 1/sqrt(fan-in). In a tower of
width 64 it makes every branch nearly zero and training slow: use "fan_in" to train such a tower from scratch."""
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


def declare(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
) -> Array:
    """Declares the float32 parameter ``name`` of ``module``, with a name for each of its axes."""
    # flax types the result as the box that holds the names; inside a module it is the array.
    param: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return constrain_parameter(param, axes)
