"""CLIP's text tower, which encodes Pengi's prompts.

Radford et al. 2021 (https://arxiv.org/abs/2103.00020). Pre-norm blocks with causal attention and the quick
approximation of GELU. A text's vector is the normalised state of its end token, projected or not.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders.family import Family, TextTowerConfig
from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense, Embed
from alm_jax.nn.language_model import take_rows
from alm_jax.nn.mlp import quick_gelu
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PreNormBlock
from alm_jax.ops.attention_masks import causal_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(TextTowerConfig):
    """Shape of a CLIP text tower. Defaults are those of ViT-B/32 and ViT-B/16."""

    vocab_size: int = 49408
    """Vocabulary size: entries of the tokenizer."""
    width: int = 512
    """Width: size of a token's hidden state."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 8
    """Attention heads; divides the width."""
    mlp_dim: int = 2048
    """Hidden size of the feed-forward layers."""
    max_positions: int = 77
    """Rows of the position table: the maximum tokens of a text."""
    layer_norm_eps: float = 1e-5
    """Epsilon of LayerNorm."""
    embed_dim: int | None = 512
    """Size of the space that texts are projected into; None: no projection, the vector is the end token's state."""
    end_id: int | None = None
    """Id of the end token; the first one of a text is used. None, as published: the largest id of a text, which in
    CLIP's own vocabulary is the end token."""
    kernel_init: Literal["normal", "fan_in"] = "normal"
    """Initialisation of kernels: N(0, 0.02^2), or N(0, 1 / fan-in), with which a narrow tower learns faster."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"text width {self.width} is not a multiple of num_heads {self.num_heads}; change one of them"
            )


VIT_B_32 = ClipTextConfig()
VIT_L_14 = ClipTextConfig(width=768, num_heads=12, mlp_dim=3072, embed_dim=768)
NANO = ClipTextConfig(
    vocab_size=1000,
    width=128,
    num_layers=2,
    num_heads=4,
    mlp_dim=512,
    max_positions=64,
    embed_dim=32,
    kernel_init="fan_in",
)
VARIANTS = {"clip_vit_b_32": VIT_B_32, "clip_vit_b_16": VIT_B_32, "clip_vit_l_14": VIT_L_14, "nano": NANO}


class ClipText(nn.Module):
    """Module from token ids and their mask to one vector a text [B E], or to the normalised states [B L D], in
    ``dtype``.

    Parameters: ``token_embed``, ``position_embed``, ``blocks`` (every array with a leading axis of layers), ``norm``,
    and ``projection`` unless the config has none.
    """

    config: ClipTextConfig
    dtype: jnp.dtype
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        *,
        output: Literal["text", "states"] = "text",
    ) -> Float[Array, "B E"] | Float[Array, "B L D"]:
        """``mask`` is True for real tokens, which are padded on the right.

        Raises:
            UserError: texts are longer than the position table.
        """
        config = self.config
        if ids.shape[1] > config.max_positions:
            raise UserError(
                f"captions are padded to {ids.shape[1]} tokens; this tower has positions for {config.max_positions}: "
                "shorten the tokenizer's max_length"
            )
        init = KERNEL_INITS[config.kernel_init]
        x = Embed(config.vocab_size, config.width, ("vocab", "embed"), name="token_embed")(ids)
        positions = Embed(config.max_positions, config.width, ("positions", "embed"), name="position_embed")
        x = (x + positions(jnp.arange(ids.shape[1]))[None]).astype(self.dtype)
        blocks = nn.scan(
            rematerialise(PreNormBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(
            config.num_heads,
            config.mlp_dim,
            config.layer_norm_eps,
            self.dtype,
            init,
            quick_gelu,
            name="blocks",
        )(x, causal_mask(mask))
        x = LayerNorm(self.dtype, config.layer_norm_eps, name="norm")(x)
        if output == "states":
            return x
        x = take_rows(x, find_end(config, ids, mask))
        if config.embed_dim is None:
            return x
        size, axes = (config.embed_dim,), ("embed", "joint")
        return Dense(size, axes, self.dtype, use_bias=False, kernel_init=init, name="projection")(x)


def find_end(config: ClipTextConfig, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """Returns the index of each text's end token; 0 where there is none."""
    ids = jnp.where(mask, ids, -1)
    return jnp.argmax(ids if config.end_id is None else ids == config.end_id, axis=1)


FAMILY = Family(
    name="clip_text",
    kind="text encoder",
    config_type=ClipTextConfig,
    build=ClipText,
    variants=VARIANTS,
    example=lambda config: (jax.ShapeDtypeStruct((2, 4), jnp.int32), jax.ShapeDtypeStruct((2, 4), jnp.bool_)),
    source="https://arxiv.org/abs/2103.00020",
)
