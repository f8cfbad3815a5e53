"""FLOPs and collective traffic of a function, counted in its jaxpr: exact, and the same on every platform.

XLA's own cost analysis counts the body of a loop once, however often it runs; here loops are multiplied. Counted
are the products (``dot_general``, convolutions, ``ragged_dot``), two FLOPs a multiply-add; element-wise work and
reductions are not. What XLA rematerialises or removes later is not seen.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

ALL_REDUCE = {"psum", "psum2", "psum_invariant", "pmax", "pmin", "pmean"}
ALL_GATHER = {"all_gather", "all_gather_invariant", "all_gather_reduced"}
REDUCE_SCATTER = {"reduce_scatter", "psum_scatter", "unreduced_reduce_scatter"}
PERMUTE = {"ppermute", "collective_permute", "pbroadcast", "psend", "precv"}


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A Pallas kernel on inputs of some shapes."""

    name: str
    """Name that the kernel was given; may be empty."""
    grid: tuple[int, ...]
    """Number of its steps, along every axis."""
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    """Dtype and shape of every input, prefetched scalars first."""
    equation: Any = dataclasses.field(default=None, compare=False, repr=False)
    """Its equation in the jaxpr, from which `kernel_cycles` compiles it alone; not compared."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """Work of one device in one call."""

    flops: float = 0.0
    """FLOPs of products. Work outside ``shard_map`` is assumed to be cut evenly over the devices."""
    collective_bytes: float = 0.0
    """Bytes that the device receives in the collectives that the program states (inside ``shard_map`` or
    ``pmap``), by bandwidth-optimal algorithms: of k devices, an all-gather of n bytes in total or a reduce-scatter
    of n bytes moves n (k - 1) / k, an all-reduce twice that, a permute n."""
    has_manual_collectives: bool = False
    """Whether there was any ``shard_map`` or ``pmap``. Otherwise the compiler decides on the traffic, and
    ``collective_bytes`` is meaningless."""
    num_unknown_loops: int = 0
    """Number of ``while`` loops, whose trips depend on data, with something to count in them; counted as one trip."""
    kernels: Mapping[KernelCall, int] = dataclasses.field(default_factory=collections.Counter)
    """Pallas kernels with a fixed grid, and how often each is called."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.flops + other.flops,
            self.collective_bytes + other.collective_bytes,
            self.has_manual_collectives or other.has_manual_collectives,
            self.num_unknown_loops + other.num_unknown_loops,
            collections.Counter(self.kernels) + collections.Counter(other.kernels),
        )

    def __mul__(self, times: int) -> "Counts":
        return dataclasses.replace(
            self,
            flops=self.flops * times,
            collective_bytes=self.collective_bytes * times,
            kernels=collections.Counter({call: calls * times for call, calls in self.kernels.items()}),
        )


def count(function: Callable[..., Any], *args: Any, num_devices: int = 1) -> Counts:
    """Counts one call of ``function`` on ``args`` (arrays or ShapeDtypeStructs), per device of ``num_devices``."""
    return count_jaxpr(jax.make_jaxpr(function)(*args), num_devices=num_devices)


def count_jaxpr(jaxpr: ClosedJaxpr | Jaxpr, *, num_devices: int = 1) -> Counts:
    """Counts like ``count``, from a jaxpr (``jax.make_jaxpr(f)(...)``, or ``jitted.trace(...).jaxpr``)."""
    return _count(_open(jaxpr), share=1 / num_devices, axis_sizes={})


