"""The Q-Former: a transformer whose learned queries read a clip's states, and which reads text beside them.

BLIP-2 (Li et al. 2023, https://arxiv.org/abs/2301.12597, section 3.1); of audio, MINT's bridge (arXiv 2402.07485).
Queries alone it is a connector, from any number of states to K vectors: `query_audio`.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alm_jax.errors import UserError
from alm_jax.nn.cross_attention import CrossKeyValue
from alm_jax.nn.dropout import dropout
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS, declare, truncated_normal
from alm_jax.nn.q_former import QFormerGroup
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.ops.attention_masks import prefix_lm_mask

Reading = Literal["both", "causal"]
"""How text is read beside queries: ``both``, queries and text see each other; ``causal``, a token sees the queries and
what is written before it, and the queries see each other alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """Shape of a Q-Former. Defaults are BLIP-2's, of BERT-base."""

    num_queries: int = 32
    """Number of learned queries: vectors that a clip is mapped to."""
    width: int = 768
    """Width: size of a state."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers, for queries and for text."""
    cross_every: int = 2
    """Interval of cross-attention: queries attend to audio in the first block and in every ``cross_every``-th after
    it; divides num_layers."""
    layer_norm_eps: float = 1e-12
    """Epsilon of LayerNorm."""
    dropout: float = 0.1
    """Dropout rate of embeddings, attention weights and residual branches in training."""
    kernel_init: Literal["normal", "fan_in"] = "normal"
    """Initialisation of kernels: N(0, 0.02^2) as published, or N(0, 1 / fan-in), with which a narrow model learns
    faster."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"q_former width {self.width} is not a multiple of num_heads {self.num_heads}; change one of them"
            )
        if self.num_queries < 1 or self.cross_every < 1 or self.num_layers % self.cross_every:
            raise UserError(
                f"a Q-Former of {self.num_queries} queries attends to audio in every {self.cross_every}th of "
                f"{self.num_layers} layers: expected a query at least, and a cross_every that divides num_layers"
            )


class QFormer(nn.Module):
    """Queries that read audio, text, or both, to the last states [B S D] of queries and text, in that order.

    Parameters: ``queries`` [num_queries D], ``audio_norm``, ``key_value`` (`CrossKeyValue`: of all blocks that attend
    to audio), ``embed_norm``, ``groups`` (`QFormerGroup`, every array with a leading axis of groups).
    """

    config: QFormerConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        audio: Float[Array, "B N A"] | None,
        audio_mask: Bool[Array, "B N"] | None,
        text: Float[Array, "B L D"] | None = None,
        text_mask: Bool[Array, "B L"] | None = None,
        *,
        reading: Reading = "both",
        train: bool = False,
    ) -> Float[Array, "B S D"]:
        """States of the queries, of the text, or of both.

        Args:
            audio: an audio encoder's states; None: text alone, in both directions and without queries.
            audio_mask: True where a state is of real audio.
            text: embeddings of tokens, positions and all, before the first norm; None: queries alone.
            text_mask: True where a token is real.
            reading: see `Reading`.
            train: dropout is on and needs the "dropout" stream.
        """
        config = self.config
        rate = config.dropout if train else 0.0
        init = KERNEL_INITS[config.kernel_init]
        parts, masks, key_value, num_queries = [], [], None, 0
        if audio is not None:
            assert audio_mask is not None
            num_queries = config.num_queries
            shape = (num_queries, config.width)
            queries = declare(self, "queries", truncated_normal, shape, ("queries", "embed"))
            parts.append(jnp.broadcast_to(queries[None], (audio.shape[0], *shape)))
            masks.append(jnp.ones((audio.shape[0], num_queries), bool))
            encoded = LayerNorm(self.dtype, axis="audio_embed", name="audio_norm")(audio)
            key_value = CrossKeyValue(
                config.num_layers // config.cross_every,
                config.num_heads,
                config.width // config.num_heads,
                self.dtype,
                kernel_init=init,
                name="key_value",
            )(encoded, audio_mask)
        if text is not None:
            assert text_mask is not None
            parts.append(text)
            masks.append(text_mask)
        x = jnp.concatenate(parts, axis=1)
        mask = jnp.concatenate(masks, axis=1)
        x = LayerNorm(self.dtype, config.layer_norm_eps, name="embed_norm")(x)
        x = dropout(x, rate, self.make_rng("dropout") if rate else None)
        visible = mask[:, None, None, :]
        if reading == "causal":
            is_query = jnp.broadcast_to(jnp.arange(mask.shape[1])[None] < num_queries, mask.shape)
            visible = prefix_lm_mask(mask, is_query)

        groups = nn.scan(
            rematerialise(QFormerGroup, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=config.num_layers // config.cross_every,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = groups(
            config.cross_every,
            num_queries,
            config.num_heads,
            config.mlp_dim,
            config.layer_norm_eps,
            rate,
            self.dtype,
            init,
            name="groups",
        )(
            x,
            None if key_value is None else key_value.key,
            None if key_value is None else key_value.value,
            visible,
            audio_mask,
        )
        return x


def query_audio(
    config: QFormerConfig,
    params: Any,
    audio: Float[Array, "B N A"],
    audio_mask: Bool[Array, "B N"],
    *,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, "B K D"]:
    """What the queries make of clips: K = num_queries vectors each, in ``dtype``.

    ``params`` are `QFormer`'s; those of its text, where it was trained with any, are not read. ``key`` is needed where
    ``train`` turns dropout on.
    """
    module = QFormer(config, jnp.dtype(dtype), remat)
    rngs = None if key is None else {"dropout": key}
    vectors: Any = module.apply({"params": params}, audio, audio_mask, train=train, rngs=rngs)
    return vectors
