"""Any encoder of the zoo as a tower: features or token ids in; one vector a clip or caption, or a clip's states, out.

Each family makes its vector as its paper says: AST averages two tokens, BERT has its pooler, a language model takes
its last state. Where no paper defines a vector, the states of real tokens are averaged.
"""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax.encoders import family
from alm_jax.encoders.families import audio_families, family_of
from alm_jax.encoders.family import Option
from alm_jax.errors import UserError
from alm_jax.nn.norm import Moments, feature_moments
from alm_jax.nn.pooling import masked_mean
from alm_jax.nn.rematerialise import Remat
from alm_jax.ops.frontends import TowerSpec
from alm_jax.types import PyTree

LONGEST_TEXT = 512
"""Maximum tokens of a text whose tower accepts any number (`text_limits`)."""


if TYPE_CHECKING:
    # The family of a config, and so its fields, is known only at run time.
    AudioTowerConfig: TypeAlias = Any
    TextTowerConfig: TypeAlias = Any
else:
    AudioTowerConfig = family.AudioTowerConfig
    TextTowerConfig = family.TextTowerConfig

Output: TypeAlias = Literal["clip", "states"]
"""Output of an audio tower: one vector a clip, or the states behind it, which a connector feeds to a language model.
A family without states returns its vector as the only one; CAV-MAE returns LTU's prompt vectors."""


def build_tower(
    config: Any, dtype: Any = jnp.float32, remat: Remat = "none", output: Output = "clip"
) -> nn.Module:
    """Builds the module of ``config``'s family, with this output where the family offers the choice.

    Raises UserError for a config of no family.
    """
    of = family_of(config)
    module = of.build(config, jnp.dtype(dtype), remat)
    return module if of.states is None else module.clone(output="clip" if output == "clip" else of.states)


def state_mask(config: Any, mask: Bool[Array, "B T"], *, train: bool) -> Bool[Array, "B N"]:
    """Mask of an audio tower's states of real audio, for a family that can compute it (`check_states_mask`)."""
    compute = family_of(config).state_mask
    assert compute is not None
    return compute(config, mask, train)


def check_states_mask(config: Any) -> None:
    """Raises UserError where an audio tower cannot tell which of its states are of real audio."""
    if family_of(config).state_mask is None:
        known = ", ".join(each.config_type.__name__ for each in audio_families() if each.state_mask)
        raise UserError(
            f"padding is 'masked', and {type(config).__name__} cannot tell which of its states are real; "
            f"{known} can: use one of these, or padding 'unmasked'"
        )


def takes(config: Any, option: Option) -> bool:
    """Whether the forward pass of ``config``'s module accepts this keyword argument."""
    return option in family_of(config).takes


def follows_batch(config: Any, frontend: TowerSpec, padding: Literal["unmasked", "masked"]) -> bool:
    """Whether clips may be as short as the longest recording of their batch: only padding is left out, which the audio
    tower ignores."""
    return family_of(config).any_length and padding == "masked" and frontend.clip.pad == "zero"


def init_audio_tower(
    config: Any, key: Array, features: Float[Array, "B *features"], output: Output = "clip"
) -> tuple[PyTree, int]:
    """Initialises the variables, in boxes that carry axis names, and returns them with D; ``features`` has the shape
    of a front-end's output."""
    options: dict[str, Any] = (
        {"longer": jnp.zeros(len(features), jnp.bool_)} if takes(config, "longer") else {}
    )
    made, variables = build_tower(config, output=output).init_with_output(key, features, **options)
    return variables, made.shape[-1]


def init_text_tower(config: Any, key: Array) -> tuple[PyTree, int]:
    """Initialises the variables, in boxes that carry axis names, and returns them with D. A language model gets no
    output head here, unless the head is tied."""
    ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.bool_)
    output, variables = build_tower(config).init_with_output(key, ids, mask, **_text_options(config))
    return variables, output.shape[-1]


