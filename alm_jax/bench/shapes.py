"""Shapes in the text of a compiled program, and the memory that they need: tiles, padding, and place."""

import dataclasses
import math
import re

ITEMSIZE = {
    "pred": 1.0,
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("s8", "u8", "f8e4m3fn", "f8e5m2"), 1.0),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2.0),
    **dict.fromkeys(("f32", "s32", "u32"), 4.0),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8.0),
}
"""Bytes of a number, by XLA's type name."""
SHAPE = re.compile(r"\b(?P<dtype>" + "|".join(ITEMSIZE) + r")\[(?P<sizes>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
TILE = re.compile(r"T\(([\d,]+)\)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array."""

    dtype: str
    """Type, by XLA's name: bf16."""
    sizes: tuple[int, ...]
    padded: tuple[int, ...]
    """Sizes with the padding of the layout's tiles."""
    is_in_hbm: bool
    """Whether it lies in HBM instead of a memory near the units."""

    @property
    def num_bytes(self) -> float:
        """Number of elements without padding."""
        return math.prod(self.sizes) * ITEMSIZE[self.dtype]

    @property
    def padded_size(self) -> int:
        """Number of elements with padding."""
        return math.prod(self.padded)

    @property
    def hbm_bytes(self) -> float:
        """Bytes with padding; 0 where it does not lie in HBM."""
        return self.padded_size * ITEMSIZE[self.dtype] if self.is_in_hbm else 0.0


def shapes_of(text: str) -> list[Shape]:
    """Returns every array of a type, in order: one, or those of a tuple."""
    return [_shape(found) for found in SHAPE.finditer(text)]


def _shape(found: re.Match[str]) -> Shape:
    sizes = tuple(int(size) for size in found["sizes"].split(",") if size)
    layout = found["layout"] or ""
    order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis.strip().isdigit()]
    tile = TILE.search(layout)
    padded = list(sizes)
    if tile and sizes and len(order) == len(sizes):
        multiples = [int(size) for size in tile.group(1).split(",")]
        # The last size of a tile is that of the axis whose neighbours are neighbours in memory.
        for axis, multiple in zip(order, reversed(multiples), strict=False):
            padded[axis] = -(-padded[axis] // multiple) * multiple
    return Shape(found["dtype"], sizes, tuple(padded), "S(" not in layout)
