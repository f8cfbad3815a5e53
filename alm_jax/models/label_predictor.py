"""The label predictor of BEATs: an encoder that sees some patches, and a decoder that names the labels of the others.

Free functions of a config and a tree of arrays; no Flax module is seen above this file. (Chen et al. 2022,
https://arxiv.org/abs/2212.09058, section 3.2.)

Variables are ``{"params": {"encoder": ..., "predictor": ..., "tokenizer": ...}, "batch_stats": {"tokenizer": ...}}``;
the tokenizer makes the targets and does not train.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alm_jax.encoders import tower
from alm_jax.encoders.audio.beats import Beats, BeatsConfig
from alm_jax.errors import UserError
from alm_jax.models import audio_tokenizer
from alm_jax.models.audio_tokenizer import (
    AudioTokenizerConfig,
    LearnedTokenizerConfig,
    RandomProjectionConfig,
)
from alm_jax.models.patch_decoders import DecoderConfig, GlobalDecoderConfig, PatchDecoder, check_grid
from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import BeatsSpec, ClipSpec, FrontendSpec
from alm_jax.ops.patch_masking import PatchMask

Variables: TypeAlias = dict[str, Any]

TOKENIZER = "tokenizer"
"""Under which the variables of the tokenizer lie."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelPredictorConfig:
    """A front-end, an encoder, a tokenizer that labels its patches, and a predictor of the labels. Defaults have
    BEATs' size."""

    frontend: FrontendSpec = BeatsSpec(clip=ClipSpec(clip_sec=10.0))
    """Front-end, from waveform to features; stored with the weights."""
    encoder: BeatsConfig = BeatsConfig()
    """The encoder, which is kept."""
    tokenizer: AudioTokenizerConfig = RandomProjectionConfig()
    """Tokenizer that makes the labels: a random projection in the first iteration, a learned tokenizer in later ones,
    whose weights ``init_from`` names."""
    predictor: DecoderConfig = GlobalDecoderConfig(width=768, num_layers=3, num_heads=12, mlp_dim=3072)
    """Predictor of the labels of hidden patches; only pre-training needs it."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters, norms, softmax and the loss stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes."""

    def __post_init__(self) -> None:
        check_patches(self.encoder, self.frontend)
        check_grid(self.predictor, self.grid)
        if isinstance(self.tokenizer, LearnedTokenizerConfig):
            check_same_patches(self.encoder, self.tokenizer.encoder, "model.tokenizer.encoder")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a clip along time and along frequency."""
        return patch_grid(self.encoder, self.frontend)


def patch_grid(encoder: BeatsConfig, frontend: FrontendSpec) -> tuple[int, int]:
    """Patches of a clip along time and along frequency; frames after the last whole patch are ignored."""
    return frontend.num_frames // encoder.patch_size, encoder.num_mels // encoder.patch_size


def check_patches(encoder: BeatsConfig, frontend: FrontendSpec) -> None:
    """Raises UserError where the features of a clip are not those that an encoder cuts into patches."""
    tower.check_features(encoder, frontend.num_frames, frontend.num_features)
    if frontend.num_frames < encoder.patch_size:
        raise UserError(
            f"the front-end makes {frontend.num_frames} frames a clip and a patch takes {encoder.patch_size}: raise "
            "frontend.clip.clip_sec, or lower the patch size"
        )


def check_same_patches(ours: BeatsConfig, other: BeatsConfig, name: str) -> None:
    """Raises UserError unless two encoders cut a spectrogram into the same patches."""
    if (ours.patch_size, ours.num_mels) != (other.patch_size, other.num_mels):
        raise UserError(
            f"{name} cuts {other.num_mels} mel bins into patches of {other.patch_size}, the model's encoder "
            f"{ours.num_mels} into patches of {ours.patch_size}; give both the same, so that each patch has a label"
        )


def label_clips(
    config: LabelPredictorConfig, variables: Variables, features: Float[Array, "B T F"]
) -> Int[Array, "B N"]:
    """What is to be predicted: the tokenizer's label of each patch."""
    dtype = jnp.dtype(config.compute_dtype)
    own = {kind: tree.get(TOKENIZER, {}) for kind, tree in variables.items()}
    size = config.encoder.patch_size
    return audio_tokenizer.label_patches(config.tokenizer, own, features, size, dtype=dtype)


def predict_labels(
    config: LabelPredictorConfig,
    variables: Variables,
    features: Float[Array, "B T F"],
    masked: PatchMask,
    *,
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, "B N V"]:
    """Logits of the labels of every patch, visible ones too, in the compute dtype.

    Args:
        masked: which patches the encoder sees; the others cost it nothing but its embedding.
        train: a local predictor's dropout is on and needs ``key``.
    """
    dtype = jnp.dtype(config.compute_dtype)
    params = variables["params"]
    states: Any = _encoder(config, dtype).apply(
        {"params": params["encoder"]}, features, visible_ids=masked.visible_ids
    )
    rngs = None if key is None else {"dropout": key}
    logits: Any = _predictor(config, dtype).apply(
        {"params": params["predictor"]}, states, masked.restore_ids, train=train, rngs=rngs
    )
    return logits


def encode_clips(
    config: LabelPredictorConfig, variables: Variables, features: Float[Array, "B T F"]
) -> Float[Array, "B D"]:
    """The mean of the states of all patches, which the encoder sees all of; float32."""
    states: Any = _encoder(config, jnp.dtype(config.compute_dtype)).apply(
        {"params": variables["params"]["encoder"]}, features
    )
    return jnp.mean(states.astype(jnp.float32), axis=1)


def _encoder(config: LabelPredictorConfig, dtype: Any) -> Beats:
    return Beats(config.encoder, dtype, "tokens", remat=config.remat)


def _predictor(config: LabelPredictorConfig, dtype: Any) -> PatchDecoder:
    return PatchDecoder(
        config.predictor,
        config.tokenizer.num_codes,
        config.grid,
        False,
        dtype,
        config.remat,
        has_class_token=False,
        output_axis="codes",
    )


def _draw(config: LabelPredictorConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    key_encoder, key_predictor, key_tokenizer = jax.random.split(key, 3)
    float32, size = jnp.dtype("float32"), config.encoder.patch_size
    features = jnp.zeros((1, size, config.encoder.num_mels), jnp.float32)
    encoder = _encoder(config, float32).init(key_encoder, features)
    states = jnp.zeros((1, 1, config.encoder.width), jnp.float32)
    restore_ids = jnp.zeros((1, config.grid[0] * config.grid[1]), jnp.int32)
    predictor = _predictor(config, float32).init(key_predictor, states, restore_ids)
    tokenizer = audio_tokenizer.init_boxed(config.tokenizer, key_tokenizer, size)
    stats = tokenizer["batch_stats"]
    return {
        "params": {
            "encoder": encoder["params"],
            "predictor": predictor["params"],
            TOKENIZER: tokenizer["params"],
        },
        "batch_stats": {TOKENIZER: stats} if stats else {},
    }


LABEL_PREDICTOR = Architecture(_draw)
"""Variables of a `LabelPredictorConfig`."""
