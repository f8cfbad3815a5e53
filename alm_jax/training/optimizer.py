"""Optimizers, chosen by the type of their config, with clipping, a schedule, and weight decay by parameter path."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import optax
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers

from alm_jax.ranges import PROBABILITY, Range
from alm_jax.training import schedules
from alm_jax.training.parameter_paths import match_paths
from alm_jax.training.schedules import CosineConfig, ScheduleConfig
from alm_jax.training.sharding import is_axes
from alm_jax.types import Params, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(abc.ABC):
    """Base of the optimizers: learning rate, clipping and weight decay, which all of them have."""

    peak_lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    warmup_steps: Annotated[int, Range(0)] = 100
    """Steps of linear warm-up."""
    schedule: ScheduleConfig = CosineConfig()
    """Learning rate after the warm-up."""
    final_lr_fraction: Annotated[float, Range(0, 1)] = 0.0
    """Learning rate of the last step, as a fraction of the peak."""
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

    @abc.abstractmethod
    def direction(self, axes: PyTree) -> optax.GradientTransformation:
        """From gradients to the direction of an update, before decay and learning rate.

        ``axes``: the tree of the trained parameters, of the names of their axes with a space between two.
        """

    @classmethod
    def kinds(cls) -> list[type["OptimizerConfig"]]:
        """Every optimizer there is."""
        return OptimizerConfig.__subclasses__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerConfig):
    """AdamW (arXiv 1711.05101), which keeps two moments of every parameter."""

    b1: Annotated[float, PROBABILITY] = 0.9
    """Decay rate of the first moment."""
    b2: Annotated[float, PROBABILITY] = 0.98
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Epsilon, added to the root of the second moment."""

    def direction(self, axes: PyTree) -> optax.GradientTransformation:
        """See the class."""
        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor (arXiv 1804.04235): second moments of matrices as a row and a column, which takes almost no memory."""

    b1: Annotated[float, PROBABILITY] = 0.0
    """Decay of a first moment of the updates; 0, as published, keeps none."""
    decay_exponent: Annotated[float, PROBABILITY] = 0.8
    """The second moment of step t forgets by 1 - t^-decay_exponent."""
    min_factored_size: Annotated[int, Range(1)] = 128
    """Size of the second largest axis from which on an array has a row and a column instead of a whole moment."""
    clip_rms: float = 1.0
    """Root mean square to which the update of each array is clipped; 0 never clips."""
    is_relative: bool = True
    """Whether updates are multiplied by the root mean square of their parameter: ``peak_lr`` is a share of it then, and
    0.01 is usual."""

    def direction(self, axes: PyTree) -> optax.GradientTransformation:
        """See the class."""
        return optax.chain(
            optax.scale_by_factored_rms(
                decay_rate=self.decay_exponent, min_dim_size_to_factor=self.min_factored_size
            ),
            optax.clip_by_block_rms(self.clip_rms) if self.clip_rms else optax.identity(),
            optax.scale_by_param_block_rms() if self.is_relative else optax.identity(),
            optax.ema(self.b1, debias=False) if self.b1 else optax.identity(),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LionConfig(OptimizerConfig):
    """Lion (arXiv 2302.06675): the sign of a moving average, one moment of every parameter.

    It wants a learning rate three to ten times smaller than AdamW's, and as much more weight decay.
    """

    peak_lr: float = 1e-4
    """Learning rate at the end of the warm-up."""
    weight_decay: float = 1.0
    """Decoupled weight decay, multiplied by the learning rate."""
    b1: Annotated[float, PROBABILITY] = 0.9
    """Weight of the average against the gradient, in the update."""
    b2: Annotated[float, PROBABILITY] = 0.99
    """Decay of the average."""

    def direction(self, axes: PyTree) -> optax.GradientTransformation:
        """See the class."""
        return optax.scale_by_lion(b1=self.b1, b2=self.b2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig(OptimizerConfig):
    """Muon: the momentum of every layer's matrix is made orthogonal (https://kellerjordan.github.io/posts/muon); what
    is no such matrix (tables, biases, scales) has AdamW.

    An update has the root mean square ``rms``, as of AdamW (arXiv 2502.16982), so that AdamW's learning rate and decay
    suit it.
    """

    beta: Annotated[float, PROBABILITY] = 0.95
    """Decay of the momentum, which is Nesterov's."""
    rms: float = 0.2
    """Root mean square of a matrix's update before the learning rate."""
    b1: Annotated[float, PROBABILITY] = 0.9
    """Decay of AdamW's first moment."""
    b2: Annotated[float, PROBABILITY] = 0.98
    """Decay of AdamW's second moment."""
    eps: float = 1e-8
    """Added to the root of AdamW's second moment."""

    def direction(self, axes: PyTree) -> optax.GradientTransformation:
        """See the class."""
        numbers = jax.tree_util.tree_map_with_path(_matrix_or_masked, axes)
        labels = jax.tree.map(
            lambda found: "muon" if isinstance(found, MuonDimensionNumbers) else "adam",
            numbers,
            is_leaf=lambda node: isinstance(node, MuonDimensionNumbers | optax.MaskedNode),
        )

        def sized(updates: PyTree, params: PyTree | None = None) -> PyTree:
            return jax.tree.map(
                lambda x, found: x * (self.rms * _longer_side(x, found) ** 0.5), updates, numbers
            )

        muon = optax.contrib.scale_by_muon(beta=self.beta, weight_dimension_numbers=lambda _: numbers)
        return optax.partition(
            {
                "muon": optax.chain(muon, optax.stateless(sized)),
                "adam": optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            },
            labels,
        )


