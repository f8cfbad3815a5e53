"""Which form of the loss over a vocabulary runs: chosen by name, or by ``auto`` from one rule.

With n tokens, width D and V words on a device:

=============  =====================================================================================================
impl           what a device computes
=============  =====================================================================================================
``reference``  all logits [n V], differentiated by JAX: 6 n D V FLOPs, 8 to 12 n V bytes
``one_pass``   blocks of tokens with all their logits, and both gradients at once while the logits are there: 6 n D V
               FLOPs; the gradient of the kernel is added up in float32
``chunked``    tiles of tokens and words, computed once forward and again backward: 8 n D V FLOPs, least memory
``auto``       ``reference`` where the logits are few; else, on the CPU, ``one_pass`` where ``MIN_ROWS`` tokens and a
               float32 gradient fit ``BUDGET_BYTES``; else ``chunked``
=============  =====================================================================================================
"""

import dataclasses
import functools
import logging
from typing import Literal

from alm_jax.errors import UserError
from alm_jax.losses.sums import AxisName

logger = logging.getLogger(__name__)

Impl = Literal["auto", "reference", "one_pass", "chunked"]
FORMS = ("reference", "one_pass", "chunked")

FEW_LOGITS = 4_000_000
"""Maximum number of logits that are computed whole: 16 MB of float32."""
BUDGET_BYTES = 256 * 2**20
"""Memory, bytes, that a form chosen by ``auto`` may use in addition to its inputs and their gradients."""
MIN_ROWS, MAX_ROWS = 128, 512
"""Tokens of a block of ``one_pass``. With fewer tokens the form waits for memory traffic of the kernel and its
gradient; more are no faster. By XLA:TPU's estimate ``chunked`` is nevertheless no slower on a TPU
(docs/performance/language_modeling.md).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A form with all settings that its code needs to run. Hashable: it is a static argument."""

    impl: Literal["reference", "one_pass", "chunked"]
    """Name of the form."""
    rows: int
    """Maximum tokens of a block."""
    cols: int
    """Maximum words of a tile; ``chunked`` only."""
    platform: str
    """Platform: ``cpu``, ``tpu`` or ``gpu``."""
    tied: bool = False
    """Whether the kernel is an embedding table [V D] instead of [D V]."""
    label_smoothing: float = 0.0
    """Fraction of the target that is spread evenly over all words."""
    z_loss: float = 0.0
    """Weight of the squared log-sum-exp."""
    vocab_axis_name: AxisName | None = None
    """Mapped axes that the words are spread over."""


def pick_plan(
    impl: Impl = "auto",
    *,
    num_tokens: int,
    width: int,
    vocab_size: int,
    kernel_itemsize: int,
    platform: str,
    tile: tuple[int, int] | None = None,
    tied: bool = False,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    vocab_axis_name: AxisName | None = None,
) -> Plan:
    """The form, and the sizes of its blocks, that the loss runs with.

    Args:
        impl: a form, or "auto".
        num_tokens, vocab_size: those of one device.
        width: of the hidden states.
        kernel_itemsize: bytes of a number of the kernel.
        platform: "cpu", "tpu" or "gpu".
        tile: most tokens and most words at a time; None takes what ``BUDGET_BYTES`` allows.
        tied, label_smoothing, z_loss, vocab_axis_name: put into the plan.

    Raises UserError for an unknown ``impl``, a tile or a setting out of range, and for ``one_pass`` with the
    words spread over devices: it needs all logits of a token before it goes on.
    """
    if impl not in ("auto", *FORMS):
        raise UserError(
            f"unknown form {impl!r} of a language-modelling loss; known are auto, {', '.join(FORMS)}"
        )
    if tile is not None and min(tile) < 1:
        raise UserError(f"the tile of a language-modelling loss is {tile}: both sizes must be at least 1")
    if not 0 <= label_smoothing < 1 or z_loss < 0:
        raise UserError(
            f"label_smoothing is {label_smoothing} and z_loss {z_loss}: expected a share from 0 to below 1, and a "
            "weight that is not negative"
        )
    if impl == "one_pass" and vocab_axis_name is not None:
        raise UserError(
            f"impl='one_pass' takes a whole vocabulary on each device, and this one is spread over "
            f"{vocab_axis_name!r}; use impl='chunked'"
        )
    block_rows = min(max(BUDGET_BYTES // 2 // (4 * vocab_size), 1), MAX_ROWS)
    if impl == "auto":
        # The gradient of a float32 kernel is an output; that of a bfloat16 kernel is added up beside it.
        gradient_bytes = 0 if kernel_itemsize == 4 else 4 * width * vocab_size
        if num_tokens * vocab_size <= FEW_LOGITS:
            impl = "reference"
        elif (
            platform == "cpu"
            and vocab_axis_name is None
            and block_rows >= MIN_ROWS
            and gradient_bytes <= BUDGET_BYTES // 2
        ):
            impl = "one_pass"
        else:
            impl = "chunked"
        announce(impl, num_tokens, width, vocab_size, platform)
    rows, cols = (block_rows, vocab_size) if impl == "one_pass" else tile_sizes(width, platform)
    if tile is not None:
        rows, cols = tile
    return Plan(
        impl=impl,
        rows=rows,
        cols=cols,
        platform=platform,
        tied=tied,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        vocab_axis_name=vocab_axis_name,
    )


def tile_sizes(width: int, platform: str) -> tuple[int, int]:
    """Chooses tokens and words of a tile of ``chunked``."""
    if platform == "cpu":
        return 1024, 4096
    return max(min(8192, 3 * 2**23 // width), 1), 2048


@functools.cache
def announce(impl: str, num_tokens: int, width: int, vocab_size: int, platform: str) -> None:
    """Logs a choice of ``auto``, once a size."""
    logger.info(
        "language-modelling loss: impl=auto picks %s for %d tokens of width %d by %d words on a %s device",
        impl,
        num_tokens,
        width,
        vocab_size,
        platform,
    )
