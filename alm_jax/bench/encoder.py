"""``alm bench encoder``: an encoder alone, forward or forward and backward, beside the same model in transformers.

Inputs are random and of full length, nothing is dropped, and every parameter gets a gradient in the backward pass. The
peer has the same shape and its own random weights.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh

from alm_jax.bench.counting import Counts, count_jaxpr
from alm_jax.bench.figures import (
    UNMEASURED,
    Row,
    memory_figures,
    resident_bytes,
    step_ms,
    times_ours,
    topology_figures,
    utilisation,
)
from alm_jax.bench.timing import take_turns
from alm_jax.bench.topology import Topology
from alm_jax.encoders.audio import audio_mae, htsat
from alm_jax.encoders.text import bert
from alm_jax.errors import UserError
from alm_jax.interop.clap_config import config_to_clap
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.nn.rematerialise import Remat
from alm_jax.ops.attention import AttentionImpl, attention_form
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh

OURS = "alm_jax"
PEERS = ("transformers", "transformers+compile")
DTYPES = ("float32", "bfloat16")
ATTENTION = get_args(AttentionImpl)
PASSES = ("forward", "backward")
"""Passes to measure; ``backward`` is the forward pass and the gradients of all parameters."""
FRAMES_OF_1024 = 1001
"""Frames of a clip of ten seconds with a hop of ten milliseconds, as an encoder with 1,024 positions takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """How a family of encoders is built and fed."""

    variants: Mapping[str, Any]
    """Configs by name."""
    build: Callable[..., Any]
    """Makes the Flax module from (config, dtype, remat)."""
    inputs: Callable[..., tuple[np.ndarray, ...]]
    """Makes the arguments of the module from (config, batch, tokens, generator)."""
    peer: Callable[..., tuple[Any, Callable[..., dict[str, Any]]]]
    """Makes from a config the model in PyTorch, and its keyword arguments from tensors of ``inputs``."""


