"""The losses of the contrastive objective: their configs, and what each trains, computes and clamps.

A loss is chosen by the type of its config. Its scalars are parameters beside the towers: ``log_logit_scale`` always,
so that what reads a checkpoint need not know the loss; ``tau`` or ``logit_bias`` where the loss trains them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array

from alm_jax import batch as contract
from alm_jax.errors import UserError
from alm_jax.losses import contrastive
from alm_jax.losses.contrastive import temperature
from alm_jax.objectives.objective import Loss
from alm_jax.types import Params

Group: TypeAlias = Literal["recording", "label"]
GROUP_KEYS = {"recording": contract.INDEX, "label": contract.LABEL}
"""The key of the batch that says which rows belong together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpTemperature:
    """The scale is exp(theta), theta is trained and kept in [0, ln 100] (CLIP, LAION-CLAP)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TauTemperature:
    """The scale is 1 / tau and tau is trained (WavCaps, ML-CLAP, BLIP)."""

    bounds: tuple[float, float] = (1e-4, 10.0)
    """Bounds of tau, which is clamped after every step. BLIP: (0.001, 0.5); the default only keeps it positive."""

    def __post_init__(self) -> None:
        lowest, highest = self.bounds
        if not 0 < lowest < highest:
            raise UserError(
                f"temperature.bounds are {self.bounds}: they must be two positive numbers, the lower one first"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    """How a loss over all pairs of a batch is computed; every choice gives the same loss."""

    impl: contrastive.Impl = "auto"
    """Implementation (docs/losses.md); auto chooses by batch size, devices and platform, and logs its choice."""
    tile: int | None = None
    """Rows and columns of a tile in the tiled implementations; None: from the table."""
    products: Literal["float32", "bfloat16"] = "float32"
    """Dtype that embeddings are rounded to before they are multiplied; sums are float32 either way."""

    def options(self, mask: Array, axis_name: str | None) -> dict[str, Any]:
        """Keyword arguments of the losses."""
        return {"mask": mask, "axis_name": axis_name, "impl": self.impl, "tile": self.tile}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoNceConfig:
    """Symmetric InfoNCE: each audio must match its text among all texts, and each text its audio."""

    temperature: ExpTemperature | TauTemperature = ExpTemperature()
    """Form of the temperature: which parameter is trained."""
    computation: Computation = Computation()
    """How the loss is computed; no choice changes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiPositiveConfig:
    """InfoNCE in which all rows of a group are positives of each other, with equal weight."""

    group: Group = "recording"
    """Groups of rows. "recording": rows of one example, whatever their captions (WavCaps, ML-CLAP). "label": rows of
    one class (supervised contrastive); a row without a class has no group."""
    temperature: ExpTemperature | TauTemperature = ExpTemperature()
    """Form of the temperature: which parameter is trained."""
    computation: Computation = Computation()
    """How the loss is computed; no choice changes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidConfig:
    """The sigmoid loss of SigLIP, with a trained scale and bias: every pair is classified separately."""

    group: Literal["none", "recording", "label"] = "none"
    """Rows of a group match each other; none: a row matches only itself."""
    computation: Computation = Computation()
    """How the loss is computed; no choice changes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardNegativesConfig:
    """InfoNCE in which each audio also has its own wrong captions (CompA).

    ``data.num_negatives`` sets their number, and the data set must have them.
    """

    group: Literal["none", "recording", "label"] = "none"
    """Rows of a group are positives of each other, as in MultiPositiveConfig; none: a row matches only itself."""
    temperature: ExpTemperature | TauTemperature = ExpTemperature()
    """Form of the temperature: which parameter is trained."""
    computation: Computation = Computation()
    """How the loss is computed; no choice changes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Audio-text retrieval, L_atr of the survey: InfoNCE in one direction, for a system that is queried in one."""

    direction: Literal["text_to_audio", "audio_to_text"] = "text_to_audio"
    """What searches for what: text_to_audio, each text is to find its audio among all audios of the batch."""
    temperature: ExpTemperature | TauTemperature = ExpTemperature()
    """Form of the temperature: which parameter is trained."""


LossConfig: TypeAlias = (
    InfoNceConfig | MultiPositiveConfig | SigmoidConfig | HardNegativesConfig | RetrievalConfig
)


