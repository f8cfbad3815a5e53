"""Roofline of a compiled TPU program: the time of each instruction is the longest of its memory traffic and its
computations.

An instruction takes no less than its bytes to and from HBM at the chip's bandwidth, its products on the matrix units
with operands padded to their tiles, its element-wise work on the vector units, and the bundles of a Pallas kernel.
The largest of these is its time, and the sum over all instructions is the program's, but never less than all HBM
bytes at the bandwidth. Copies that run beside the computation (prefetches) count as bytes alone.

XLA's own estimate (``cycles``) is right for large products and 2.5 to 4 times too slow for narrow or memory-bound
operations; this one ignores stalls and the overlap of instructions. The real time is between the two.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from alm_jax.bench.chips import Chip
from alm_jax.bench.hlo import Instruction, Module, parse
from alm_jax.bench.shapes import ITEMSIZE, Shape, shapes_of

VECTOR_LANES = 8 * 128
"""32-bit numbers in one vector register; a unit processes one register a cycle."""
VECTOR_UNITS = 4
"""Vector operations a cycle."""
MIN_ROWS = 8
"""Minimum rows of an operand of a matrix unit."""
PASSES = {"highest": 6, "high": 3}
"""Products of bfloat16 for one of float32, by precision."""
FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call"),
    *("after-all", "partition-id", "replica-id", "opt-barrier", "domain", "iota"),
}
"""Instructions that neither move nor compute."""
MOVES = {
    "broadcast",
    "reshape",
    "bitcast-convert",
    "copy",
    "transpose",
    "slice",
    "concatenate",
    "pad",
    "reverse",
}
"""Instructions that compute nothing: inside of a fusion they are free."""
TRANSCENDENTAL = {
    *(
        "exponential",
        "exponential-minus-one",
        "log",
        "log-plus-one",
        "tanh",
        "logistic",
        "rsqrt",
        "sqrt",
        "cbrt",
    ),
    *("power", "sine", "cosine", "tan", "atan2", "erf", "divide"),
}
"""Instructions of the single extended unit, which processes a register a cycle."""
READS_A_PART = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Minimum work of one run of one instruction."""

    hbm_bytes: float = 0.0
    """Bytes to and from HBM, with the padding of tiles."""
    matrix_cycles: float = 0.0
    """Cycles on the matrix units, operands padded."""
    vector_cycles: float = 0.0
    """Cycles on the vector units."""
    kernel_cycles: float = 0.0
    """Cycles of a Pallas kernel: its bundles."""
    is_async: bool = False
    """Whether it runs beside the computation."""

    def seconds(self, chip: Chip) -> float:
        """The longest of these times; 0 where it runs beside the computation."""
        assert chip.clock_hz is not None
        if self.is_async:
            return 0.0
        cycles = max(self.matrix_cycles, self.vector_cycles, self.kernel_cycles)
        return max(cycles / chip.clock_hz, self.hbm_bytes / chip.hbm_bytes_per_s)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Minimum time of a program on one device."""

    seconds: float
    """Sum over instructions; at least ``hbm_bytes`` at the bandwidth."""
    hbm_bytes: float
    """Bytes of all instructions, including those that run beside the computation."""


def roofline(text: str, chip: Chip, kernels: Mapping[tuple[str, ...], int] | None = None) -> Roofline:
    """Computes the roofline of ``compiled.as_text()``; ``kernels`` are the cycles of Pallas kernels by
    `kernel_key`."""
    module = parse(text)
    seconds = hbm_bytes = 0.0
    for line, times in module.walk():
        cost = cost_of(module, line, chip, kernels or {})
        seconds += times * cost.seconds(chip)
        hbm_bytes += times * cost.hbm_bytes
    return Roofline(max(seconds, hbm_bytes / chip.hbm_bytes_per_s), hbm_bytes)


def kernel_key(inputs: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[str, ...]:
    """Key of a kernel's call by its inputs, equal in the jaxpr and in the compiled program."""
    names = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "bool": "pred"}
    return tuple(
        f"{names.get(dtype, dtype.replace('uint', 'u').replace('int', 's'))}[{','.join(map(str, shape))}]"
        for dtype, shape in inputs
    )