def _log_mel(config: Any, batch: int, tokens: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (rng.standard_normal((batch, config.num_frames, config.num_mels), np.float32),)


def _clip_log_mel(config: Any, batch: int, tokens: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    frames = config.num_frames * FRAMES_OF_1024 // 1024
    return (rng.standard_normal((batch, frames, config.num_mels), np.float32),)


def _tokens(config: Any, batch: int, tokens: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    length = min(tokens, config.max_length)
    return rng.integers(5, config.vocab_size, (batch, length), np.int32), np.ones((batch, length), bool)


def _htsat_peer(config: htsat.HtsatConfig) -> tuple[Any, Callable[..., dict[str, Any]]]:
    from transformers import ClapAudioConfig, ClapAudioModel

    # Front-end and text tower do not matter here: a short clip with the same bands fits any variant.
    frontend = TorchlibrosaSpec(num_mels=config.num_mels, clip=ClipSpec(clip_sec=1.0))
    towers = TwoTowersConfig(frontend=frontend, audio=config, text=bert.ROBERTA_BASE)
    clap = config_to_clap(towers, {"bos_token": 0, "eos_token": 2})["audio_config"]
    return ClapAudioModel(ClapAudioConfig.from_dict(clap)), lambda features: {
        "input_features": features[:, None]
    }


def _bert_peer(config: bert.BertConfig) -> tuple[Any, Callable[..., dict[str, Any]]]:
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    kinds = {"roberta": (RobertaConfig, RobertaModel), "bert": (BertConfig, BertModel)}
    make_config, make_model = kinds[config.positions]
    peer = make_config(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        max_position_embeddings=config.max_positions,
        type_vocab_size=config.num_token_types,
        layer_norm_eps=config.layer_norm_eps,
        pad_token_id=config.pad_id,
    )
    return make_model(peer), lambda ids, mask: {"input_ids": ids.long(), "attention_mask": mask.long()}


def _mae_peer(config: audio_mae.AudioMaeConfig) -> tuple[Any, Callable[..., dict[str, Any]]]:
    from transformers import ViTConfig, ViTModel

    peer = ViTConfig(
        image_size=(config.num_frames, config.num_mels),
        patch_size=config.patch_size,
        num_channels=1,
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        layer_norm_eps=config.layer_norm_eps,
    )
    return ViTModel(peer, add_pooling_layer=False), lambda features: {"pixel_values": features[:, None]}


ENCODERS: dict[str, Encoder] = {
    "htsat": Encoder(variants=htsat.VARIANTS, build=htsat.Htsat, inputs=_clip_log_mel, peer=_htsat_peer),
    "bert": Encoder(variants=bert.VARIANTS, build=bert.Bert, inputs=_tokens, peer=_bert_peer),
    "audio_mae": Encoder(
        variants=audio_mae.VARIANTS, build=audio_mae.AudioMae, inputs=_log_mel, peer=_mae_peer
    ),
}
"""Families by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderCase:
    """One encoder at one size."""

    name: str
    """Name: ``family/variant``."""
    batch: int
    """Batch size: clips or captions."""
    tokens: int = 77
    """Tokens of a caption."""
    dtype: str = "float32"
    """Dtype of the matrix products."""
    direction: str = "forward"
    """Pass: one of ``PASSES``."""
    remat: Remat = "none"
    """Rematerialisation: what the backward pass computes again."""
    attention: str = "auto"
    """Implementation of attention, where the encoder leaves it open (all do)."""

    @property
    def encoder(self) -> Encoder:
        """The encoder's family."""
        return ENCODERS[self.name.partition("/")[0]]

    @property
    def config(self) -> Any:
        """The encoder's config."""
        return self.encoder.variants[self.name.partition("/")[2]]

    def inputs(self, batch: int | None = None) -> tuple[np.ndarray, ...]:
        """Makes random arguments of the module from a seed."""
        return self.encoder.inputs(self.config, batch or self.batch, self.tokens, np.random.default_rng(0))


def names() -> list[str]:
    """Returns every existing ``family/variant``."""
    return [f"{family}/{variant}" for family, encoder in ENCODERS.items() for variant in encoder.variants]


def check(case: EncoderCase) -> None:
    """Raises UserError where the case names something unknown."""
    if case.name not in names():
        raise UserError(f"there is no encoder {case.name!r}: known are {', '.join(names())}")
    if case.dtype not in DTYPES:
        raise UserError(f"--dtype is {case.dtype!r}, expected one of {', '.join(DTYPES)}")
    if case.attention not in ATTENTION:
        raise UserError(f"--attention is {case.attention!r}, expected one of {', '.join(ATTENTION)}")
    if case.direction not in PASSES:
        raise UserError(f"--pass is {case.direction!r}, expected one of {', '.join(PASSES)}")


def jax_function(case: EncoderCase) -> tuple[Callable[..., Any], Callable[[jax.Array], Any]]:
    """Returns the function (variables, *inputs) -> outputs of the pass, and the function key -> variables."""
    module = case.encoder.build(case.config, jnp.dtype(case.dtype), remat=case.remat)
    inputs = case.inputs(batch=1)

    def init(key: jax.Array) -> Any:
        return meta.unbox(module.init(key, *map(jnp.asarray, inputs)))

    def forward(variables: Any, *inputs: jax.Array) -> jax.Array:
        return module.apply(variables, *inputs)

    def loss(params: Any, others: Any, *inputs: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(forward({**others, "params": params}, *inputs).astype(jnp.float32)))

    def backward(variables: Any, *inputs: jax.Array) -> Any:
        others = {name: value for name, value in variables.items() if name != "params"}
        return jax.value_and_grad(loss)(variables["params"], others, *inputs)

    return (forward if case.direction == "forward" else backward), init


def trace(case: EncoderCase, mesh: Mesh) -> tuple[Any, Any]:
    """Traces the pass with the batch cut over ``mesh``; returns it with the shapes of the variables."""
    function, init = jax_function(case)
    variables = jax.eval_shape(init, jax.random.key(0))
    inputs = [jax.ShapeDtypeStruct((case.batch, *x.shape[1:]), x.dtype) for x in case.inputs(batch=1)]
    placed = (sharding.replicated(mesh), *[sharding.batch_sharding(mesh)] * len(inputs))
    with jax.set_mesh(mesh), attention_form(cast(AttentionImpl, case.attention)):
        return jax.jit(function, in_shardings=placed).trace(variables, *inputs), variables


def describe(case: EncoderCase, impl: str, num_devices: int, platform: str, topology: str | None) -> Row:
    """Makes a row without measurements."""
    return {
        "encoder": case.name,
        "impl": impl,
        "pass": case.direction,
        "batch": case.batch,
        "tokens": case.tokens if case.name.startswith("bert") else None,
        "dtype": case.dtype,
        "remat": case.remat,
        # A peer has its own.
        "attention": case.attention if impl == OURS else None,
        "devices": num_devices,
        "platform": platform,
        "topology": topology,
        "parameters": None,
        "examples_per_s": None,
        **UNMEASURED,
    }


def _counted(case: EncoderCase, mesh: Mesh) -> tuple[Any, Counts, Row]:
    """Returns the traced pass, its counts, and what is known before compiling; FLOPs are those without
    rematerialisation."""
    traced, variables = trace(case, mesh)
    counts = count_jaxpr(traced.jaxpr, num_devices=mesh.size)
    flops = counts.flops
    if case.remat != "none":
        plain = trace(dataclasses.replace(case, remat="none"), mesh)[0]
        flops = count_jaxpr(plain.jaxpr, num_devices=mesh.size).flops
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return traced, counts, {"parameters": parameters, "flops": flops}


def compile_row(case: EncoderCase, topology: Topology) -> Row:
    """Makes the row of an encoder compiled for absent devices."""
    check(case)
    mesh = topology.mesh()
    if case.batch % mesh.size:
        raise UserError(f"a batch of {case.batch} does not divide over {mesh.size} devices")
    row = describe(case, OURS, mesh.size, topology.platform, topology.name)
    try:
        traced, counts, figures = _counted(case, mesh)
    except NotImplementedError as error:
        # cuDNN has no kernel for some shapes: odd lengths in training, for one.
        return row | {"error": " ".join(str(error).split())}
    row |= figures
    return row | topology_figures(traced.lower(), topology, row["flops"], counts)


def run_rows(case: EncoderCase, peers: Sequence[str], *, repeats: int) -> Iterator[Row]:
    """Yields the rows of an encoder and its peers, timed in turns on one device.

    Raises UserError for an unknown encoder or peer.
    """
    check(case)
    unknown = [peer for peer in peers if peer not in PEERS]
    if unknown:
        raise UserError(f"there is no peer {unknown[0]!r} of an encoder: known are {', '.join(PEERS)}")
    platform = jax.default_backend()
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    traced, _, figures = _counted(case, mesh)
    compiled = traced.lower().compile()
    rows = {OURS: describe(case, OURS, 1, platform, None) | figures | memory_figures(compiled)}
    passes: dict[str, Callable[[], Any]] = {OURS: jax_pass(case, compiled, mesh)}
    for peer in peers:
        passes[peer], parameters = torch_pass(case, peer)
        rows[peer] = describe(case, peer, 1, platform, None) | {"parameters": parameters}
    timings = take_turns(passes, repeats=repeats, warmups=1)
    passes.clear()
    for name, timing in timings.items():
        rows[name] |= {"step_ms": step_ms(timing), "examples_per_s": case.batch / timing.median, "fits": True}
        if name != OURS:
            rows[name]["times_ours"] = times_ours(timings[OURS], timing)
        rows[name]["rss_bytes"] = resident_bytes(resident_pass, case=dataclasses.asdict(case), name=name)
    rows[OURS]["mfu"] = utilisation(rows[OURS]["flops"], timings[OURS])
    yield from rows.values()


def jax_pass(case: EncoderCase, compiled: Any, mesh: Mesh) -> Callable[[], None]:
    """Returns a function that runs the compiled pass once."""
    init = jax_function(case)[1]
    with jax.set_mesh(mesh):
        variables = jax.jit(init, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
    inputs = [jax.device_put(x, sharding.batch_sharding(mesh)) for x in case.inputs()]

    def run() -> None:
        jax.block_until_ready(compiled(variables, *inputs))

    return run


def torch_pass(case: EncoderCase, peer: str) -> tuple[Callable[[], None], int]:
    """Returns a function that runs the peer once, and its number of parameters."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model, arguments = case.encoder.peer(case.config)
    model.to(device).eval()
    function = torch.compile(model) if peer.endswith("+compile") else model
    inputs = arguments(*(torch.from_numpy(x).to(device) for x in case.inputs()))
    is_half = case.dtype == "bfloat16"

    def run() -> None:
        with (
            torch.set_grad_enabled(case.direction == "backward"),
            torch.autocast(device, dtype=torch.bfloat16, enabled=is_half),
        ):
            output = function(**inputs)
            output = output.last_hidden_state if output.get("pooler_output") is None else output.pooler_output
        if case.direction == "backward":
            output.float().square().mean().backward()
            model.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return run, sum(parameter.numel() for parameter in model.parameters())


def resident_pass(case: dict[str, Any], name: str) -> Callable[[], None]:
    """Prepares a pass for ``figures.resident_bytes``, parameters in place."""
    found = EncoderCase(**case)
    if name != OURS:
        run = torch_pass(found, name)[0]
    else:
        mesh = build_mesh(MeshConfig(), jax.devices()[:1])
        run = jax_pass(found, trace(found, mesh)[0].lower().compile(), mesh)
    # The first pass loads what later ones need.
    run()
    return run
