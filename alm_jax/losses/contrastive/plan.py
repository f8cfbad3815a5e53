"""Which form of a contrastive loss runs: chosen by name, or by ``auto`` from one table.

=============  =================================================================================================
impl           what a device computes
=============  =================================================================================================
``reference``  the whole [B B] matrix in the global view, differentiated by JAX; the partitioner cuts it up. Where
               the batch is mapped (pmap, shard_map), ``onesided``
``onesided``   its own audio rows against the gathered texts, a [b B] matrix, every logit once
``chunked``    the same tile by tile: no logits in memory, the backward pass computes them again
``ring``       the same while the texts travel round: memory of the device's own rows only
``grid``       one block of a square grid of blocks: least traffic on many devices
``kernel``     the tiled form that ``auto`` would pick, with the platform's Pallas kernels for its tiles
``auto``       what ``AUTO`` says
=============  =================================================================================================
"""

import dataclasses
import functools
import logging
from typing import Literal, cast, get_args

import jax
from jax import lax

from alm_jax.errors import UserError
from alm_jax.losses.contrastive import gathered, ring
from alm_jax.losses.contrastive.visits import Empty, Finish, Visit
from alm_jax.losses.sums import AxisName, vary
from alm_jax.types import PyTree

logger = logging.getLogger(__name__)

Form = Literal["reference", "onesided", "chunked", "ring", "grid"]
FORMS = get_args(Form)
Impl = Literal["auto", "reference", "onesided", "chunked", "ring", "grid", "kernel"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A form with all settings that the code of a loss needs to run it. Hashable: it is a static argument."""

    impl: Form
    """Name of the form."""
    tile: int
    """Maximum rows and columns of a tile, for the forms that have tiles."""
    kernel: bool = False
    """Whether the tiles of InfoNCE are the platform's Pallas kernels. The sigmoid loss and groups have none."""
    axis_name: AxisName | None = None
    """Mapped axes that the batch is spread over; None: the arrays are the global batch."""

    def sweep(
        self,
        visit: Visit,
        rows: PyTree,
        cols: PyTree,
        *,
        empty: tuple[Empty, Empty],
        finish: tuple[Finish, Finish],
    ) -> tuple[PyTree, PyTree]:
        """Returns the finished sums of this device's rows and columns over all pairs; see ``visits``."""
        num_devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        if self.axis_name is None or num_devices == 1:
            num_rows = jax.tree.leaves(rows)[0].shape[0]
            row_sums, col_sums = visit(rows, cols, *vary(tuple(new(num_rows) for new in empty), (rows, cols)))
            return finish[0](rows, row_sums), finish[1](cols, col_sums)
        if self.impl == "ring":
            return ring.sweep(visit, rows, cols, *empty, *finish, axis_name=self.axis_name, tile=self.tile)
        shape = gathered.grid_shape(num_devices) if self.impl == "grid" else (num_devices, 1)
        return gathered.sweep(visit, rows, cols, *empty, *finish, axis_name=self.axis_name, shape=shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A line of ``AUTO``: the form to use where all its conditions hold."""

    impl: Form
    """Name of the form."""
    shards: tuple[int, int]
    """Smallest and largest number of devices that the batch is spread over."""
    max_logits: float = float("inf")
    """Maximum number of logits that a device may hold or compute, B^2 / shards."""
    max_gathered: float = float("inf")
    """Maximum number of rows of one side that a device may gather, B / sqrt(shards)."""
    why: str
    """The reason, for the log."""


ANY = 1 << 30
AUTO: tuple[Rule, ...] = (
    Rule(impl="reference", shards=(1, 1), max_logits=4e6, why="the matrix of pairs is small"),
    Rule(impl="chunked", shards=(1, 1), why="one device"),
    Rule(impl="onesided", shards=(2, ANY), max_logits=4e6, why="the rows of the matrix are small"),
    Rule(
        impl="grid",
        shards=(16, ANY),
        max_gathered=131072.0,
        why="least traffic, and the gathered rows are few",
    ),
    Rule(impl="ring", shards=(2, ANY), why="memory of the own rows only"),
)
"""Rules of ``auto``: the first line whose conditions hold decides. The reasons are measured in docs/losses.md."""

TILES: dict[str, dict[str, int]] = {
    "cpu": {"default": 1024},
    "tpu": {"default": 4096, "ring": 2048},
    "gpu": {"default": 4096, "ring": 2048},
}
"""Rows and columns of a tile, by platform and form."""


def pick_plan(
    impl: str = "auto",
    *,
    batch_size: int,
    num_shards: int = 1,
    platform: str,
    tile: int | None = None,
    axis_name: AxisName | None = None,
) -> Plan:
    """Chooses the form and the tile that a loss runs with.

    Args:
        impl: a form, or "auto".
        batch_size: pairs in the global batch.
        num_shards: devices that it is spread over.
        platform: "cpu", "tpu" or "gpu".
        tile: rows and columns of a tile; None takes the table's.
        axis_name: put into the plan.

    Raises UserError for an unknown ``impl`` or a tile that is not positive.
    """
    if tile is not None and tile < 1:
        raise UserError(f"the tile of a contrastive loss is {tile}, it must be at least 1")
    if impl in FORMS:
        form = cast(Form, impl)
        return Plan(form, pick_tile(form, platform) if tile is None else tile, False, axis_name)
    if impl not in get_args(Impl):
        raise UserError(f"unknown form {impl!r} of a contrastive loss; known are {', '.join(get_args(Impl))}")
    rule = next(rule for rule in AUTO if applies(rule, batch_size, num_shards, impl == "kernel"))
    announce(rule, impl, batch_size, num_shards, platform)
    tile = pick_tile(rule.impl, platform) if tile is None else tile
    return Plan(rule.impl, tile, impl == "kernel", axis_name)


def pick_tile(impl: str, platform: str) -> int:
    """Returns rows and columns of a tile, from the table."""
    tiles = TILES.get(platform, TILES["gpu"])
    return tiles.get(impl, tiles["default"])


def applies(rule: Rule, batch_size: int, num_shards: int, kernel: bool) -> bool:
    """Whether ``rule`` holds; kernels need a form with tiles."""
    return (
        not (kernel and rule.impl in ("reference", "onesided"))
        and rule.shards[0] <= num_shards <= rule.shards[1]
        and batch_size**2 / num_shards <= rule.max_logits
        and batch_size / num_shards**0.5 <= rule.max_gathered
    )


@functools.cache
def announce(rule: Rule, impl: str, batch_size: int, num_shards: int, platform: str) -> None:
    """Logs a choice, once a size."""
    logger.info(
        "contrastive loss: impl=%s picks %s for %d pairs over %d %s device(s): %s",
        impl,
        rule.impl,
        batch_size,
        num_shards,
        platform,
        rule.why,
    )