def cost_of(
    module: Module, line: Instruction, chip: Chip, kernels: Mapping[tuple[str, ...], int] | None = None
) -> Cost:
    """Computes the minimum work of one run of ``line``."""
    opcode = line.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
        return Cost()
    if opcode.endswith("-start"):
        # A copy is read from HBM once or written to it once; a collective's traffic with HBM is that of its arrays.
        return Cost(hbm_bytes=_hbm_bytes(line.type), is_async=True)
    if opcode == "custom-call" and "tpu_custom_call" in line.text:
        declared = re.search(r"operand_layout_constraints=\{(.*?)\}, [a-z_]+=", line.text, flags=re.DOTALL)
        inputs = [_plain(shape) for shape in shapes_of(declared.group(1))] if declared else []
        cycles = (kernels or {}).get(tuple(inputs), 0)
        return Cost(hbm_bytes=_bytes_at_top(module, line), kernel_cycles=cycles)
    if opcode == "custom-call":
        return Cost()
    inner = module.computations.get(line.called("calls") or "", []) if opcode == "fusion" else [line]
    matrix, vector = _compute(module, inner, chip, is_top=opcode != "fusion")
    return Cost(hbm_bytes=_bytes_at_top(module, line), matrix_cycles=matrix, vector_cycles=vector)


def _plain(shape: Shape) -> str:
    return f"{shape.dtype}[{','.join(map(str, shape.sizes))}]"


def _bytes_at_top(module: Module, line: Instruction) -> float:
    """Returns the bytes to and from HBM of an instruction outside of fusions."""
    written, read = _only_part(module, line)
    results = shapes_of(line.type)
    parts = zip(results, [*written, *[None] * len(results)], strict=False)
    total = sum((one.hbm_bytes if part is None else min(part, one.hbm_bytes) for one, part in parts), 0.0)
    for index, name in enumerate(line.operands):
        operand = module.types.get(name)
        if operand is None:
            continue
        whole = _hbm_bytes(operand)
        total += whole if read.get(index) is None else min(read[index] or 0.0, whole)
    return total


def _only_part(module: Module, line: Instruction) -> tuple[list[float | None], dict[int, float | None]]:
    """Returns the bytes written of each result and read of each operand; None for all."""
    if line.opcode in READS_A_PART:
        return [], {0: _hbm_bytes(line.type)}
    if line.opcode == "dynamic-update-slice":
        update = _hbm_bytes(module.types.get(line.operands[1], ""))
        return [update], {0: 0.0}
    if line.opcode != "fusion":
        return [], {}
    lines = module.computations.get(line.called("calls") or "", [])
    if not lines:
        return [], {}
    by_name = {inner.name: inner for inner in lines}
    read: dict[int, float | None] = {}
    for inner in lines:
        if inner.opcode == "parameter":
            index = int(re.search(r"parameter\((\d+)\)", inner.text).group(1))  # type: ignore[union-attr]
            read[index] = _bytes_read(module, lines, inner.name)
    root = next((inner for inner in lines if inner.text.lstrip().startswith("ROOT")), lines[-1])
    outputs = (
        [by_name[name] for name in root.operands if name in by_name] if root.opcode == "tuple" else [root]
    )
    return [_bytes_written(module, by_name, output) for output in outputs], read


def _bytes_read(module: Module, lines: list[Instruction], name: str) -> float | None:
    """Returns the bytes that a fusion reads of a parameter of which every user takes a part; None for all."""
    total = 0.0
    for user in lines:
        places = [index for index, operand in enumerate(user.operands) if operand == name]
        if not places:
            continue
        if user.opcode in READS_A_PART and places == [0]:
            total += _padded_bytes(user.type)
        elif user.opcode == "dynamic-update-slice" and places == [0]:
            continue
        elif user.opcode == "bitcast":
            part = _bytes_read(module, lines, user.name)
            if part is None:
                return None
            total += part
        elif user.opcode == "fusion":
            inner = module.computations.get(user.called("calls") or "", [])
            for place in places:
                parameter = next((x.name for x in inner if f" parameter({place})" in x.text), None)
                part = None if parameter is None else _bytes_read(module, inner, parameter)
                if part is None:
                    return None
                total += part
        else:
            return None
    return total


def _bytes_written(module: Module, by_name: Mapping[str, Instruction], output: Instruction) -> float | None:
    """Returns the bytes that an output of a fusion writes where it updates a part of an array in place; None for
    all."""
    while output.opcode == "bitcast" and output.operands and output.operands[0] in by_name:
        output = by_name[output.operands[0]]
    if output.opcode != "dynamic-update-slice":
        return None
    update = module.types.get(output.operands[1], "")
    return _padded_bytes(update)


def _hbm_bytes(types: str) -> float:
    """Returns the bytes of arrays that lie in HBM."""
    return sum((shape.hbm_bytes for shape in shapes_of(types)), 0.0)


