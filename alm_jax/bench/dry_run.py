"""Preview of a run without training: its first batch, and estimates of memory, disk and time."""

import dataclasses
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.bench.counting import count_jaxpr
from alm_jax.bench.footprint import measure_footprint
from alm_jax.bench.step import build, mesh_of
from alm_jax.run.experiment import ExperimentConfig
from alm_jax.run.session import prepare_once
from data_pipelines.pipeline import train_batches
from data_pipelines.prepared import Prepared

NUM_SHOWN = 3
"""Number of rows of the batch whose text is shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRun:
    """Report of `alm pretrain --dry-run`."""

    shapes: dict[str, str]
    """Dtype and shape of every array of the first batch."""
    texts: tuple[tuple[str, str], ...]
    """Id and caption, decoded from its tokens, of each of the first rows."""
    batch_sec: float
    """Time to read the first batch, seconds."""
    num_clips: int
    """Number of recordings of the train split."""
    num_parameters: int
    bytes_per_device: dict[str, int]
    """Memory held on each device, by kind, bytes."""
    data_bytes: int
    """Size of the records on disk, bytes."""
    checkpoint_bytes: int
    """Size of one checkpoint on disk, bytes."""
    disk_bytes: int
    """Size of all checkpoints that are kept, and of the one that is being written, bytes."""
    flops: float
    """FLOPs of the products of a step on one device."""
    device_flops_per_sec: float
    """Speed of one device, FLOPs per second, from a timed product of two matrices."""
    step_sec: float
    """Estimated time of a step, seconds: ``flops`` at a third of that speed. Only training gives a better figure."""
    num_steps: int

    def lines(self) -> list[str]:
        """Formats the report for people."""
        held = ", ".join(f"{kind} {size / 1e6:,.1f}" for kind, size in self.bytes_per_device.items() if size)
        hours = self.step_sec * self.num_steps / 3600
        before = sum(self.bytes_per_device.values()) / 1e6
        rate = f"{self.device_flops_per_sec / 1e9:,.0f} GFLOP/s that a product of matrices reaches here"
        lines = [f"batch      {name}: {shape}" for name, shape in self.shapes.items()]
        lines += [f"row        {name}: {text}" for name, text in self.texts]
        lines.append(
            f"data       {self.num_clips:,} clips to train on, {self.data_bytes / 1e6:,.1f} MB of records"
        )
        lines.append(f"reading    {self.batch_sec:.2f} s for the first batch")
        lines.append(f"parameters {self.num_parameters / 1e6:.1f} M")
        lines.append(f"memory     {before:,.1f} MB a device before activations (MB: {held})")
        lines.append(
            f"disk       {self.checkpoint_bytes / 1e6:,.1f} MB a checkpoint, {self.disk_bytes / 1e6:,.1f} MB at most"
        )
        lines.append(
            f"time       about {self.step_sec:.2g} s a step and {hours:.2g} hours for {self.num_steps:,} steps: "
            f"{self.flops / 1e9:,.1f} GFLOP a step at a third of the {rate}"
        )
        return [*lines, "nothing was trained"]


def dry_run(config: ExperimentConfig) -> DryRun:
    """Builds or finds the data set, reads the first batch, lays out the state, and counts a step.

    Raises what `pretrain` would raise before its first step, except for errors that only compiling shows.
    """
    mesh = mesh_of(config)
    footprint = measure_footprint(config, mesh.size)
    data = prepare_once(config)
    batch_size, split = config.training.batch_size, data.split(config.data.train_split)
    start = time.perf_counter()
    batches = train_batches(data, config.data.train_split, batch_size=batch_size, seed=config.seed)
    batch = next(batches)
    batch_sec = time.perf_counter() - start
    contract.validate(batch)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    flops = count_jaxpr(build(config, mesh).trace_step(shapes).jaxpr, num_devices=mesh.size).flops
    held = footprint.bytes_per_device
    kept = ("parameters", "optimizer", "average", "statistics")
    checkpoint = sum(array.num_bytes for array in footprint.arrays if array.kind in kept)
    rate = _measure_flops_per_sec()
    return DryRun(
        shapes={name: f"{x.dtype} {list(x.shape)}" for name, x in batch.items()},
        texts=tuple(
            (split.ids[int(batch[contract.INDEX][row])], _text(data, batch, row))
            for row in range(min(NUM_SHOWN, batch_size))
        ),
        batch_sec=batch_sec,
        num_clips=len(split),
        num_parameters=footprint.num_parameters,
        bytes_per_device=held,
        data_bytes=sum(_size_of(folder) for folder in data.folders),
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * (config.training.keep_checkpoints + 1),
        flops=flops,
        device_flops_per_sec=rate,
        step_sec=3 * flops / rate,
        num_steps=config.training.num_steps,
    )


def _text(data: Prepared, batch: dict[str, np.ndarray], row: int) -> str:
    """Decodes the caption of a row from its tokens."""
    ids = batch[contract.TEXT_IDS][row][batch[contract.TEXT_MASK][row]].tolist()
    return data.tokenizer.decode(ids)


def _measure_flops_per_sec() -> float:
    """Measures the FLOPs per second of float32 matrix products on one device."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size))
    multiply = jax.jit(lambda x: x @ x)
    multiply(matrix).block_until_ready()
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        multiply(matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / float(best)


def _size_of(folder: Path) -> int:
    return sum(os.path.getsize(Path(place) / name) for place, _, names in os.walk(folder) for name in names)
