"""The head of a masked language model, up to the product with the table of embeddings, which the loss makes."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.nn.dense import Dense
from alm_jax.nn.mlp import gelu
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import declare, truncated_normal, zeros


class MaskedLanguageHead(nn.Module):
    """States to norm(gelu(W x + b)), whose products with the embeddings, plus ``bias``, are the logits.

    BERT's and RoBERTa's, tied (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, in its code). `token_loss` of
    `alm_jax.losses.language_modeling` takes the result, the table of embeddings and the bias.

    Parameters: ``dense``, ``norm``, and ``bias`` [V].
    """

    vocab_size: int
    epsilon: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, states: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        # Declared here and read by the loss: the head has it in one place with its other parameters.
        declare(self, "bias", zeros, (self.vocab_size,), ("vocab",))
        size, axes = (states.shape[-1],), ("embed", "mlp")
        hidden = gelu(Dense(size, axes, self.dtype, kernel_init=self.kernel_init, name="dense")(states))
        return LayerNorm(self.dtype, self.epsilon, axis="mlp", name="norm")(hidden)
