"""The losses that can be measured: their inputs, and the scalar function of them that is differentiated."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from alm_jax.bench.open_clip import clip_loss_pattern
from alm_jax.errors import UserError
from alm_jax.losses import contrastive, language_modeling

PATTERN = "open_clip_pattern"
"""Name of the form that reproduces open_clip over many devices."""
SCALE = 1 / 0.07
"""Initial value of CLIP's logit scale."""
BIAS = -10.0
"""Initial value of SigLIP's bias."""
NUM_HARD_NEGATIVES = 4
CAPTIONS_PER_CLIP = 2
Arrays = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class LossCase:
    """One loss at one size."""

    loss: str
    """Name: a key of ``LOSSES``."""
    batch: int
    """Batch size: pairs; tokens for ``lm``."""
    dim: int
    """Width of the embeddings."""
    dtype: str
    """Dtype of the embeddings: ``float32`` or ``bfloat16``."""
    vocab: int | None = None
    """Vocabulary size, for ``lm``."""

    def inputs(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Makes random inputs from a seed: those with gradients, float32, and the others."""
        return LOSSES[self.loss].inputs(self, np.random.default_rng(0))

    def shapes(self) -> tuple[dict[str, tuple], dict[str, tuple]]:
        """Returns (shape, dtype) of ``inputs``, for sizes that no host could hold."""
        small = dataclasses.replace(self, batch=2)
        differentiable, fixed = small.inputs()

        def grow(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple]:
            return {
                name: ((self.batch, *x.shape[1:]) if name in ROWS else x.shape, x.dtype)
                for name, x in arrays.items()
            }

        return grow(differentiable), grow(fixed)

    def function(self, impl: str) -> Callable[[Arrays, Arrays], Array]:
        """Returns the function (differentiable, fixed) -> mean loss, float32, in the form ``impl``."""
        return LOSSES[self.loss].function(impl)

    @property
    def flops_unit(self) -> float | None:
        """B^2 E, the unit of the FLOPs of contrastive losses."""
        return None if self.loss == "lm" else float(self.batch) ** 2 * self.dim


ROWS = {"audio_emb", "text_emb", "negative_emb", "group_ids", "hidden", "labels"}
"""Names of the inputs whose first dimension is the batch."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """How a loss is fed and called."""

    inputs: Callable[[LossCase, np.random.Generator], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]
    """Makes what ``LossCase.inputs`` returns."""
    function: Callable[[str], Callable[[Arrays, Arrays], Array]]
    """Makes what ``LossCase.function`` returns."""
    impls: tuple[str, ...]
    """Existing forms."""


def _unit_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _pairs(case: LossCase, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "audio_emb": _unit_rows(rng, case.batch, case.dim),
        "text_emb": _unit_rows(rng, case.batch, case.dim),
        "scale": np.asarray(SCALE, np.float32),
    }


def _group_ids(case: LossCase) -> np.ndarray:
    return np.arange(case.batch, dtype=np.int32) // CAPTIONS_PER_CLIP


def _infonce(impl: str) -> Callable[[Arrays, Arrays], Array]:
    def loss(x: Arrays, fixed: Arrays) -> Array:
        if impl == PATTERN:
            return clip_loss_pattern(x["audio_emb"], x["text_emb"], x["scale"])
        return _mean(
            contrastive.symmetric_infonce(x["audio_emb"], x["text_emb"], x["scale"], impl=_impl(impl))
        )

    return loss


def _multi_positive(impl: str) -> Callable[[Arrays, Arrays], Array]:
    return lambda x, fixed: _mean(
        contrastive.multi_positive_infonce(
            x["audio_emb"], x["text_emb"], x["scale"], fixed["group_ids"], impl=_impl(impl)
        )
    )


def _hard_negatives(impl: str) -> Callable[[Arrays, Arrays], Array]:
    return lambda x, fixed: _mean(
        contrastive.hard_negative_infonce(
            x["audio_emb"], x["text_emb"], x["negative_emb"], x["scale"], impl=_impl(impl)
        )
    )


def _sigmoid(impl: str) -> Callable[[Arrays, Arrays], Array]:
    return lambda x, fixed: _mean(
        contrastive.sigmoid_loss(x["audio_emb"], x["text_emb"], x["scale"], x["bias"], impl=_impl(impl))
    )


def _lm(impl: str) -> Callable[[Arrays, Arrays], Array]:
    return lambda x, fixed: _mean(
        language_modeling.token_loss(x["hidden"], x["kernel"], fixed["labels"], impl=_impl(impl))
    )


def _tokens(case: LossCase, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    assert case.vocab is not None
    differentiable = {
        "hidden": rng.standard_normal((case.batch, case.dim), np.float32),
        # Logits of unit variance, as a fresh head has.
        "kernel": rng.standard_normal((case.dim, case.vocab), np.float32) / np.float32(case.dim) ** 0.5,
    }
    return differentiable, {"labels": rng.integers(0, case.vocab, case.batch, np.int32)}


def _mean(sum_and_weight: tuple[Array, Array]) -> Array:
    total, weight = sum_and_weight
    return total / weight


def _impl(name: str) -> Any:
    """Converts a form's name to the losses' argument; they reject unknown names."""
    return name


FORMS = ("reference", "onesided", "chunked", "ring", "grid", "kernel", "auto")
LOSSES: dict[str, Loss] = {
    "infonce": Loss(lambda case, rng: (_pairs(case, rng), {}), _infonce, (*FORMS, PATTERN)),
    "sigmoid": Loss(
        lambda case, rng: (_pairs(case, rng) | {"bias": np.asarray(BIAS, np.float32)}, {}), _sigmoid, FORMS
    ),
    "multi_positive": Loss(
        lambda case, rng: (_pairs(case, rng), {"group_ids": _group_ids(case)}), _multi_positive, FORMS
    ),
    "hard_negatives": Loss(
        lambda case, rng: (
            _pairs(case, rng) | {"negative_emb": _unit_rows(rng, case.batch, NUM_HARD_NEGATIVES, case.dim)},
            {},
        ),
        _hard_negatives,
        FORMS,
    ),
    "lm": Loss(_tokens, _lm, ("reference", "chunked", "one_pass", "auto")),
}
"""Losses by the name given to ``--loss``."""


def find_loss(name: str) -> Loss:
    """Returns the loss of that name. Raises UserError where there is none."""
    if name not in LOSSES:
        raise UserError(f"there is no loss {name!r} to measure: known are {', '.join(LOSSES)}")
    return LOSSES[name]