class Negatives(NamedTuple):
    """The wrong captions of a batch's rows."""

    emb: Array
    """[B K E] float32."""
    mask: Array
    """[B K] bool, True where there is one."""


def init_scalars(config: LossConfig) -> dict[str, Array]:
    """The scalars that the loss trains, and ``log_logit_scale``, as they begin."""
    if isinstance(config, SigmoidConfig):
        scalars = {
            "log_logit_scale": temperature.SIGMOID_LOG_SCALE_INIT,
            "logit_bias": temperature.SIGMOID_BIAS_INIT,
        }
    else:
        scalars = {"log_logit_scale": temperature.LOG_SCALE_INIT}
        if isinstance(config.temperature, TauTemperature):
            scalars["tau"] = temperature.TAU_INIT
    return {name: jnp.asarray(value, jnp.float32) for name, value in scalars.items()}


def project_scalars(config: LossConfig, params: Params) -> dict[str, Array]:
    """The scalars after an optimiser step: clamped, and ``log_logit_scale`` that of ``tau`` where it is trained."""
    if isinstance(config, SigmoidConfig):
        return {}
    if isinstance(config.temperature, TauTemperature):
        tau = temperature.clamp_tau(params["tau"], *config.temperature.bounds)
        return {"tau": tau, "log_logit_scale": -jnp.log(tau)}
    return {"log_logit_scale": temperature.clamp_log_scale(params["log_logit_scale"])}


def check_negatives(config: LossConfig, batch: Mapping[str, Any]) -> None:
    """Raises UserError where the loss takes negative captions and ``batch`` has none."""
    if isinstance(config, HardNegativesConfig) and contract.NEGATIVE_IDS not in batch:
        raise UserError(
            "the loss is HardNegativesConfig, and the batches have no negative captions; set data.num_negatives to one "
            "or more, on a data set that has such captions, or take InfoNceConfig"
        )


def softmax_scale(config: ExpTemperature | TauTemperature, params: Params) -> Array:
    """The factor of cosines in a softmax."""
    if isinstance(config, TauTemperature):
        return temperature.inverse_tau(params["tau"])
    return temperature.logit_scale(params["log_logit_scale"])


def contrastive_loss(
    config: LossConfig,
    params: Params,
    audio_emb: Array,
    text_emb: Array,
    batch: Mapping[str, Array],
    *,
    negatives: Negatives | None = None,
    axis_name: str | None = None,
) -> tuple[Loss, Array]:
    """The loss of embeddings [B E] of the rows of ``batch``, and the logit scale in use.

    Of ``batch`` it reads ``mask``, and ``index`` or ``label`` where the loss groups by them. ``negatives`` are read by
    HardNegativesConfig alone; None, where no row has any.
    """
    if isinstance(config, RetrievalConfig):
        scale = softmax_scale(config.temperature, params)
        pair = (text_emb, audio_emb) if config.direction == "text_to_audio" else (audio_emb, text_emb)
        found = contrastive.one_way_infonce(*pair, scale, mask=batch[contract.MASK], axis_name=axis_name)
        return Loss(*found), scale
    dtype = jnp.dtype(config.computation.products)
    audio_emb, text_emb = audio_emb.astype(dtype), text_emb.astype(dtype)
    options = config.computation.options(batch[contract.MASK], axis_name)
    if isinstance(config, SigmoidConfig):
        scale, bias = temperature.scale_and_bias(params["log_logit_scale"], params["logit_bias"])
        groups = None if config.group == "none" else batch[GROUP_KEYS[config.group]]
        return Loss(*contrastive.sigmoid_loss(audio_emb, text_emb, scale, bias, groups, **options)), scale
    scale = softmax_scale(config.temperature, params)
    group = "none" if isinstance(config, InfoNceConfig) else config.group
    groups = None if group == "none" else batch[GROUP_KEYS[group]]
    if isinstance(config, HardNegativesConfig) and negatives is not None:
        loss = contrastive.hard_negative_infonce(
            audio_emb,
            text_emb,
            negatives.emb.astype(dtype),
            scale,
            negative_mask=negatives.mask,
            group_ids=groups,
            **options,
        )
    elif groups is not None:
        loss = contrastive.multi_positive_infonce(audio_emb, text_emb, scale, groups, **options)
    else:
        loss = contrastive.symmetric_infonce(audio_emb, text_emb, scale, **options)
    return Loss(*loss), scale
