"""Names and shapes of `transformers.ClapModel` on disk, without feature fusion.

What has no parameter of ours:

- ``logit_scale_t``: the published code trains ``logit_scale_a`` alone and scales both directions by it.
  It is written equal to ``logit_scale_a``, and not read.
- ``num_batches_tracked``: never read by a BatchNorm with a fixed momentum; written as 0, not compared.
- index buffers, which follow from the config: written as transformers does, and checked when read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.interop.bert import bert_entries
from alm_jax.interop.clap_config import clap_to_config, config_to_clap
from alm_jax.interop.entry import Entry, Path, fused_qkv, linear, norm
from alm_jax.interop.format import PREPROCESSOR, Format
from alm_jax.interop.safetensors_io import Arrays
from alm_jax.models.two_towers import TwoTowersConfig, abstract_two_towers
from alm_jax.nn.swin import relative_position_index

TOWER = "audio_model.audio_encoder"
TRACKED = f"{TOWER}.batch_norm.num_batches_tracked"


def clap_entries(config: TwoTowersConfig) -> Iterator[Entry]:
    """Every float key on disk but ``logit_scale_t``."""
    yield from htsat_entries(config.audio)
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


def clap_buffers(config: TwoTowersConfig) -> Arrays:
    """The integer arrays that `save_pretrained` writes; versions of transformers differ in which."""
    buffers = {TRACKED: np.zeros((), np.int64)}
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
    """Special tokens are RoBERTa's; a folder with another tokenizer says them itself."""
    return config_to_clap(config, {"bos_token": 0, "eos_token": 2})


CLAP = Format(
    name="clap",
    config_type=TwoTowersConfig,
    abstract=abstract_two_towers,
    entries=clap_entries,
    buffers=clap_buffers,
    unread=lambda _: frozenset({TRACKED}),
    copies=lambda _: {"logit_scale_t": "logit_scale_a"},
    architectures=("ClapModel",),
    read_config=_read_config,
    write_config=_write_config,
)
FORMATS = (CLAP,)