def apply_audio_tower(
    config: Any,
    variables: PyTree,
    features: Float[Array, "B *features"],
    *,
    dtype: Any,
    remat: Remat,
    train: bool,
    key: Array | None,
    row_mask: Bool[Array, " B"] | None,
    mask: Bool[Array, "B T"] | None,
    longer: Bool[Array, " B"] | None,
    moments: Moments | None,
    output: Output = "clip",
) -> tuple[Float[Array, "B *states D"], PyTree]:
    """Runs an audio tower: returns one vector a clip [B D], or its states [B N D], and the next ``batch_stats``.

    ``mask``, ``longer`` and ``moments`` are for families that accept them (`takes`). ``train`` and ``row_mask`` may be
    given to all families; a family without noise and batch statistics ignores them.

    Args:
        row_mask: True for real rows; for statistics over the batch.
        mask: True for real frames (samples, where the features are a waveform); None: padding is encoded like audio.
        longer: for feature fusion, True where a recording is longer than a clip.
        moments: statistics of the whole batch, for families that normalise by them.
    """
    given: dict[Option, Any] = {
        "train": train,
        "mask": mask,
        "row_mask": row_mask,
        "longer": longer,
        "moments": moments,
    }
    of = family_of(config)
    for name in ("mask", "longer", "moments"):
        if given[name] is not None and name not in of.takes:
            raise ValueError(f"{of.name} does not take {name}")
    options: dict[str, Any] = {name: given[name] for name in of.takes}
    made, updated = build_tower(config, dtype, remat, output).apply(
        variables,
        features,
        **options,
        rngs=None if key is None else {"dropout": key},
        mutable=["batch_stats"],
    )
    if output == "states":
        made = made if made.ndim == 3 else made[:, None]
    elif made.ndim == 3:
        made = masked_mean(made, jnp.ones(made.shape[:2], jnp.bool_))
    return made, updated.get("batch_stats", {})


def apply_text_tower(
    config: Any,
    variables: PyTree,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    dtype: Any,
    remat: Remat,
    train: bool,
    key: Array | None,
) -> Float[Array, "B D"]:
    """Returns one vector a caption: the encoder's own, the mean of its states, or a language model's last state."""
    module = build_tower(config, dtype, remat)
    options = _text_options(config) | ({"train": train} if takes(config, "train") else {})
    rngs = None if key is None else {"dropout": key}
    output: Any = module.apply(variables, ids, mask, **options, rngs=rngs)
    return masked_mean(output, mask) if output.ndim == 3 else output


def batch_moments(
    config: Any,
    features: Float[Array, "B *features"],
    mask: Bool[Array, " B"],
    axis_name: str | tuple[str, ...] | None = None,
) -> Moments | None:
    """Returns the statistics of a whole batch that an audio tower normalises by in training; None for other towers.

    Inside pmap or shard_map, ``axis_name`` names the axes that the batch is split over.
    """
    return feature_moments(features, mask, axis_name) if takes(config, "moments") else None


def frame_mask(
    frontend: TowerSpec, padding: Literal["unmasked", "masked"], num_samples: Int[Array, " B"]
) -> Bool[Array, "B T"] | None:
    """Mask of the frames that begin within a clip's first ``num_samples`` samples; None where padding is encoded
    too."""
    if padding == "unmasked":
        return None
    begin = jnp.arange(frontend.num_frames) * frontend.hop_samples
    return begin[None, :] < num_samples[:, None]


def text_limits(config: Any) -> tuple[int, int | None]:
    """Returns the vocabulary size of a text tower and the tokens of the longest text it accepts; None for any
    length."""
    return config.vocab_size, getattr(config, "max_length", getattr(config, "max_positions", None))


def check_features(config: Any, num_frames: int, num_features: int) -> None:
    """Raises UserError where a front-end's clip [T F] does not fit an audio tower's fields.

    Further requirements of a family (for example multiples of a patch) are checked when its parameters are first
    made.
    """
    num_mels = getattr(config, "num_mels", num_features)
    if num_features != num_mels:
        raise UserError(
            f"the front-end makes {num_features} mel bins, the audio tower takes {num_mels}; make frontend.num_mels "
            "and audio.num_mels equal"
        )
    if num_frames > getattr(config, "num_frames", num_frames):
        raise UserError(
            f"the front-end makes {num_frames} frames a clip, the audio tower takes {config.num_frames} at most; "
            "lower frontend.clip.clip_sec or raise frontend.hop_samples"
        )


def _text_options(config: Any) -> dict[str, Any]:
    return {"output": "last"} if family_of(config).kind == "language model" else {}