STACKED = ("layers", "qkv", "gates")
"""Axes along which a kernel holds several matrices."""
UNSUITED = ("vocab", "classes")
"""Axes of kernels that are a layer's last, whose outputs are no features."""


def matrix_axes(names: Sequence[str]) -> MuonDimensionNumbers | None:
    """Which axes of a kernel with these names are the inputs of its matrices and which the outputs.

    None where it is no matrix of a hidden layer. Kernels have inputs first (`alm_jax.nn.dense.Dense`).
    """
    within = [axis for axis, name in enumerate(names) if name not in STACKED]
    num_outputs = 2 if tuple(names[-2:]) == ("heads", "head_dim") else 1
    if len(within) <= num_outputs or set(names) & set(UNSUITED):
        return None
    return MuonDimensionNumbers(tuple(within[:-num_outputs]), tuple(within[-num_outputs:]))


def axis_names(axes: PyTree) -> PyTree:
    """An objective's tree of axes with one string for each parameter: names with a space between two."""
    return jax.tree.map(lambda names: " ".join(name or "-" for name in names), axes, is_leaf=is_axes)


def _matrix_or_masked(path: tuple[Any, ...], names: str) -> Any:
    found = matrix_axes(names.split()) if str(path[-1].key) == "kernel" else None
    return optax.MaskedNode() if found is None else found


def _longer_side(x: Array, numbers: MuonDimensionNumbers) -> int:
    sides = (numbers.reduction_axis, numbers.output_axis)
    return max(math.prod(x.shape[axis] for axis in side) for side in sides)


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by the number of updates already done (`alm_jax.training.schedules.learning_rate`)."""
    return schedules.learning_rate(
        config.schedule, config.peak_lr, config.warmup_steps, config.final_lr_fraction, num_steps
    )


def build_optimizer(
    config: OptimizerConfig, num_steps: int, params: Params, axes: PyTree = None
) -> optax.GradientTransformation:
    """Makes the optimizer for parameters shaped like ``params`` (arrays or abstract), all of which it trains.

    ``axes``: a tree like them of the names of their axes (`axis_names`), which Muon alone reads.
    """
    # The default patterns name parameters that only some models have, so not all of them must match.
    kept = match_paths(params, config.no_decay, "optimizer.no_decay", all_must_match=False)
    decayed = jax.tree.map(lambda found: not found, kept)
    steps: list[Any] = []
    if config.clip_norm:
        steps.append(optax.clip_by_global_norm(config.clip_norm))
    steps += [
        config.direction(axes),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    ]
    return optax.chain(*steps)