def _count(jaxpr: Jaxpr, *, share: float, axis_sizes: Mapping[str, int]) -> Counts:
    """``share`` is the fraction of an operation on these shapes that one device does."""
    total = Counts()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += Counts(share * _dot_flops(equation))
        elif name == "conv_general_dilated":
            total += Counts(share * _conv_flops(equation))
        elif name in ("ragged_dot", "ragged_dot_general"):
            total += Counts(share * 2 * _size(equation.outvars[0]) * _shape(equation.invars[0])[-1])
        elif axis_sizes and (moved := _collective_bytes(equation, axis_sizes)):
            total += Counts(collective_bytes=moved)
        elif name == "shard_map":
            total += _shard_map(params, axis_sizes)
        elif name == "scan":
            total += _count(_open(params["jaxpr"]), share=share, axis_sizes=axis_sizes) * params["length"]
        elif name == "while":
            body = _count(_open(params["body_jaxpr"]), share=share, axis_sizes=axis_sizes)
            # A loop that is known to end after so many trips, fori_loop's included, is a scan.
            if body != Counts():
                body = dataclasses.replace(body, num_unknown_loops=body.num_unknown_loops + 1)
            total += body
        elif name in ("cond", "switch"):
            branches = [
                _count(_open(branch), share=share, axis_sizes=axis_sizes) for branch in params["branches"]
            ]
            total += max(branches, key=lambda counts: counts.flops)
        elif name == "pallas_call":
            total += Counts(share * _pallas_flops(params), kernels=_kernel(equation))
        else:
            for inner in _inner_jaxprs(params):
                total += _count(inner, share=share, axis_sizes=axis_sizes)
    return total


def _open(jaxpr: Any) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    """Yields the programs that a call-like primitive (jit, remat, custom_jvp, custom_vjp, ...) runs."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield _open(item)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))


def _bytes(variable: Any) -> int:
    return _size(variable) * variable.aval.dtype.itemsize


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = _shape(equation.invars[0])
    return 2.0 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _conv_flops(equation: Any) -> float:
    """Counts the whole kernel for every output position, as hardware that pads with zeros computes it."""
    kernel = _shape(equation.invars[1])
    # The input channels of the kernel are those of one feature group already.
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    groups = equation.params["batch_group_count"]
    return 2.0 * _size(equation.outvars[0]) * math.prod(kernel) / out_channels / groups


def _collective_bytes(equation: Any, axis_sizes: Mapping[str, int]) -> float:
    name, params = equation.primitive.name, equation.params
    if name not in ALL_REDUCE | ALL_GATHER | REDUCE_SCATTER | PERMUTE | {"all_to_all"}:
        return 0.0
    axes = params.get("axes", params.get("axis_name"))
    axes = axes if isinstance(axes, tuple | list) else (axes,)
    size = math.prod(axis_sizes[axis] for axis in axes if isinstance(axis, str))
    groups = params.get("axis_index_groups")
    size = len(groups[0]) if groups else size
    away = (size - 1) / size
    if name in ALL_REDUCE:
        return 2 * away * sum(map(_bytes, equation.invars))
    if name in ALL_GATHER:
        return away * sum(map(_bytes, equation.outvars))
    if name in PERMUTE:
        return float(sum(map(_bytes, equation.outvars))) if size > 1 else 0.0
    return away * sum(map(_bytes, equation.invars))


def _shard_map(params: Mapping[str, Any], outer: Mapping[str, int]) -> Counts:
    mesh = params["mesh"]
    sizes = {**outer, **{axis: mesh.shape[axis] for axis in params["newly_manual_axes"]}}
    # Axes that stay automatic still cut the work, evenly as outside.
    automatic = math.prod(size for axis, size in mesh.shape.items() if axis not in sizes)
    inner = _count(_open(params["jaxpr"]), share=1 / automatic, axis_sizes=sizes)
    return dataclasses.replace(inner, has_manual_collectives=True)


def _kernel(equation: Any) -> Mapping[KernelCall, int]:
    params = equation.params
    grid = getattr(params.get("grid_mapping"), "grid", ())
    if not all(isinstance(size, int) for size in grid):
        return collections.Counter()
    inputs = tuple((str(x.aval.dtype), _shape(x)) for x in equation.invars)
    return collections.Counter({KernelCall(params["name"] or "", tuple(grid), inputs, equation): 1})


def _pallas_flops(params: Mapping[str, Any]) -> float:
    """Returns the kernel's own products times its grid; the stated estimate where it shows none."""
    inner = _count(_open(params["jaxpr"]), share=1.0, axis_sizes={}).flops
    grid = getattr(params.get("grid_mapping"), "grid", ())
    if inner and all(isinstance(size, int) for size in grid):
        return inner * math.prod(grid)
    estimate = params.get("cost_estimate")
    return float(estimate.flops) if estimate is not None else inner
