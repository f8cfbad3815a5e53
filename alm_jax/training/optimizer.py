"""AdamW with warm-up and cosine decay, clipping, and weight decay chosen by parameter path."""

import dataclasses
import re
from typing import Any

import jax
import optax

from alm_jax.errors import UserError
from alm_jax.types import Params, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW (arXiv 1711.05101) under a linear warm-up and a half cosine."""

    peak_lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up from zero."""
    final_lr_fraction: float = 0.0
    """Learning rate of the last step, as a share of the peak."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.98
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay, times the learning rate."""
    no_decay: tuple[str, ...] = (
        r"/bias$",
        r"/scale$",
        r"relative_position_bias",
        r"^(log_logit_scale|logit_bias|tau)$",
    )
    """Regular expressions over parameter paths (``audio/stages_0/...``) that are not decayed."""
    frozen: tuple[str, ...] = ()
    """Regular expressions over parameter paths that are not trained at all."""
    clip_norm: float = 1.0
    """Global norm to which gradients are clipped; 0 never clips."""


def parameter_paths(params: Params) -> PyTree:
    """The path of every parameter, ``audio/stages_0/...``, as a tree like ``params``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(str(getattr(part, "key", part)) for part in path), params
    )


def match_paths(params: Params, patterns: tuple[str, ...], what: str, *, all_must_match: bool) -> PyTree:
    """True for every parameter whose path one of ``patterns`` finds.

    Raises UserError where a pattern is no regular expression or, with ``all_must_match``, finds no
    parameter (a misspelt one would otherwise be ignored without a word).
    """
    paths = parameter_paths(params)
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UserError(f"{what} holds {error.pattern!r}, which is no regular expression: {error}") from error
    for pattern in compiled:
        if all_must_match and not any(pattern.search(path) for path in jax.tree.leaves(paths)):
            tops = sorted({path.split("/")[0] for path in jax.tree.leaves(paths)})
            raise UserError(
                f"{what} holds {pattern.pattern!r}, which matches no parameter; paths begin with {tops}"
            )
    return jax.tree.map(lambda path: any(pattern.search(path) for pattern in compiled), paths)


def learning_rate(config: AdamWConfig, num_steps: int) -> optax.Schedule:
    """step -> learning rate. Raises UserError where the warm-up is longer than the run."""
    if config.warmup_steps >= num_steps:
        raise UserError(
            f"optimizer.warmup_steps is {config.warmup_steps} and training.num_steps is {num_steps}: "
            "the warm-up must be shorter than the run"
        )
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.peak_lr,
        peak_value=config.peak_lr,
        warmup_steps=config.warmup_steps,
        decay_steps=num_steps,
        end_value=config.peak_lr * config.final_lr_fraction,
    )


def build_optimizer(config: AdamWConfig, num_steps: int, params: Params) -> optax.GradientTransformation:
    """The optimizer for parameters shaped like ``params`` (arrays or abstract)."""
    # The default patterns name parameters that only some models have, so not all of them must match.
    kept = match_paths(params, config.no_decay, "optimizer.no_decay", all_must_match=False)
    decayed = jax.tree.map(lambda found: not found, kept)
    steps: list[Any] = []
    if config.clip_norm:
        steps.append(optax.clip_by_global_norm(config.clip_norm))
    steps += [
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    ]
    optimizer = optax.chain(*steps)
    if not config.frozen:
        return optimizer
    frozen = match_paths(params, config.frozen, "optimizer.frozen", all_must_match=True)
    labels = jax.tree.map(lambda found: "frozen" if found else "trained", frozen)
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
