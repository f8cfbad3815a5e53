"""What the learning rate does over a run: a linear warm-up, and after it the shape that the schedule's type names."""

import abc
import dataclasses
from typing import Annotated

import optax

from alm_jax.errors import UserError
from alm_jax.ranges import Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(abc.ABC):
    """Base of the shapes of a learning rate after its warm-up."""

    @abc.abstractmethod
    def after_peak(self, peak_lr: float, final_lr_fraction: float, num_left: int) -> optax.Schedule:
        """Learning rate by the number of updates since the one at the peak, ``num_left`` of which follow it."""

    @classmethod
    def kinds(cls) -> list[type["ScheduleConfig"]]:
        """Every schedule there is."""
        return ScheduleConfig.__subclasses__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineConfig(ScheduleConfig):
    """Half a cosine from the peak to the final rate (arXiv 1608.03983, without restarts)."""

    def after_peak(self, peak_lr: float, final_lr_fraction: float, num_left: int) -> optax.Schedule:
        """See the class."""
        return optax.cosine_decay_schedule(peak_lr, num_left, alpha=final_lr_fraction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantConfig(ScheduleConfig):
    """The peak to the end of the run; the final rate has no effect."""

    def after_peak(self, peak_lr: float, final_lr_fraction: float, num_left: int) -> optax.Schedule:
        """See the class."""
        return optax.constant_schedule(peak_lr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupStableDecayConfig(ScheduleConfig):
    """The peak, and a line to the final rate over the last steps (arXiv 2404.06395).

    A checkpoint from before the decay serves runs of any length: ``--fork`` one with another number of steps.
    """

    decay_fraction: Annotated[float, Range(0, 1)] = 0.1
    """Share of the steps after the warm-up over which the rate falls."""

    def after_peak(self, peak_lr: float, final_lr_fraction: float, num_left: int) -> optax.Schedule:
        """See the class."""
        num_falling = max(round(self.decay_fraction * num_left), 1)
        return optax.join_schedules(
            [
                optax.constant_schedule(peak_lr),
                optax.linear_schedule(peak_lr, peak_lr * final_lr_fraction, num_falling),
            ],
            [num_left - num_falling],
        )


def learning_rate(
    schedule: ScheduleConfig, peak_lr: float, warmup_steps: int, final_lr_fraction: float, num_steps: int
) -> optax.Schedule:
    """Learning rate by the number of updates already done.

    The first update has ``peak_lr / warmup_steps`` (``peak_lr`` without a warm-up), the update numbered
    ``warmup_steps`` has ``peak_lr``, and the last one of a schedule that falls has ``peak_lr * final_lr_fraction``.

    Raises UserError where the warm-up is longer than the run.
    """
    if warmup_steps >= num_steps:
        raise UserError(
            f"optimizer.warmup_steps is {warmup_steps} and training.num_steps is {num_steps}: "
            "the warm-up must be shorter than the run"
        )
    # The number of the update at the peak: the first one where there is no warm-up.
    peak_step = max(warmup_steps, 1)
    shape = schedule.after_peak(peak_lr, final_lr_fraction, max(num_steps - peak_step, 1))
    whole = optax.join_schedules([optax.linear_schedule(0.0, peak_lr, peak_step), shape], [peak_step])
    return lambda updates: whole(updates + 1)
