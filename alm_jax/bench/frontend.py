"""``alm bench frontend``: waveforms to features, beside the feature extractor of transformers."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alm_jax.bench.counting import count_jaxpr
from alm_jax.bench.figures import (
    UNMEASURED,
    Row,
    memory_figures,
    step_ms,
    times_ours,
    topology_figures,
    utilisation,
)
from alm_jax.bench.timing import take_turns
from alm_jax.bench.topology import Topology
from alm_jax.errors import UserError
from alm_jax.ops.frontends import (
    AstSpec,
    AudioLdmSpec,
    BeatsSpec,
    CedSpec,
    ClapSpec,
    ClipSpec,
    CtalSpec,
    FrontendSpec,
    TorchlibrosaSpec,
    WhisperSpec,
    compute_features,
)
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh

OURS, PEER = "alm_jax", "transformers"
SPECS: dict[str, Callable[..., FrontendSpec]] = {
    "torchlibrosa": TorchlibrosaSpec,
    "clap": ClapSpec,
    "ast": AstSpec,
    "beats": BeatsSpec,
    "ced": CedSpec,
    "whisper": WhisperSpec,
    "audioldm": AudioLdmSpec,
    "ctal": CtalSpec,
}
"""Families by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontendCase:
    """One front-end at one size."""

    name: str
    """Name: a key of ``SPECS``."""
    batch: int
    """Batch size, clips."""
    clip_sec: float = 10.0
    """Length of a clip, seconds."""

    @property
    def spec(self) -> FrontendSpec:
        """The family's default spec at this length."""
        return SPECS[self.name](clip=ClipSpec(clip_sec=self.clip_sec))


def check(case: FrontendCase, peers: Sequence[str]) -> None:
    """Raises UserError where there is no such front-end or peer."""
    if case.name not in SPECS:
        raise UserError(f"there is no front-end {case.name!r}: known are {', '.join(SPECS)}")
    unknown = [peer for peer in peers if peer != PEER]
    if unknown:
        raise UserError(f"there is no peer {unknown[0]!r} of a front-end: there is {PEER}")


def describe(case: FrontendCase, impl: str, num_devices: int, platform: str, topology: str | None) -> Row:
    """Makes a row without measurements."""
    return {
        "frontend": case.name,
        "impl": impl,
        "batch": case.batch,
        "clip_sec": case.clip_sec,
        "sample_rate_hz": case.spec.sample_rate_hz,
        "devices": num_devices,
        "platform": platform,
        "topology": topology,
        "clips_per_s": None,
        "seconds_per_s": None,
        **UNMEASURED,
    }


def trace(case: FrontendCase, mesh: Mesh) -> Any:
    """Traces the front-end, clips cut over ``mesh``."""
    spec = case.spec
    waveform = jax.ShapeDtypeStruct((case.batch, spec.clip_samples), jnp.float32)
    with jax.set_mesh(mesh):
        jitted = jax.jit(lambda x: compute_features(x, spec), in_shardings=sharding.batch_sharding(mesh))
        return jitted.trace(waveform)


def compile_row(case: FrontendCase, topology: Topology) -> Row:
    """Makes the row of a front-end compiled for absent devices."""
    check(case, ())
    mesh = topology.mesh()
    if case.batch % mesh.size:
        raise UserError(f"a batch of {case.batch} does not divide over {mesh.size} devices")
    traced = trace(case, mesh)
    row = describe(case, OURS, mesh.size, topology.platform, topology.name)
    counts = count_jaxpr(traced.jaxpr, num_devices=mesh.size)
    row["flops"] = counts.flops
    return row | topology_figures(traced.lower(), topology, row["flops"], counts)


def run_rows(case: FrontendCase, peers: Sequence[str], *, repeats: int) -> Iterator[Row]:
    """Yields the rows of a front-end and of its peer, where transformers has one, timed in turns on one device."""
    check(case, peers)
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    traced = trace(case, mesh)
    compiled = traced.lower().compile()
    platform = jax.default_backend()
    rng = np.random.default_rng(0)
    waveform = 0.1 * rng.standard_normal((case.batch, case.spec.clip_samples), np.float32)
    placed = jax.device_put(waveform, sharding.batch_sharding(mesh))
    rows = {OURS: describe(case, OURS, 1, platform, None) | memory_figures(compiled)}
    rows[OURS]["flops"] = count_jaxpr(traced.jaxpr).flops
    passes: dict[str, Callable[[], Any]] = {OURS: lambda: jax.block_until_ready(compiled(placed))}
    extract = extractor(case) if peers else None
    if extract is not None:
        rows[PEER] = describe(case, PEER, 1, platform, None)
        passes[PEER] = lambda: extract(list(waveform))
    timings = take_turns(passes, repeats=repeats)
    for name, timing in timings.items():
        rows[name] |= {"step_ms": step_ms(timing), "fits": True}
        rows[name]["clips_per_s"] = case.batch / timing.median
        rows[name]["seconds_per_s"] = case.batch * case.clip_sec / timing.median
        if name != OURS:
            rows[name]["times_ours"] = times_ours(timings[OURS], timing)
    rows[OURS]["mfu"] = utilisation(rows[OURS]["flops"], timings[OURS])
    yield from rows.values()


def extractor(case: FrontendCase) -> Callable[[list[np.ndarray]], Any] | None:
    """Returns transformers' extractor of the same family, from waveforms to NumPy features; None where it has
    none."""
    rate = case.spec.sample_rate_hz
    if case.name == "clap":
        from transformers import ClapFeatureExtractor

        clap = ClapFeatureExtractor(max_length_s=case.clip_sec, truncation="rand_trunc", padding="repeatpad")
        return lambda clips: clap(clips, sampling_rate=rate)
    if case.name == "ast":
        from transformers import ASTFeatureExtractor

        ast = ASTFeatureExtractor(max_length=case.spec.num_frames)
        return lambda clips: ast(clips, sampling_rate=rate)
    if case.name == "whisper":
        from transformers import WhisperFeatureExtractor

        whisper = WhisperFeatureExtractor(chunk_length=round(case.clip_sec))
        return lambda clips: whisper(clips, sampling_rate=rate)
    return None
