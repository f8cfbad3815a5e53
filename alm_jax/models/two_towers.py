"""The two-tower (CLAP) model: audio and text encoded apart, projected into one space, L2-normalised.

Free functions of a config and a tree of arrays; no Flax module is seen above this file. Projections are
LAION-CLAP's, W2 relu(W1 x + b1) + b2 (Wu et al. 2022, https://arxiv.org/abs/2211.06687), or MS-CLAP's,
LayerNorm(e + W2 gelu(e)) with e = W1 x (Elizalde et al. 2022, https://arxiv.org/abs/2206.04769, and its code).

Variables are ``{"params": {...}, "batch_stats": {...}}``, plain nested dicts of float32 arrays:

==========================  ==============================================================
params/audio                the audio tower, as its family names its parameters
params/text                 the text tower, likewise
params/audio_projection     LAION-CLAP's: ``hidden`` and ``out``, each ``kernel`` and ``bias``;
                            MS-CLAP's: ``linear`` and ``residual``, each ``kernel``, and ``norm``
params/text_projection      the same
params/log_logit_scale      scalar, starts at ln(1 / 0.07)
batch_stats/audio           running statistics of the audio tower's BatchNorm, empty where it has none
==========================  ==============================================================
"""

import dataclasses
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders import tower
from alm_jax.errors import UserError
from alm_jax.losses.contrastive.temperature import LOG_SCALE_INIT
from alm_jax.nn.dense import Dense
from alm_jax.nn.dropout import dropout
from alm_jax.nn.mlp import gelu
from alm_jax.nn.norm import LayerNorm, Moments
from alm_jax.nn.rematerialise import Remat
from alm_jax.nn.variables import Architecture
from alm_jax.ops.frontends import FusionSpec, TowerSpec, feature_shape
from alm_jax.ops.similarity import unit_vectors
from alm_jax.types import PyTree

Variables: TypeAlias = dict[str, Any]
PROJECTION_STREAM = 1
"""Folded into a tower's key for the dropout of its projection; the tower has the key itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTowersConfig:
    """An audio tower, a text tower, the front-end that the audio tower is fed by, and the joint space."""

    frontend: TowerSpec
    """Front-end, from waveform to features; stored with the weights."""
    audio: tower.AudioTowerConfig
    """The audio tower: the config of any audio encoder of the zoo."""
    text: tower.TextTowerConfig
    """The text tower: the config of any encoder or language model of the zoo that reads token ids."""
    embed_dim: int = 512
    """Size of the joint embedding space."""
    projection: Literal["mlp", "residual"] = "mlp"
    """Projection from a tower's output to the joint space: "mlp", LAION-CLAP's two layers, or "residual", MS-CLAP's
    layer with a residual one."""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of the towers' activations and matrix products; parameters, norms, softmax and the joint space stay
    float32. float64 is for comparisons, of float64 variables under `jax.enable_x64`, and then everything is."""
    remat: Remat = "none"
    """What the backward pass recomputes: nothing, all but the products with weights, or whole blocks."""
    padding: Literal["unmasked", "masked"] = "unmasked"
    """Treatment of the padding of a clip whose recording is shorter. "unmasked": it is encoded like audio, as in most
    published systems. "masked": it is ignored, which needs a tower whose clips may differ in length."""

    def __post_init__(self) -> None:
        tower.check_features(self.audio, self.frontend.num_frames, self.frontend.num_features)
        if isinstance(self.frontend, FusionSpec) != tower.takes(self.audio, "longer"):
            raise UserError(
                f"{type(self.frontend).__name__} does not feed {type(self.audio).__name__}: an audio tower with "
                "feature fusion takes a FusionSpec, and no other does"
            )
        if self.padding == "masked" and not tower.takes(self.audio, "mask"):
            raise UserError(
                f"padding is 'masked', and {type(self.audio).__name__} accepts no mask of frames: use "
                "another tower, or padding 'unmasked'"
            )


# The published initialisation of both projections is PyTorch's, uniform in +-1/sqrt(fan-in).
_PROJECTION_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_RESIDUAL_DROPOUT = 0.5


class MlpProjection(nn.Module):
    """LAION-CLAP's W2 relu(W1 x + b1) + b2. Parameters: ``hidden`` and ``out``."""

    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], *, train: bool) -> Float[Array, "B E"]:
        size, init = (self.embed_dim,), _PROJECTION_INIT
        x = Dense(size, ("embed", "joint_hidden"), self.dtype, kernel_init=init, name="hidden")(x)
        return Dense(size, ("joint_hidden", "joint"), self.dtype, kernel_init=init, name="out")(nn.relu(x))


