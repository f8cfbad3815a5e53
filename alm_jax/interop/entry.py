"""One array of a published checkpoint: its key, its shape, and the part of our array that it holds."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np

Path: TypeAlias = tuple[str, ...]
"""Path of one of our arrays in the variables: ``("params", "blocks", "mlp", "up", "kernel")``."""
Index: TypeAlias = tuple[int | slice, ...]
"""Part of one of our arrays: a layer of a stack, the query of a fused kernel. () is the whole."""
ALL = slice(None)
WEIGHT_NORM_FORMER = (
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
)
"""Former names, for `Format.former`, of the two factors of a weight-normed kernel before PyTorch 2."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array on disk and its place among ours. Only moves bits, never computes: both directions are exact."""

    key: str
    path: Path
    shape: tuple[int, ...]
    """Shape on disk."""
    layout: Literal["same", "transposed", "conv"] = "same"
    """same: the elements in one order, axes perhaps joined; transposed: ours is [inputs..., outputs...], theirs
    [outputs, inputs...]; conv: ours is [*window inputs outputs], theirs [outputs inputs *window]."""
    index: Index = ()

    def to_disk(self, part: np.ndarray) -> np.ndarray:
        """Returns ``part`` of our array as it lies on disk."""
        if self.layout == "transposed":
            part = part.reshape(math.prod(self.shape[1:]), self.shape[0]).T
        elif self.layout == "conv":
            window = range(part.ndim - 2)
            part = part.transpose(part.ndim - 1, part.ndim - 2, *window)
        return part.reshape(self.shape)

    def from_disk(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the array on disk as a part of ours, of ``shape``."""
        if self.layout == "transposed":
            array = array.reshape(self.shape[0], -1).T
        elif self.layout == "conv":
            array = array.transpose(*range(2, array.ndim), 1, 0)
        return array.reshape(shape)


def linear(
    key: str, path: Path, inputs: int, outputs: int, index: Index = (), *, use_bias: bool = True
) -> Iterator[Entry]:
    """``weight`` [outputs inputs] and ``bias`` of `torch.nn.Linear`, our `Dense`."""
    yield Entry(f"{key}.weight", (*path, "kernel"), (outputs, inputs), "transposed", index)
    if use_bias:
        yield Entry(f"{key}.bias", (*path, "bias"), (outputs,), index=index)


def norm(key: str, path: Path, width: int, index: Index = (), *, use_bias: bool = True) -> Iterator[Entry]:
    """``weight`` and ``bias`` of a layer or batch normalisation; RMSNorm has no bias."""
    yield Entry(f"{key}.weight", (*path, "scale"), (width,), index=index)
    if use_bias:
        yield Entry(f"{key}.bias", (*path, "bias"), (width,), index=index)


def embedding(key: str, path: Path, rows: int, width: int) -> Iterator[Entry]:
    """``weight`` of `torch.nn.Embedding`, our `Embed`."""
    yield Entry(f"{key}.weight", (*path, "embedding"), (rows, width))


def fused_qkv(
    keys: tuple[str, str, str],
    path: Path,
    inputs: int,
    outputs: int,
    index: Index = (),
    *,
    use_bias: bool = True,
) -> Iterator[Entry]:
    """Three linear layers on disk that are one ``qkv`` kernel [inputs 3 H K] of our `SelfAttention`."""
    for slot, key in enumerate(keys):
        kernel_index = (*index, ALL, slot)
        yield Entry(f"{key}.weight", (*path, "kernel"), (outputs, inputs), "transposed", kernel_index)
        if use_bias:
            yield Entry(f"{key}.bias", (*path, "bias"), (outputs,), index=(*index, slot))
