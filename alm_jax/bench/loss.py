"""``alm bench loss``: forward and backward of every form of a loss beside its peers, one row each.

Bytes come from the compiler, FLOPs and traffic from the jaxpr with loops multiplied, times from runs that take turns.
With a topology nothing runs: the program is compiled for absent devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alm_jax.bench.counting import Counts, count_jaxpr
from alm_jax.bench.cycles import estimate_cycles
from alm_jax.bench.figures import Row, memory_figures, resident_bytes, step_ms
from alm_jax.bench.kernel_cycles import kernel_cycles
from alm_jax.bench.loss_cases import ROWS, LossCase, find_loss
from alm_jax.bench.timing import take_turns
from alm_jax.bench.topology import Topology, compile_for
from alm_jax.bench.torch_losses import has_peer, peak_cuda_bytes, torch_pass
from alm_jax.errors import UserError
from alm_jax.losses.contrastive import pick_plan
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh

DTYPES = ("float32", "bfloat16")
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest relative difference between the losses of a row and of the first row of its size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSweep:
    """What to measure: every form and peer at every size."""

    losses: Sequence[str]
    """Names of losses."""
    impls: Sequence[str] | None = None
    """Forms; None: all that make sense for the number of devices."""
    batches: Sequence[int]
    """Batch sizes: pairs; tokens for ``lm``."""
    dim: int = 512
    """Width of the embeddings."""
    dtypes: Sequence[str] = ("float32",)
    """Dtype of the embeddings."""
    vocab: int = 32768
    """Vocabulary size, for ``lm``."""
    peers: Sequence[str] = ()
    """Other projects' losses to run beside ours, on one device."""
    num_devices: int = 1
    """Number of present devices."""
    topology: Topology | None = None
    """Topology of absent devices, to compile for instead."""
    repeats: int = 5
    """Number of timed runs of each."""


