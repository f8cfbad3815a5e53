"""``alm bench step``: the whole training step of a config, optimizer included, beside its peer in PyTorch.

The timing covers everything that a step does once a batch is in the host's memory: to the device, features from
waveforms, augmentation and dropout, both towers, the loss, the backward pass, AdamW. The peer is
``transformers.ClapModel`` of the same shape with ``torch.optim.AdamW`` in training mode; its loss costs the same as
ours. ``transformers`` is given log-mel features, so the time of the front-end counts only for ours;
``transformers+features`` computes them in every step from the waveforms that ours begins with, by
``ClapFeatureExtractor``.
"""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alm_jax import batch as contract
from alm_jax.bench.counting import count_jaxpr
from alm_jax.bench.figures import (
    UNMEASURED,
    Row,
    memory_figures,
    resident_bytes,
    step_ms,
    times_ours,
    utilisation,
)
from alm_jax.bench.timing import take_turns
from alm_jax.bench.topology import Topology
from alm_jax.errors import UserError
from alm_jax.interop.clap_config import config_to_clap, frontend_to_preprocessor
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives import build_objective
from alm_jax.ops.attention import attention_form
from alm_jax.run.config_json import to_json
from alm_jax.run.experiment import ExperimentConfig, read_experiment
from alm_jax.training.build import build_parallel
from alm_jax.training.lora import add_adapters
from alm_jax.training.mesh import AnyMesh, MeshConfig, build_mesh, check_batch_size
from alm_jax.training.optimizer import AdamWConfig
from alm_jax.training.parallel import JitParallel
from alm_jax.training.sharding import num_batch_shards
from data_pipelines.config import MixtureConfig

FEATURES = "+features"
PEERS = ("transformers", "transformers+compile", f"transformers{FEATURES}")
OURS = "alm_jax"
FIRST_WORD = 5
"""Token ids below this number are special tokens."""


def example_batch(config: ExperimentConfig) -> dict[str, np.ndarray]:
    """Makes a batch of noise as long as the longest recordings, with captions of the tokenizer's maximum length."""
    rng = np.random.default_rng(0)
    rows, data = config.training.batch_size, config.data
    samples = round(data.window_sec * config.objective.model.frontend.sample_rate_hz)
    # A model has an embedding for every id of its tokenizer.
    length, num_ids = data.tokenizer.max_length, data.tokenizer.num_tokens
    batch = {
        contract.AUDIO: rng.integers(-8192, 8192, (rows, samples), np.int16),
        contract.AUDIO_NUM_SAMPLES: np.full(rows, samples, np.int32),
        contract.TEXT_IDS: rng.integers(FIRST_WORD, num_ids, (rows, length), np.int32),
        contract.TEXT_MASK: np.ones((rows, length), bool),
        contract.MASK: np.ones(rows, bool),
        contract.INDEX: np.arange(rows, dtype=np.int32),
        contract.LABEL: np.full(rows, -1, np.int32),
    }
    if data.num_negatives:
        shape = (rows, data.num_negatives, length)
        batch[contract.NEGATIVE_IDS] = rng.integers(FIRST_WORD, num_ids, shape, np.int32)
        batch[contract.NEGATIVE_MASK] = np.ones(shape, bool)
    if data.prompts:
        asked = (rows, data.prompt_length)
        batch[contract.PROMPT_IDS] = rng.integers(FIRST_WORD, num_ids, asked, np.int32)
        batch[contract.PROMPT_MASK] = np.ones(asked, bool)
        batch[contract.AUDIO_POSITION] = np.zeros(rows, np.int32)
    if isinstance(data.dataset, MixtureConfig):
        batch[contract.SOURCE] = np.arange(rows, dtype=np.int32) % len(data.dataset.parts)
    contract.validate(batch)
    return batch


