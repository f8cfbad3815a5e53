"""One head: patches of a spectrogram and tokens of a text in one bidirectional transformer.

After CALM (Sachidananda et al. 2022, https://arxiv.org/abs/2202.03587), of which the abstract alone is public knowledge
here: linear patches of the spectrogram (SpecTran), aligned by a contrastive loss to the space that the text's tokens
are embedded in, and one transformer over the tokens of both, each at its own rate. Sizes and what is inside a block
are this project's.

The trunk reads one modality or both. Patches have learned positions in time and in frequency, tokens a learned one in
the text, and each modality an embedding of its own.

Variables are ``{"params": {...}, "batch_stats": {}}``:

================  ================================================================================================
params/trunk      `Trunk`: everything that both modalities share
params/joint      ``kernel`` and ``bias``: from the mean state of either modality to the contrastive space
params/patch_head ``kernel`` and ``bias``: from a patch's state to its pixels
params/word_head  `MaskedLanguageHead`; its logits are products with the trunk's own table of tokens
================  ================================================================================================
"""

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.errors import UserError
from alm_jax.nn.dense import Dense, Embed
from alm_jax.nn.masked_language_head import MaskedLanguageHead
from alm_jax.nn.norm import LayerNorm
from alm_jax.nn.parameter import KERNEL_INITS, declare, truncated_normal
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.rematerialise import Remat, rematerialise
from alm_jax.nn.transformer import PreNormBlock
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import FrontendSpec
from alm_jax.ops.patchify import patchify
from alm_jax.ops.similarity import unit_vectors
from alm_jax.types import PyTree