def check(sweep: LossSweep) -> None:
    """Raises UserError where the sweep names something unknown, before anything is measured."""
    for loss in sweep.losses:
        known = find_loss(loss).impls
        for impl in sweep.impls or ():
            if impl not in known and not any(impl in find_loss(other).impls for other in sweep.losses):
                raise UserError(f"{loss} has no form {impl!r}: known are {', '.join(known)}")
    for dtype in sweep.dtypes:
        if dtype not in DTYPES:
            raise UserError(f"--dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    for peer in sweep.peers:
        if not any(has_peer(loss, peer) for loss in sweep.losses):
            raise UserError(f"the peer {peer} has none of the losses {', '.join(sweep.losses)}")
    if sweep.peers and sweep.topology is not None:
        raise UserError(
            "a peer runs in PyTorch on a device that is here; for a topology, compare with --impl open_clip_pattern"
        )
    if sweep.peers and sweep.num_devices > 1:
        raise UserError("a peer runs on one device; for several, compare with --impl open_clip_pattern")
    num_devices = sweep.num_devices if sweep.topology is None else len(sweep.topology.devices)
    for batch in sweep.batches:
        if batch < 1 or batch % num_devices:
            raise UserError(f"a batch of {batch} does not divide over {num_devices} devices")
    if sweep.topology is None and num_devices > jax.device_count():
        raise UserError(
            f"--devices is {num_devices}, this machine has {jax.device_count()} {jax.default_backend()}(s)"
        )


def run_sweep(sweep: LossSweep) -> Iterator[Row]:
    """Yields the rows as they are measured; a failure is a row with an ``error``."""
    check(sweep)
    for loss in sweep.losses:
        for dtype in sweep.dtypes:
            for batch in sweep.batches:
                case = LossCase(loss, batch, sweep.dim, dtype, sweep.vocab if loss == "lm" else None)
                if sweep.topology is not None:
                    for impl in _impls(sweep, loss):
                        yield compile_row(case, impl, sweep.topology)
                else:
                    yield from run_rows(case, sweep)


def _impls(sweep: LossSweep, loss: str) -> list[str]:
    known = find_loss(loss).impls
    if sweep.impls is not None:
        return [impl for impl in sweep.impls if impl in known]
    num_devices = sweep.num_devices if sweep.topology is None else len(sweep.topology.devices)
    # On one device these are all the same tiles; kernels and the choice of the table are measured when asked for.
    left_out = {"auto", "kernel"} | (
        {"onesided", "ring", "grid", "open_clip_pattern"} if num_devices == 1 else set()
    )
    return [impl for impl in known if impl not in left_out]


def _empty_row(case: LossCase, impl: str, num_devices: int, platform: str, topology: str | None) -> Row:
    return {
        "loss": case.loss,
        "impl": impl,
        "batch": case.batch,
        "dim": case.dim,
        "vocab": case.vocab,
        "dtype": case.dtype,
        "devices": num_devices,
        "platform": platform,
        "topology": topology,
        "temp_bytes": None,
        "peak_bytes": None,
        "rss_bytes": None,
        "flops": None,
        "flops_over_b2d": None,
        "collective_bytes": None,
        "estimated_cycles": None,
        "kernel_cycles": None,
        "step_ms": None,
        "pairs_per_s": None,
        "hbm_limit": None,
        "fits": None,
        "error": None,
    }


def compile_row(case: LossCase, impl: str, topology: Topology) -> Row:
    """Makes the row of one form, compiled for absent devices."""
    mesh = topology.mesh()
    name = resolved_impl(case, impl, mesh.size, topology.platform)
    row = _empty_row(case, name, mesh.size, topology.platform, topology.name)
    row["hbm_limit"] = topology.chip.hbm_bytes
    traced = trace(case, impl, mesh)
    counts = count_jaxpr(traced.jaxpr, num_devices=mesh.size)
    row |= counted(case, counts, mesh.size)
    compiled = compile_for(traced.lower(), topology)
    row |= {"fits": compiled.fits, "error": compiled.error}
    if compiled.memory is not None:
        row |= {"temp_bytes": compiled.memory.temp_bytes, "peak_bytes": compiled.memory.peak_bytes}
        row |= cycle_figures(compiled.text or "", counts, topology.name)
    return row


def cycle_figures(text: str, counts: Counts, topology: str) -> Row:
    """Adds the bundles of Pallas kernels to the compiler's estimate of its own operations.

    ``kernel_cycles`` is that part of ``estimated_cycles``.
    """
    cycles = estimate_cycles(text)
    if cycles is None:
        return {}
    if not counts.kernels:
        return {"estimated_cycles": cycles.total}
    kernels = kernel_cycles(counts.kernels, topology)
    return {"estimated_cycles": cycles.total + kernels, "kernel_cycles": kernels}


def resolved_impl(case: LossCase, impl: str, num_devices: int, platform: str) -> str:
    """Resolves ``auto`` and ``kernel`` to the form that they choose; any other name is unchanged."""
    if impl not in ("auto", "kernel") or case.loss == "lm":
        return impl
    platform = {"cuda": "gpu"}.get(platform, platform)
    plan = pick_plan(impl, batch_size=case.batch, num_shards=num_devices, platform=platform)
    return f"{impl} ({plan.impl})"


def counted(case: LossCase, counts: Counts, num_devices: int) -> Row:
    """Fields of a row from the jaxpr; FLOPs and bytes are those of one device."""
    unit = case.flops_unit
    # The traffic is unknown where the compiler decides on it.
    stated = num_devices == 1 or counts.has_manual_collectives
    return {
        "flops": counts.flops,
        "flops_over_b2d": None if unit is None else counts.flops * num_devices / unit,
        "collective_bytes": counts.collective_bytes if stated else None,
    }


def trace(case: LossCase, impl: str, mesh: Mesh) -> Any:
    """Traces the pass, ``jax.stages.Traced``, with its inputs on ``mesh``."""
    differentiable, fixed = (
        {
            name: jax.ShapeDtypeStruct(shape, _dtype(case, shape, dtype), sharding=_sharding(name, mesh))
            for name, (shape, dtype) in arrays.items()
        }
        for arrays in case.shapes()
    )
    function = jax.value_and_grad(case.function(impl))
    gradients = {name: x.sharding for name, x in differentiable.items()}
    with jax.set_mesh(mesh):
        jitted = jax.jit(function, out_shardings=(sharding.replicated(mesh), gradients))
        return jitted.trace(differentiable, fixed)


def _dtype(case: LossCase, shape: tuple[int, ...], dtype: Any) -> Any:
    is_matrix = len(shape) > 1 and np.issubdtype(dtype, np.floating)
    return jnp.dtype(case.dtype) if is_matrix else dtype


def _sharding(name: str, mesh: Mesh) -> Any:
    return sharding.batch_sharding(mesh) if name in ROWS else sharding.replicated(mesh)


def jax_pass(case: LossCase, impl: str, num_devices: int) -> tuple[Any, Any, Callable[[], float]]:
    """Returns the traced and the compiled program of a form, and a function that runs it once and returns the
    loss."""
    mesh = build_mesh(MeshConfig(), jax.devices()[:num_devices])
    traced = trace(case, impl, mesh)
    compiled = traced.lower().compile()
    arguments = tuple(
        {
            name: jax.device_put(x.astype(_dtype(case, x.shape, x.dtype)), _sharding(name, mesh))
            for name, x in arrays.items()
        }
        for arrays in case.inputs()
    )

    def run() -> float:
        loss, gradients = jax.block_until_ready(compiled(*arguments))
        del gradients
        return float(loss)

    return traced, compiled, run


def torch_runner(case: LossCase, peer: str) -> Callable[[], float]:
    """Returns a function that runs a peer once, on the GPU where JAX has one, else on the CPU, and returns the
    loss."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return torch_pass(case.loss, peer, *case.inputs(), dtype=case.dtype, device=device)


def run_rows(case: LossCase, sweep: LossSweep) -> list[Row]:
    """Yields the rows of all forms and peers at one size, timed in turns."""
    platform = jax.default_backend()
    rows: dict[str, Row] = {}
    passes: dict[str, Callable[[], float]] = {}
    losses: dict[str, float] = {}

    def attempt(name: str, prepare: Callable[[], Callable[[], float]]) -> None:
        """Prepares and runs a candidate once; a failure is recorded in its row."""
        try:
            passes[name] = prepare()
            losses[name] = passes[name]()
        except UserError:
            raise
        except (jax.errors.JaxRuntimeError, MemoryError, RuntimeError) as error:
            passes.pop(name, None)
            text = " ".join(str(error).split())
            rows[name] |= {"error": text[:300], "fits": False if _is_out_of_memory(text) else None}

    def prepare_form(name: str, impl: str) -> Callable[[], float]:
        traced, compiled, run = jax_pass(case, impl, sweep.num_devices)
        rows[name] |= counted(
            case, count_jaxpr(traced.jaxpr, num_devices=sweep.num_devices), sweep.num_devices
        )
        rows[name] |= memory_figures(compiled)
        return run

    for impl in _impls(sweep, case.loss):
        name = resolved_impl(case, impl, sweep.num_devices, platform)
        rows[name] = _empty_row(case, name, sweep.num_devices, platform, None)
        attempt(name, functools.partial(prepare_form, name, impl))
        if name in passes and sweep.num_devices == 1:
            rows[name]["rss_bytes"] = resident_bytes(
                resident_pass, case=dataclasses.asdict(case), impl=impl, peer=None
            )
    for peer in sweep.peers:
        if has_peer(case.loss, peer):
            rows[peer] = _empty_row(case, peer, 1, platform, None)
            attempt(peer, functools.partial(torch_runner, case, peer))
            if peer in passes and platform == "gpu":
                rows[peer]["peak_bytes"] = peak_cuda_bytes(passes[peer])
            if peer in passes:
                rows[peer]["rss_bytes"] = resident_bytes(
                    resident_pass, case=dataclasses.asdict(case), impl=None, peer=peer
                )
    for name, timing in take_turns(passes, repeats=sweep.repeats, warmups=0).items():
        rows[name] |= {"step_ms": step_ms(timing), "pairs_per_s": case.batch / timing.median, "fits": True}
    _check_agreement(case, losses, rows)
    return list(rows.values())


def _is_out_of_memory(message: str) -> bool:
    return "RESOURCE_EXHAUSTED" in message or "out of memory" in message.lower()


def _check_agreement(case: LossCase, losses: dict[str, float], rows: dict[str, Row]) -> None:
    """Marks a row whose loss differs from the first row's: it does not measure the same computation."""
    first = next(iter(losses.values()), 0.0)
    for name, value in losses.items():
        if not abs(value - first) <= TOLERANCE[case.dtype] * max(abs(first), 1.0):
            rows[name]["error"] = f"the loss is {value:.6g}, that of {next(iter(losses))} is {first:.6g}"


def resident_pass(case: dict[str, Any], impl: str | None, peer: str | None) -> Callable[[], float]:
    """Prepares a pass for ``resident.growth_of``, in this process."""
    found = LossCase(**case)
    small = dataclasses.replace(found, batch=2)
    # The first pass of a process starts threads and loads libraries, which are no part of the loss.
    if peer is not None:
        torch_runner(small, peer)()
        return torch_runner(found, peer)
    assert impl is not None
    jax_pass(small, impl, 1)[2]()
    return jax_pass(found, impl, 1)[2]
