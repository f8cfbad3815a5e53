"""AdamW with warm-up and cosine decay, clipping, and weight decay chosen by parameter path."""

import dataclasses
from typing import Annotated, Any

import jax
import optax

from alm_jax.errors import UserError
from alm_jax.ranges import PROBABILITY, Range
from alm_jax.training.parameter_paths import match_paths
from alm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW (arXiv 1711.05101) with a linear warm-up and a half-cosine decay."""

    peak_lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    warmup_steps: Annotated[int, Range(0)] = 100
    """Steps of linear warm-up."""
    final_lr_fraction: Annotated[float, Range(0, 1)] = 0.0
    """Learning rate of the last step, as a fraction of the peak."""
    b1: Annotated[float, PROBABILITY] = 0.9
    """Decay rate of the first moment."""
    b2: Annotated[float, PROBABILITY] = 0.98
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Epsilon, added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay, multiplied by the learning rate."""
    no_decay: tuple[str, ...] = (
        r"/bias$",
        r"/scale$",
        r"relative_(position_)?bias",
        r"^(log_logit_scale|logit_bias|tau)$",
    )
    """Regular expressions over parameter paths (``audio/stages_0/...``) that have no weight decay."""
    frozen: tuple[str, ...] = ()
    """Regular expressions over parameter paths that are not trained, such as ``^text/``: these parameters get neither
    gradients nor moments (alm_jax/training/trainable.py)."""
    clip_norm: float = 1.0
    """Global norm to which gradients are clipped; 0: no clipping."""


def learning_rate(config: AdamWConfig, num_steps: int) -> optax.Schedule:
    """Makes the learning rate as a function of the number of updates already done.

    The first update has `peak_lr / warmup_steps` (`peak_lr` without a warm-up), the update numbered `warmup_steps`
    has `peak_lr`, and the last has `peak_lr * final_lr_fraction`.

    Raises UserError where the warm-up is longer than the run.
    """
    if config.warmup_steps >= num_steps:
        raise UserError(
            f"optimizer.warmup_steps is {config.warmup_steps} and training.num_steps is {num_steps}: "
            "the warm-up must be shorter than the run"
        )
    # The number of the update at the peak: the first one where there is no warm-up.
    peak_step = max(config.warmup_steps, 1)
    shared = optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak_lr,
        warmup_steps=peak_step,
        decay_steps=max(num_steps, peak_step + 1),
        end_value=config.peak_lr * config.final_lr_fraction,
    )
    return lambda updates: shared(updates + 1)


def build_optimizer(config: AdamWConfig, num_steps: int, params: Params) -> optax.GradientTransformation:
    """Makes the optimizer for parameters shaped like ``params`` (arrays or abstract), all of which it trains."""
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
    return optax.chain(*steps)