Variables: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneHeadConfig:
    """A front-end and a trunk for both modalities. Defaults have the size of BERT and ViT-B."""

    frontend: FrontendSpec
    """Front-end, from waveform to features; stored with the weights."""
    patch_size: int = 16
    """Side of a square patch, in frames and in bins; divides both numbers of the front-end."""
    vocab_size: int = 30000
    """Vocabulary size: entries of the tokenizer."""
    max_length: int = 512
    """Maximum tokens of a text."""
    width: int = 768
    """Width: size of a token's hidden state."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    mlp_dim: int = 3072
    """Hidden size of the feed-forward layers."""
    embed_dim: int = 512
    """Size of the contrastive space."""
    layer_norm_eps: float = 1e-6
    """Epsilon of LayerNorm."""
    kernel_init: Literal["normal", "fan_in"] = "fan_in"
    """Initialisation of kernels: N(0, 0.02^2), or N(0, 1 / fan-in), with which a narrow trunk learns faster."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax and the losses stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(
                f"width {self.width} is not a multiple of num_heads {self.num_heads}; change one of them"
            )
        sizes = self.frontend.num_frames, self.frontend.num_features
        if any(size % self.patch_size for size in sizes):
            raise UserError(
                f"the front-end makes {sizes[0]} frames of {sizes[1]} bins, no multiples of the patch size "
                f"{self.patch_size}: change frontend.num_mels, frontend.clip.clip_sec, or frontend.padded_frames where "
                "it has one"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a clip along time and along frequency."""
        return self.frontend.num_frames // self.patch_size, self.frontend.num_features // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of a clip."""
        return self.grid[0] * self.grid[1]


class Audio(NamedTuple):
    """What the trunk is given of clips."""

    features: Float[Array, "B T F"]
    mask: Bool[Array, "B N"]
    """True where a patch holds real audio."""
    hidden: Bool[Array, "B N"] | None = None
    """True where a learned vector stands for the patch; None: nowhere."""


class Text(NamedTuple):
    """What the trunk is given of texts."""

    ids: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    """True where a token is real."""


class Trunk(nn.Module):
    """Patches, tokens, or both, to their states, in ``dtype``.

    Parameters: ``patch_embed``, ``hidden_embed`` [D], ``time_embed`` [steps D], ``frequency_embed`` [bands D],
    ``token_embed``, ``position_embed`` [max_length D], ``modality_embed`` [2 D], ``blocks`` (every array with a leading
    axis of layers), ``norm``.
    """

    config: OneHeadConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, audio: Audio | None, text: Text | None, together: Bool[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B N D"] | None, Float[Array, "B L D"] | None]:
        """States of each modality that is given.

        Args:
            together: True where the two of a row see each other, elsewhere each sees itself alone; None: everywhere.
        """
        config, kinds = self.config, ("token_types", "embed")
        modality = declare(self, "modality_embed", truncated_normal, (2, config.width), kinds)
        x, masks = [], []
        if audio is not None:
            x.append(self._embed_audio(audio) + modality[0].astype(self.dtype)[None, None])
            masks.append(audio.mask)
        if text is not None:
            x.append(self._embed_text(text) + modality[1].astype(self.dtype)[None, None])
            masks.append(text.mask)
        mask = jnp.concatenate(masks, axis=1)
        if together is not None and len(masks) == 2:
            kind = jnp.repeat(
                jnp.arange(2), jnp.array([m.shape[1] for m in masks]), total_repeat_length=mask.shape[1]
            )
            same = kind[:, None] == kind[None, :]
            mask = mask[:, None, None, :] & (same[None, None] | together[:, None, None, None])
        blocks = nn.scan(
            rematerialise(PreNormBlock, config.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        init = KERNEL_INITS[config.kernel_init]
        states, _ = blocks(
            config.num_heads, config.mlp_dim, config.layer_norm_eps, self.dtype, init, name="blocks"
        )(jnp.concatenate(x, axis=1), mask)
        states = LayerNorm(self.dtype, config.layer_norm_eps, name="norm")(states)
        if audio is None:
            return None, states
        num_patches = audio.mask.shape[1]
        return states[:, :num_patches], None if text is None else states[:, num_patches:]

    def _embed_audio(self, audio: Audio) -> Float[Array, "B N D"]:
        """Patches and where they are, in time and in frequency."""
        config = self.config
        if audio.mask.shape[1] != config.num_patches:
            raise UserError(
                f"clips have {audio.mask.shape[1]} patches, the trunk has positions for {config.num_patches}: make "
                "features with the model's own front-end"
            )
        init, (steps, bands) = KERNEL_INITS[config.kernel_init], config.grid
        embed = Dense((config.width,), ("patch", "embed"), self.dtype, kernel_init=init, name="patch_embed")
        x = embed(patchify(audio.features, config.patch_size))
        stand_in = declare(self, "hidden_embed", truncated_normal, (config.width,), ("embed",))
        if audio.hidden is not None:
            x = jnp.where(audio.hidden[:, :, None], stand_in.astype(self.dtype)[None, None], x)
        axes = ("time_positions", "embed"), ("frequency_positions", "embed")
        time = declare(self, "time_embed", truncated_normal, (steps, config.width), axes[0])
        frequency = declare(self, "frequency_embed", truncated_normal, (bands, config.width), axes[1])
        at = (time[:, None] + frequency[None]).reshape(config.num_patches, config.width)
        return x + at.astype(self.dtype)[None]

    def _embed_text(self, text: Text) -> Float[Array, "B L D"]:
        """Tokens and where they are in the text."""
        config = self.config
        length = text.ids.shape[1]
        if length > config.max_length:
            raise UserError(
                f"texts of {length} tokens, the trunk has positions for {config.max_length}: shorten the tokenizer's "
                "max_length or raise the model's"
            )
        x = Embed(config.vocab_size, config.width, ("vocab", "embed"), name="token_embed")(text.ids)
        shape = (config.max_length, config.width)
        positions = declare(self, "position_embed", truncated_normal, shape, ("positions", "embed"))
        return (x + positions[None, :length]).astype(self.dtype)


def encode(
    config: OneHeadConfig,
    variables: Variables,
    audio: Audio | None,
    text: Text | None,
    *,
    together: Bool[Array, " B"] | None = None,
) -> tuple[Any, Any]:
    """States of the patches [B N D] and of the tokens [B L D], None for a modality that is not given.

    ``together`` is `Trunk`'s: which rows' modalities see each other; None for all.
    """
    trunk = Trunk(config, jnp.dtype(config.compute_dtype))
    states: Any = trunk.apply({"params": variables["params"]["trunk"]}, audio, text, together)
    return states


def embed(
    config: OneHeadConfig, variables: Variables, states: Float[Array, "B S D"], mask: Bool[Array, "B S"]
) -> Float[Array, "B E"]:
    """One vector of the states of one modality alone: their mean, projected and L2-normalised, float32."""
    mean = masked_mean(states.astype(jnp.promote_types(states.dtype, jnp.float32)), mask)
    y: Any = _joint(config).apply({"params": variables["params"]["joint"]}, mean)
    return unit_vectors(y)


def draw_patches(
    config: OneHeadConfig, variables: Variables, states: Float[Array, "B N D"]
) -> Float[Array, "B N pixels"]:
    """The pixels that patches' states stand for (row-major inside a patch, `patchify`), in the compute dtype."""
    head = _patch_head(config, jnp.dtype(config.compute_dtype))
    pixels: Any = head.apply({"params": variables["params"]["patch_head"]}, states)
    return pixels


def predict_words(
    config: OneHeadConfig, variables: Variables, states: Float[Array, "B L D"]
) -> Float[Array, "B L D"]:
    """What the product with `word_table` makes logits of."""
    head = _word_head(config, jnp.dtype(config.compute_dtype))
    hidden: Any = head.apply({"params": variables["params"]["word_head"]}, states)
    return hidden


def word_table(params: PyTree) -> tuple[Float[Array, "V D"], Float[Array, " V"]]:
    """The table of embeddings and the bias that make logits."""
    return params["trunk"]["token_embed"]["embedding"], params["word_head"]["bias"]


def real_patches(config: OneHeadConfig, num_samples: Int[Array, " B"]) -> Bool[Array, "B N"]:
    """Which patches of clips begin within their first ``num_samples`` samples."""
    steps, bands = config.grid
    begin = jnp.arange(steps) * config.patch_size * config.frontend.hop_samples
    return jnp.repeat(begin[None, :] < num_samples[:, None], bands, axis=1)


def _joint(config: OneHeadConfig) -> Dense:
    """In float32: it makes what similarities are taken of."""
    init = KERNEL_INITS[config.kernel_init]
    return Dense((config.embed_dim,), ("embed", "joint"), jnp.dtype("float32"), kernel_init=init)


def _patch_head(config: OneHeadConfig, dtype: jnp.dtype) -> Dense:
    init = KERNEL_INITS[config.kernel_init]
    return Dense((config.patch_size**2,), ("embed", "patch"), dtype, kernel_init=init)


def _word_head(config: OneHeadConfig, dtype: jnp.dtype) -> MaskedLanguageHead:
    return MaskedLanguageHead(
        config.vocab_size, config.layer_norm_eps, dtype, KERNEL_INITS[config.kernel_init]
    )


def _draw(config: OneHeadConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    keys, float32 = jax.random.split(key, 4), jnp.dtype("float32")
    spec = config.frontend
    features = jnp.zeros((1, spec.num_frames, spec.num_features), jnp.float32)
    audio = Audio(features, jnp.ones((1, config.num_patches), jnp.bool_))
    text = Text(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.bool_))
    states = jnp.zeros((1, 2, config.width), jnp.float32)
    drawn = {
        "trunk": Trunk(config, float32).init(keys[0], audio, text),
        "joint": _joint(config).init(keys[1], states[:, 0]),
        "patch_head": _patch_head(config, float32).init(keys[2], states),
        "word_head": _word_head(config, float32).init(keys[3], states),
    }
    return {"params": {name: variables["params"] for name, variables in drawn.items()}, "batch_stats": {}}


ONE_HEAD = Architecture(_draw)
"""Variables of a `OneHeadConfig`."""