def abstract_batch(config: ExperimentConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of ``example_batch``, for batches that no host could hold."""
    training = dataclasses.replace(config.training, batch_size=1)
    one = example_batch(dataclasses.replace(config, training=training))
    rows = config.training.batch_size
    return {key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for key, x in one.items()}


def mesh_of(config: ExperimentConfig, topology: Topology | None = None) -> Mesh:
    """Makes the config's mesh over the present devices, or over ``topology``'s.

    Raises UserError where the config does not fit them, or uses pmap.
    """
    training = config.training
    if training.parallelism != "jit":
        raise UserError("the step is measured under jit: leave training.parallelism at 'jit'")
    mesh = build_mesh(training.mesh, None if topology is None else topology.devices)
    check_batch_size(training.batch_size, training.num_microbatches, num_batch_shards(mesh))
    return mesh


def build(config: ExperimentConfig, mesh: AnyMesh) -> JitParallel:
    """Makes the step of ``config``. Raises UserError where its parts do not fit each other."""
    objective = add_adapters(build_objective(config.objective), config.lora)
    parallel = build_parallel(objective, config.optimizer, config.training, seed=config.seed, mesh=mesh)
    assert isinstance(parallel, JitParallel)
    return parallel


def describe(
    config: ExperimentConfig, impl: str, num_devices: int, platform: str, topology: str | None
) -> Row:
    """Makes a row without measurements."""
    model = config.objective.model
    return {
        "config": config.name,
        "impl": impl,
        "batch": config.training.batch_size,
        "clip_sec": model.frontend.clip.clip_sec,
        "text_tokens": config.data.tokenizer.max_length,
        "dtype": model.compute_dtype,
        "remat": model.remat,
        "mesh": None,
        "devices": num_devices,
        "platform": platform,
        "topology": topology,
        "parameters": None,
        "clips_per_s": None,
        **UNMEASURED,
    }


def model_flops(config: ExperimentConfig, num_devices: int) -> float:
    """Counts the FLOPs of a step on one of ``num_devices``, without recomputation: the model's own.

    Counted in the step of one device with the reference forms of attention and losses, and without rematerialisation:
    tiles that are padded and parts that are computed again are no work of the model's.
    """
    plain = dataclasses.replace(
        config,
        objective=_with_fields(config.objective, remat="none", impl="reference"),
        training=dataclasses.replace(config.training, mesh=MeshConfig(data=1), num_microbatches=1),
    )
    mesh = build_mesh(plain.training.mesh, jax.devices("cpu")[:1])
    with attention_form("reference"):
        traced = build(plain, mesh).trace_step(abstract_batch(plain))
    return count_jaxpr(traced.jaxpr).flops / num_devices


def _with_fields(config: Any, **values: Any) -> Any:
    """Returns the dataclass with the fields of these names replaced, in it and in nested dataclasses."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in values:
            changes[field.name] = values[field.name]
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _with_fields(value, **values)
    return dataclasses.replace(config, **changes)


def num_parameters(parallel: JitParallel) -> int:
    """Number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(parallel.abstract().params))


def mesh_text(parallel: JitParallel) -> str:
    """The mesh as ``data 8 x fsdp 2``."""
    return (
        " x ".join(f"{axis} {size}" for axis, size in parallel.mesh.shape.items() if size > 1) or "one device"
    )


def run_rows(config: ExperimentConfig, peers: list[str], *, repeats: int) -> list[Row]:
    """Yields rows of the step of a config, and of its peers, timed in turns on the present devices.

    Raises UserError for an unknown peer, or one on several devices.
    """
    unknown = [peer for peer in peers if peer not in PEERS]
    if unknown:
        raise UserError(f"there is no peer {unknown[0]!r} of a training step: known are {', '.join(PEERS)}")
    parallel = build(config, mesh_of(config))
    if peers and parallel.mesh.size > 1:
        raise UserError(f"a peer runs on one device, the config's mesh has {parallel.mesh.size}")
    platform = jax.default_backend()
    rows = {OURS: describe(config, OURS, parallel.mesh.size, platform, None)}
    rows[OURS] |= {"parameters": num_parameters(parallel), "mesh": mesh_text(parallel)}
    rows[OURS]["flops"] = model_flops(config, parallel.mesh.size)
    rows[OURS] |= memory_figures(parallel.trace_step(abstract_batch(config)).lower().compile())
    passes: dict[str, Callable[[], Any]] = {OURS: jax_step(config, parallel)}
    for peer in peers:
        rows[peer] = describe(config, peer, 1, platform, None)
        passes[peer], rows[peer]["parameters"] = torch_step(config, peer)
    timings = take_turns(passes, repeats=repeats, warmups=1, settling=1)
    for name, timing in timings.items():
        rows[name] |= {"step_ms": step_ms(timing), "fits": True}
        rows[name]["clips_per_s"] = config.training.batch_size / timing.median
        if name != OURS:
            rows[name]["times_ours"] = times_ours(timings[OURS], timing)
    rows[OURS]["mfu"] = utilisation(rows[OURS]["flops"], timings[OURS])
    passes.clear()
    gc.collect()
    for name in rows if parallel.mesh.size == 1 else ():
        rows[name]["rss_bytes"] = resident_bytes(resident_training, config=to_json(config), name=name)
    return list(rows.values())


def jax_step(config: ExperimentConfig, parallel: JitParallel) -> Callable[[], None]:
    """Returns a function that trains one step and waits for it."""
    batch = example_batch(config)
    # Done before the first step is dispatched: its buffers and the step's would otherwise be alive together.
    state = [jax.block_until_ready(parallel.init())]

    def run() -> None:
        state[0], metrics = parallel.step(state[0], batch)
        jax.block_until_ready(metrics)

    return run


def torch_step(config: ExperimentConfig, peer: str) -> tuple[Callable[[], None], int]:
    """Returns a function that trains ClapModel for one step, and its number of parameters."""
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(0)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model_config = config.objective.model
    if not isinstance(model_config, TwoTowersConfig):
        raise UserError(f"{peer} is a two-tower model; {config.name} has no such peer")
    clap = config_to_clap(model_config, {"bos_token": 0, "eos_token": 2})
    model: Any = ClapModel(ClapConfig.from_dict(clap)).train()
    model.to(device)
    forward: Any = torch.compile(model) if peer.endswith("+compile") else model
    adam = config.optimizer
    if not isinstance(adam, AdamWConfig):
        raise UserError(f"{peer} trains with AdamW; {config.name} has {type(adam).__name__}")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=adam.peak_lr,
        betas=(adam.b1, adam.b2),
        eps=adam.eps,
        weight_decay=adam.weight_decay,
    )
    batch = example_batch(config)
    rows, frontend = config.training.batch_size, model_config.frontend
    inputs = {
        "input_ids": torch.from_numpy(batch[contract.TEXT_IDS]).long().to(device),
        "attention_mask": torch.from_numpy(batch[contract.TEXT_MASK]).long().to(device),
        "input_features": torch.randn(rows, 1, frontend.num_frames, frontend.num_features, device=device),
        "is_longer": torch.zeros(rows, 1, dtype=torch.bool, device=device),
    }
    extract = None
    if peer.endswith(FEATURES):
        extract = ClapFeatureExtractor(**frontend_to_preprocessor(frontend))
    waveforms = list(batch[contract.AUDIO].astype(np.float32) / 32768)
    dtype = torch.bfloat16 if model_config.compute_dtype == "bfloat16" else torch.float32

    def run() -> None:
        if extract is not None:
            made = extract(waveforms, sampling_rate=frontend.sample_rate_hz, return_tensors="pt")
            inputs["input_features"] = made["input_features"].to(device)
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = forward(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return run, sum(parameter.numel() for parameter in model.parameters())


def resident_training(config: dict[str, Any], name: str) -> Callable[[], None]:
    """Starts a training for ``resident.growth_of`` and takes two steps, parameters included.

    It has run once before, so that libraries are loaded and programs compiled, and its memory was released.
    """
    found = read_experiment(config)
    parallel = build(found, mesh_of(found)) if name == OURS else None

    def train() -> None:
        step = torch_step(found, name)[0] if parallel is None else jax_step(found, parallel)
        for _ in range(2):
            step()

    train()
    return train
