"""The masked autoencoder of spectrograms: an encoder that sees some patches, a decoder that draws the others.

Free functions of a config and a tree of arrays; no Flax module is seen above this file. (AudioMAE, Huang et al. 2022,
https://arxiv.org/abs/2207.06405.)

Variables are ``{"params": {"encoder": ..., "decoder": ...}, "batch_stats": {}}``.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax.encoders import tower
from alm_jax.encoders.audio.audio_mae import AudioMae, AudioMaeConfig
from alm_jax.errors import UserError
from alm_jax.models.patch_decoders import DecoderConfig, LocalDecoderConfig, PatchDecoder, check_grid
from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import AstSpec, ClipSpec, FrontendSpec
from alm_jax.ops.patch_masking import PatchMask

Variables: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderConfig:
    """A front-end, an encoder that reads only the visible patches, and a decoder. Defaults are those of the released
    ViT-B."""

    frontend: FrontendSpec = AstSpec(clip=ClipSpec(clip_sec=10.0))
    """Front-end, from waveform to features; stored with the weights."""
    encoder: AudioMaeConfig = AudioMaeConfig()
    """The encoder, which is kept."""
    decoder: DecoderConfig = LocalDecoderConfig()
    """The decoder, which only pre-training needs."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax and the loss stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes; in the local decoder a block is a pair of Swin blocks."""

    def __post_init__(self) -> None:
        tower.check_features(self.encoder, self.frontend.num_frames, self.frontend.num_features)
        if self.frontend.num_frames % self.encoder.patch_size:
            raise UserError(
                f"the front-end makes {self.frontend.num_frames} frames a clip, no multiple of the patch size "
                f"{self.encoder.patch_size}: change frontend.clip.clip_sec, or frontend.padded_frames where it has one"
            )
        check_grid(self.decoder, self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a clip along time and along frequency."""
        return self.frontend.num_frames // self.encoder.patch_size, self.encoder.grid[1]

    @property
    def num_patches(self) -> int:
        """Patches of a clip."""
        return self.grid[0] * self.grid[1]


def reconstruct(
    config: MaskedAutoencoderConfig,
    variables: Variables,
    features: Float[Array, "B T F"],
    masked: PatchMask,
    *,
    train: bool = False,
    key: Array | None = None,
    dtype: Any = None,
) -> Float[Array, "B N pixels"]:
    """The decoder's pixels of every patch (row-major inside it, `patchify`), visible ones too, in the compute dtype.

    Args:
        masked: which patches the encoder sees; the others cost it nothing.
        train: the decoder's dropout is on and needs ``key``.
        dtype: of the matrix products, in place of the config's.
    """
    dtype = jnp.dtype(dtype or config.compute_dtype)
    params = variables["params"]
    encoder, decoder = _encoder(config, dtype), _decoder(config, dtype)
    states: Any = encoder.apply({"params": params["encoder"]}, features, visible_ids=masked.visible_ids)
    rngs = None if key is None else {"dropout": key}
    pixels: Any = decoder.apply(
        {"params": params["decoder"]}, states, masked.restore_ids, train=train, rngs=rngs
    )
    return pixels


def encode_clips(
    config: MaskedAutoencoderConfig, variables: Variables, features: Float[Array, "B T F"]
) -> Float[Array, "B D"]:
    """The mean of the states of all patches, which the encoder sees all of; float32."""
    states: Any = _encoder(config, jnp.dtype(config.compute_dtype)).apply(
        {"params": variables["params"]["encoder"]}, features
    )
    return jnp.mean(states[:, 1:].astype(jnp.float32), axis=1)


def _encoder(config: MaskedAutoencoderConfig, dtype: Any) -> AudioMae:
    return AudioMae(config.encoder, dtype, output="tokens", remat=config.remat)


def _decoder(config: MaskedAutoencoderConfig, dtype: Any) -> PatchDecoder:
    return PatchDecoder(
        config.decoder,
        config.encoder.patch_size**2,
        config.grid,
        config.encoder.compat,
        dtype,
        config.remat,
    )


def _draw(config: MaskedAutoencoderConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    key_encoder, key_decoder = jax.random.split(key)
    float32 = jnp.dtype("float32")
    features = jnp.zeros((1, config.encoder.patch_size, config.encoder.num_mels), jnp.float32)
    encoder = _encoder(config, float32).init(key_encoder, features)
    states = jnp.zeros((1, 2, config.encoder.width), jnp.float32)
    restore_ids = jnp.zeros((1, config.num_patches), jnp.int32)
    decoder = _decoder(config, float32).init(key_decoder, states, restore_ids)
    return {"params": {"encoder": encoder["params"], "decoder": decoder["params"]}, "batch_stats": {}}


MASKED_AUTOENCODER = Architecture(_draw)
"""Variables of a `MaskedAutoencoderConfig`."""
