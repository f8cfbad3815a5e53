"""Names and shapes of `transformers.ClapModel` on disk, without and with feature fusion.

What has no parameter of ours:

- ``logit_scale_t``: the published code trains ``logit_scale_a`` alone and scales both directions by it.
  It is written equal to ``logit_scale_a``, and not read.
- ``num_batches_tracked``: never read by a BatchNorm with a fixed momentum; written as 0, not compared.
- index buffers, which follow from the config: written as transformers does, and checked when read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio import htsat, htsat_fusion
from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.audio.htsat_fusion import NUM_PARTS, HtsatFusionConfig
from alm_jax.encoders.text import bert
from alm_jax.interop.bert import bert_entries
from alm_jax.interop.clap_config import clap_to_config, config_to_clap
from alm_jax.interop.entry import Entry, Path, fused_qkv, linear, norm
from alm_jax.interop.format import Format
from alm_jax.interop.model_files import PREPROCESSOR
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.interop.safetensors_io import Arrays
from alm_jax.models.two_towers import TWO_TOWERS, TwoTowersConfig
from alm_jax.nn.feature_fusion import REDUCTION
from alm_jax.nn.swin import relative_position_index
from alm_jax.ops.frontends import ClapSpec, ClipSpec, FusionSpec, compute_features, compute_fusion
from alm_jax.types import PyTree

TOWER = "audio_model.audio_encoder"
_FUSION = f"{TOWER}.patch_embed.fusion_model"
# Index of each path's layers in their torch.nn.Sequential; the global one begins with the mean.
_FUSION_LAYERS = (("local_att", "local", 0), ("global_att", "global", 1))


def clap_entries(config: TwoTowersConfig) -> Iterator[Entry]:
    """Every float key on disk, except ``logit_scale_t``."""
    yield from htsat_entries(config.audio)
    yield from joint_entries(config)


def joint_entries(config: TwoTowersConfig) -> Iterator[Entry]:
    """Every float key on disk, except ``logit_scale_t`` and those of the audio tower."""
    yield from bert_entries(config.text, prefix="text_model.", path=("params", "text"))
    for tower, width in (("audio", config.audio.width), ("text", config.text.width)):
        path = ("params", f"{tower}_projection")
        yield from linear(f"{tower}_projection.linear1", (*path, "hidden"), width, config.embed_dim)
        yield from linear(f"{tower}_projection.linear2", (*path, "out"), config.embed_dim, config.embed_dim)
    yield Entry("logit_scale_a", ("params", "log_logit_scale"), ())


def htsat_entries(audio: HtsatConfig) -> Iterator[Entry]:
    """Every float key of the audio tower, which is ``audio`` among our two towers."""
    ours: Path = ("params", "audio")
    mels, embed, patch = audio.num_mels, audio.embed_dim, audio.patch_size
    yield from norm(f"{TOWER}.batch_norm", (*ours, "feature_norm"), mels)
    stats: Path = ("batch_stats", "audio", "feature_norm")
    yield Entry(f"{TOWER}.batch_norm.running_mean", (*stats, "mean"), (mels,))
    yield Entry(f"{TOWER}.batch_norm.running_var", (*stats, "var"), (mels,))
    theirs = f"{TOWER}.patch_embed.proj"
    yield Entry(
        f"{theirs}.weight", (*ours, "patch_embed", "kernel"), (embed, 1, patch, patch), layout="transposed"
    )
    yield Entry(f"{theirs}.bias", (*ours, "patch_embed", "bias"), (embed,))
    yield from norm(f"{TOWER}.patch_embed.norm", (*ours, "patch_norm"), embed)
    if isinstance(audio, HtsatFusionConfig):
        yield from _fusion_entries(audio, ours)
    for stage, (depth, heads) in enumerate(zip(audio.depths, audio.num_heads, strict=True)):
        width = embed * 2**stage
        for i in range(depth):
            theirs, block = f"{TOWER}.layers.{stage}.blocks.{i}", (*ours, f"stage{stage}_block{i}")
            attention, mlp_dim = f"{theirs}.attention", int(audio.mlp_ratio * width)
            query, key, value = (f"{attention}.self.{name}" for name in ("query", "key", "value"))
            yield from norm(f"{theirs}.layernorm_before", (*block, "attention_norm"), width)
            yield from fused_qkv(
                (query, key, value),
                (*block, "attention", "qkv"),
                width,
                width,
                use_bias=audio.use_qkv_bias,
            )
            yield from linear(f"{attention}.output.dense", (*block, "attention", "out"), width, width)
            yield Entry(
                f"{attention}.self.relative_position_bias_table",
                (*block, "relative_position_bias"),
                ((2 * audio.window_size - 1) ** 2, heads),
            )
            yield from norm(f"{theirs}.layernorm_after", (*block, "mlp_norm"), width)
            yield from linear(f"{theirs}.intermediate.dense", (*block, "mlp", "up"), width, mlp_dim)
            yield from linear(f"{theirs}.output.dense", (*block, "mlp", "down"), mlp_dim, width)
        if stage < len(audio.depths) - 1:
            theirs, merge = f"{TOWER}.layers.{stage}.downsample", (*ours, f"stage{stage}_merge")
            yield from norm(f"{theirs}.norm", (*merge, "norm"), 4 * width)
            yield from linear(
                f"{theirs}.reduction", (*merge, "reduction"), 4 * width, 2 * width, use_bias=False
            )
    yield from norm(f"{TOWER}.norm", (*ours, "norm"), audio.width)


def _fusion_entries(audio: HtsatFusionConfig, ours: Path) -> Iterator[Entry]:
    """Every float key of the feature fusion."""
    embed, patch, theirs = audio.embed_dim, audio.patch_size, f"{TOWER}.patch_embed.mel_conv2d"
    shape = (embed, 1, patch, NUM_PARTS * patch)
    yield Entry(f"{theirs}.weight", (*ours, "part_embed", "kernel"), shape, layout="transposed")
    yield Entry(f"{theirs}.bias", (*ours, "part_embed", "bias"), (embed,))
    for their_path, our_path, first in _FUSION_LAYERS:
        sizes = (("down", first, embed, embed // REDUCTION), ("up", first + 3, embed // REDUCTION, embed))
        for name, index, inputs, outputs in sizes:
            path = (*ours, "fusion", our_path)
            theirs = f"{_FUSION}.{their_path}.{index}"
            yield Entry(f"{theirs}.weight", (*path, name, "kernel"), (outputs, inputs, 1, 1), "transposed")
            yield Entry(f"{theirs}.bias", (*path, name, "bias"), (outputs,))
            theirs, path = f"{_FUSION}.{their_path}.{index + 1}", (*path, f"{name}_norm")
            yield from norm(theirs, path, outputs)
            yield Entry(f"{theirs}.running_mean", ("batch_stats", *path[1:], "mean"), (outputs,))
            yield Entry(f"{theirs}.running_var", ("batch_stats", *path[1:], "var"), (outputs,))


def clap_counters(config: TwoTowersConfig) -> frozenset[str]:
    """The key of every BatchNorm's count of batches."""
    norms = [f"{TOWER}.batch_norm"]
    if isinstance(config.audio, HtsatFusionConfig):
        for path, _, first in _FUSION_LAYERS:
            norms += [f"{_FUSION}.{path}.{first + 1}", f"{_FUSION}.{path}.{first + 4}"]
    return frozenset(f"{key}.num_batches_tracked" for key in norms)