def _padded_bytes(types: str) -> float:
    """Returns the bytes of arrays wherever they lie: inside of a fusion the place is unknown."""
    return sum((shape.padded_size * ITEMSIZE[shape.dtype] for shape in shapes_of(types)), 0.0)


def _compute(
    module: Module, lines: list[Instruction], chip: Chip, *, is_top: bool = False
) -> tuple[float, float]:
    """Returns the cycles of instructions on the matrix units and on the vector units, fusions included."""
    matrix = vector = 0.0
    for line in lines:
        if line.opcode in ("convolution", "dot"):
            matrix += product_cycles(module, line, chip)
        elif line.opcode == "fusion" and not is_top:
            inner = _compute(module, module.computations.get(line.called("calls") or "", []), chip)
            matrix, vector = matrix + inner[0], vector + inner[1]
        elif line.opcode not in FREE and line.opcode not in MOVES and line.opcode not in READS_A_PART:
            sizes = [shape.padded_size for shape in shapes_of(line.type)]
            if line.opcode in ("reduce", "reduce-window") and line.operands:
                sizes += [shape.padded_size for shape in shapes_of(module.types.get(line.operands[0], ""))]
            units = 1 if line.opcode in TRANSCENDENTAL else VECTOR_UNITS
            vector += max(sizes, default=0) / VECTOR_LANES / units
    return matrix, vector / chip.num_cores


def product_cycles(module: Module, line: Instruction, chip: Chip) -> float:
    """Cycles of a product on the matrix units, each operand padded to their tiles.

    XLA:TPU writes every product as a convolution, and any of a product's axes may be one of its window. Which it is
    shows in how many pairs of an output and a tap meet an element and not padding or a hole of a dilation.
    """
    assert chip.clock_hz is not None
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text)
    result = shapes_of(line.type)
    shapes = [shapes_of(module.types.get(name, "")) for name in line.operands[:2]]
    if labels is None or not result or not all(shapes):
        return 0.0
    source, taps, out = (
        dict(zip(names, shape.sizes, strict=True))
        for names, shape in zip(labels.groups(), (shapes[0][0], shapes[1][0], result[0]), strict=True)
    )
    window = _window(line, sum(name.isdigit() for name in taps))
    batch, rows, contracted, features = 1.0, out["b"], taps["i"], out["f"]
    for axis, settings in enumerate(window):
        name = str(axis)
        pairs = _pairs(source[name], out[name], taps[name], *settings)
        if pairs == out[name] and taps[name] > 1:
            # One tap an output: an axis of the kernel's own, or one that both operands have.
            if source[name] == 1:
                features *= out[name]
            else:
                batch *= out[name]
        else:
            rows *= out[name]
            contracted *= -(-pairs // max(out[name], 1))
    groups = re.search(r"(?:feature|batch)_group_count=(\d+)", line.text)
    count = int(groups.group(1)) if groups else 1
    features = -(-features // count)
    side = chip.matrix_side

    def tiles(size: int) -> int:
        return -(-size // side)

    steps = tiles(contracted) * min(
        tiles(features) * max(rows, MIN_ROWS), tiles(rows) * max(features, MIN_ROWS)
    )
    precision = re.search(r"operand_precision=\{(\w+)", line.text)
    is_wide = shapes[0][0].dtype == "f32" and shapes[1][0].dtype == "f32"
    passes = PASSES.get(precision.group(1), 1) if precision and is_wide else 1
    units = chip.peak_flops / chip.clock_hz / 2 / side**2
    return batch * count * steps * passes / units


def _window(line: Instruction, num_axes: int) -> list[tuple[int, int, int, int]]:
    """Returns stride, padding before, dilation of the source and of the taps, for each axis of a window."""
    found = re.search(r"window=\{([^}]*)\}", line.text)
    fields = dict(re.findall(r"(\w+)=([\w\-]+)", found.group(1))) if found else {}
    strides, dilations, spreads = (
        [int(number) for number in fields[name].split("x")] if name in fields else [1] * num_axes
        for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    before = (
        [int(pair.split("_")[0]) for pair in fields["pad"].split("x")] if "pad" in fields else [0] * num_axes
    )
    return list(zip(strides, before, dilations, spreads, strict=True))


def _pairs(source: int, out: int, taps: int, stride: int, before: int, dilation: int, spread: int) -> int:
    """Counts the pairs of an output and a tap that meet an element of the source."""
    if before == 0 and dilation == 1 and (out - 1) * stride + (taps - 1) * spread < source:
        return out * taps
    at = np.arange(out)[:, None] * stride + np.arange(taps)[None] * spread - before
    return int(np.sum((at >= 0) & (at <= (source - 1) * dilation) & (at % dilation == 0)))
