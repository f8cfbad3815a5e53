"""What training needs to know of an objective, split so that batch-coupled losses accumulate exactly.

A loss that couples the rows of a batch, as every contrastive loss does, is not the mean of its
micro-batches' losses. So an objective is given in three parts:

1. ``prepare`` turns a batch into inputs without touching a parameter: waveforms to features,
   augmentation, and statistics over the *whole* batch (``shared``).
2. ``encode`` maps rows of inputs to rows of outputs, each row by itself.
3. ``combine`` takes the outputs of all rows, and what the batch says of them, to ``(sum, weight)``.

Statistics that are made of outputs, as a codebook that follows its vectors, are ``update_stats``'s, of the outputs of
all rows too.

Gradient accumulation (``training/accumulation.py``) runs ``encode`` in pieces, ``combine`` and ``update_stats`` once
over the whole batch; without accumulation the three are composed and differentiated together.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from alm_jax.types import Metrics, Params, PyTree


class Inputs(NamedTuple):
    """Inputs of ``encode``."""

    rows: PyTree
    """Arrays [B ...]; accumulation cuts them into micro-batches."""
    shared: PyTree
    """Arrays every micro-batch sees whole, such as the batch's normalisation moments."""


class Loss(NamedTuple):
    """A loss before its division: the mean is ``sum / weight``, over all devices and micro-batches."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


def keep_stats(
    batch_stats: Params, outputs: PyTree, batch: dict[str, Any], key: Any, *, axis_name: str | None = None
) -> Params:
    """No statistics are made of outputs."""
    return batch_stats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A model and its loss as pure functions. ``variables`` is {"params": ..., "batch_stats": ...}.

    ``axis_name`` is the mapped axis under ``pmap`` and None under global-view ``jit``; with it, ``Loss``
    is this device's share and the caller adds over devices.
    """

    init: Callable[[Array], dict[str, Params]]
    """key -> variables."""
    axes: Callable[[], PyTree]
    """() -> logical axis names of every parameter, as a tree of tuples shaped like params."""
    prepare: Callable[..., Inputs]
    """(batch, key, *, train, axis_name) -> Inputs."""
    encode: Callable[..., tuple[PyTree, Params]]
    """(variables, inputs, key, *, train, axis_name) -> (outputs with leading axis B, batch_stats)."""
    combine: Callable[..., tuple[Loss, Metrics]]
    """(params, outputs, batch, *, axis_name) -> (Loss, metrics as a dict of Loss)."""
    update_stats: Callable[..., Params] = keep_stats
    """(batch_stats, outputs without gradients, batch, key, *, axis_name) -> batch_stats, in training; the key is the
    same on every device."""
    project: Callable[[Params], Params]
    """params -> params after an optimiser step, such as a clamp on the temperature."""
    trained: Callable[[Params], Params] = dict
    """params -> the nested dict of those that train, all of them unless some are frozen (training/trainable.py)."""
    merge: Callable[[Params], Params] = dict
    """params -> those of the model alone: what is trained beside them, adapters say, merged into them."""

    def loss(
        self,
        variables: dict[str, Any],
        batch: dict[str, Any],
        key: Any,
        *,
        train: bool,
        axis_name: str | None = None,
    ) -> tuple[Loss, Metrics]:
        """The three parts composed, for evaluation and tests. Returns (Loss, metrics)."""
        inputs = self.prepare(batch, key, train=train, axis_name=axis_name)
        outputs, _ = self.encode(variables, inputs, key, train=train, axis_name=axis_name)
        return self.combine(variables["params"], outputs, batch, axis_name=axis_name)