def clap_buffers(config: TwoTowersConfig) -> Arrays:
    """The integer arrays that `save_pretrained` writes; versions of transformers differ in which."""
    buffers: Arrays = {key: np.zeros((), np.int64) for key in clap_counters(config)}
    index = relative_position_index(config.audio.window_size)
    for stage, depth in enumerate(config.audio.depths):
        for i in range(depth):
            theirs = f"{TOWER}.layers.{stage}.blocks.{i}.attention.self.relative_position_index"
            buffers[theirs] = index.astype(np.int64)
    positions = np.arange(config.text.max_positions, dtype=np.int64)[None, :]
    buffers["text_model.embeddings.position_ids"] = positions
    buffers["text_model.embeddings.token_type_ids"] = np.zeros_like(positions)
    return buffers


def _read_config(fields: Mapping[str, Any]) -> TwoTowersConfig:
    return clap_to_config(fields, fields.get(PREPROCESSOR, {}))


def _write_config(config: TwoTowersConfig) -> dict[str, Any]:
    """Special tokens are RoBERTa's; a folder with another tokenizer states its own."""
    return config_to_clap(config, {"bos_token": 0, "eos_token": 2})


CLAP = Format(
    name="clap",
    config_type=TwoTowersConfig,
    audio_towers=(HtsatConfig, HtsatFusionConfig),
    abstract=TWO_TOWERS.abstract,
    entries=clap_entries,
    buffers=clap_buffers,
    unread=clap_counters,
    copies=lambda _: {"logit_scale_t": "logit_scale_a"},
    architectures=("ClapModel",),
    read_config=_read_config,
    write_config=_write_config,
)
FORMATS = (CLAP,)