class ResidualProjection(nn.Module):
    """MS-CLAP's LayerNorm(e + dropout(W2 gelu(e))), e = W1 x. Parameters: ``linear``, ``residual``, ``norm``.

    Training drops half of the residual branch, by the stream "dropout".
    """

    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], *, train: bool) -> Float[Array, "B E"]:
        def linear(axes: tuple[str, ...], name: str) -> Dense:
            return Dense(
                (self.embed_dim,), axes, self.dtype, use_bias=False, kernel_init=_PROJECTION_INIT, name=name
            )

        x = linear(("embed", "joint"), "linear")(x)
        branch = linear(("joint_hidden", "joint"), "residual")(gelu(x))
        branch = dropout(branch, _RESIDUAL_DROPOUT, self.make_rng("dropout") if train else None)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return LayerNorm(wide, axis="joint", name="norm")(x + branch)


def encode_audio(
    config: TwoTowersConfig,
    variables: Variables,
    features: Float[Array, "B *features"],
    *,
    train: bool = False,
    key: Array | None = None,
    mask: Bool[Array, " B"] | None = None,
    frame_mask: Bool[Array, "B T"] | None = None,
    longer: Bool[Array, " B"] | None = None,
    moments: Moments | None = None,
) -> tuple[Float[Array, "B E"], PyTree]:
    """Embeds the features that the front-end makes.

    Args:
        train: the noise of the tower is on (SpecAugment, stochastic depth, dropout), FeatureNorm uses the batch's
            statistics, and a tower that packs clips packs them.
        key: PRNG key; needed when training with noise.
        mask: True where a row is real; the others leave the batch's statistics alone.
        frame_mask: True where a frame is real, where ``padding`` is masked (`tower.frame_mask`); None: all are.
        longer: of feature fusion, True where a recording is longer than a clip; None: none is.
        moments: statistics to normalise by instead of these rows' own (`feature_moments`): those of the
            whole batch, when ``features`` is a micro-batch of it.

    Returns:
        L2-normalised float32 embeddings, and the next ``batch_stats`` (unchanged unless training).
    """
    feat, batch_stats = tower.apply_audio_tower(
        config.audio,
        {"params": variables["params"]["audio"], "batch_stats": variables["batch_stats"]["audio"]},
        features,
        dtype=jnp.dtype(config.compute_dtype),
        remat=config.remat,
        train=train,
        key=key,
        row_mask=mask,
        mask=frame_mask,
        longer=longer,
        moments=moments,
    )
    emb = _project(config, variables["params"]["audio_projection"], feat, train=train, key=key)
    return emb, {"audio": batch_stats}


def encode_text(
    config: TwoTowersConfig,
    variables: Variables,
    text_ids: Int[Array, "B L"],
    text_mask: Bool[Array, "B L"],
    *,
    train: bool = False,
    key: Array | None = None,
) -> Float[Array, "B E"]:
    """Embeds token ids, ``text_mask`` True where a token is real; L2-normalised, float32.

    ``key`` is needed when training with dropout on.
    """
    feat = tower.apply_text_tower(
        config.text,
        {"params": variables["params"]["text"]},
        text_ids,
        text_mask,
        dtype=jnp.dtype(config.compute_dtype),
        remat=config.remat,
        train=train,
        key=key,
    )
    return _project(config, variables["params"]["text_projection"], feat, train=train, key=key)


def _projection(config: TwoTowersConfig) -> MlpProjection | ResidualProjection:
    kind = MlpProjection if config.projection == "mlp" else ResidualProjection
    return kind(config.embed_dim, jnp.dtype(config.compute_dtype))


def _project(
    config: TwoTowersConfig, params: PyTree, x: Float[Array, "B D"], *, train: bool, key: Array | None
) -> Float[Array, "B E"]:
    """A tower's output in the joint space, x / ||x||."""
    rngs = None if key is None else {"dropout": jax.random.fold_in(key, PROJECTION_STREAM)}
    y: Any = _projection(config).apply({"params": params}, x, train=train, rngs=rngs)
    return unit_vectors(y)


def _draw(config: TwoTowersConfig, key: Array) -> Variables:
    """Variables whose leaves still carry their axis names."""
    keys = jax.random.split(key, 4)
    features = jnp.zeros((1, *feature_shape(config.frontend)), jnp.float32)
    audio, audio_width = tower.init_audio_tower(config.audio, keys[0], features)
    text, text_width = tower.init_text_tower(config.text, keys[1])
    projection = _projection(config)
    return {
        "params": {
            "audio": audio["params"],
            "text": text["params"],
            "audio_projection": projection.init(keys[2], jnp.zeros((1, audio_width)), train=False)["params"],
            "text_projection": projection.init(keys[3], jnp.zeros((1, text_width)), train=False)["params"],
            "log_logit_scale": jnp.asarray(LOG_SCALE_INIT, jnp.float32),
        },
        "batch_stats": {"audio": audio.get("batch_stats", {})},
    }


TWO_TOWERS = Architecture(_draw)
"""Variables of a `TwoTowersConfig`."""