_NANO = TwoTowersConfig(
    frontend=ClapSpec(sample_rate_hz=16000, hop_samples=320, fmax_hz=8000.0, clip=ClipSpec(clip_sec=5.0)),
    audio=htsat.NANO,
    text=bert.NANO,
    embed_dim=64,
)
# Clips of 2 s, so that recordings of 5 s are longer.
_FUSION_SPEC = FusionSpec(sample_rate_hz=16000, hop_samples=320, fmax_hz=8000.0, clip=ClipSpec(clip_sec=2.0))
_NANO_FUSION = TwoTowersConfig(frontend=_FUSION_SPEC, audio=htsat_fusion.NANO, text=bert.NANO, embed_dim=64)


def _build(config: TwoTowersConfig) -> Any:
    import transformers

    fields = _write_config(config) | {"attn_implementation": "eager"}
    model = transformers.ClapModel(transformers.ClapConfig(**fields)).eval()
    # The text tower's eager attention takes its softmax in float32 whatever the model is in; the class does not let
    # one choose another, though its layers have it.
    model.text_model.config._attn_implementation = "sdpa"
    return model


def _hear(config: TwoTowersConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
    own = {kind: tree["audio"] for kind, tree in variables.items()}
    return family.apply(htsat.FAMILY, config.audio, own, given["features"], dtype=dtype)


def _hear_fused(config: TwoTowersConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
    own = {kind: tree["audio"] for kind, tree in variables.items()}
    inputs = given["features"], given["longer"]
    return family.apply(htsat_fusion.FAMILY, config.audio, own, *inputs, dtype=dtype)


def _read(config: TwoTowersConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
    own = {"params": variables["params"]["text"]}
    return family.apply(bert.FAMILY, config.text, own, given["ids"], given["mask"], dtype=dtype)


def _features(config: TwoTowersConfig, real: RealInputs) -> dict[str, np.ndarray]:
    spec = config.frontend
    waveforms = real.waveforms(spec.sample_rate_hz, spec.clip.clip_sec)
    return {"features": np.asarray(compute_features(jnp.asarray(waveforms), spec))}


def _fused_features(_: TwoTowersConfig, real: RealInputs) -> dict[str, np.ndarray]:
    """A recording longer than a clip and one that is not: the second is cut."""
    waveforms = jnp.asarray(real.waveforms(_FUSION_SPEC.sample_rate_hz, 5.0))
    num_samples = jnp.asarray([waveforms.shape[1], _FUSION_SPEC.sample_rate_hz])
    features, longer = compute_fusion(waveforms, num_samples, _FUSION_SPEC)
    return {"features": np.asarray(features), "longer": np.array(longer)}


def _captions(config: TwoTowersConfig, real: RealInputs) -> dict[str, np.ndarray]:
    ids, mask = real.token_ids(config.text.vocab_size, 48)
    return {"ids": np.where(mask, ids, config.text.pad_id), "mask": mask}


PARITY = (
    Parity(
        name="htsat of clap, nano",
        layout=CLAP,
        config=_NANO,
        oracle=_build,
        oracle_name="transformers.ClapModel",
        inputs=_features,
        ours=_hear,
        theirs=lambda module, given: module.audio_model(given["features"][:, None]).pooler_output,
    ),
    Parity(
        name="htsat of clap with feature fusion, nano",
        layout=CLAP,
        config=_NANO_FUSION,
        oracle=_build,
        oracle_name="transformers.ClapModel",
        inputs=_fused_features,
        ours=_hear_fused,
        theirs=lambda module, given: (
            module.audio_model(given["features"], is_longer=given["longer"][:, None]).pooler_output
        ),
    ),
    Parity(
        name="roberta of clap, nano",
        layout=CLAP,
        config=_NANO,
        oracle=_build,
        oracle_name="transformers.ClapModel",
        inputs=_captions,
        ours=_read,
        theirs=lambda module, given: (
            module.text_model(given["ids"].long(), attention_mask=given["mask"].long()).pooler_output
        ),
    ),
)
