"""Names and shapes of `transformers.ClapModel` on disk, both ways.

Every key of the file is accounted for: each parameter is a part of one of our arrays (a layer of a stack,
the query of a fused kernel), laid out as PyTorch lays it out. What has no parameter of ours:

- ``logit_scale_t``: the published code trains ``logit_scale_a`` alone and scales both directions by it.
  It is written equal to ``logit_scale_a``, and not read.
- ``num_batches_tracked``: never read by a BatchNorm with a fixed momentum; written as 0.
- index buffers, which follow from the config: written as transformers does, and checked when read.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.text.bert import BertConfig
from alm_jax.errors import UserError
from alm_jax.interop.safetensors_io import Arrays
from alm_jax.models.two_towers import TwoTowersConfig, Variables, abstract_two_towers
from alm_jax.nn.swin import relative_position_index

Path: TypeAlias = tuple[str, ...]
Index: TypeAlias = tuple[int | slice, ...]
_TOWER = "audio_model.audio_encoder"
_TRACKED = f"{_TOWER}.batch_norm.num_batches_tracked"
_ALL = slice(None)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One float key on disk: the part of which of our arrays, in which layout."""

    key: str
    path: Path
    shape: tuple[int, ...]
    """On disk."""
    layout: Literal["same", "transposed"] = "same"
    """transposed: ours is [inputs..., outputs...], theirs [outputs, inputs...]."""
    index: Index = ()
    """Part of our array."""

    def to_disk(self, part: np.ndarray) -> np.ndarray:
        if self.layout == "transposed":
            part = part.reshape(math.prod(self.shape[1:]), self.shape[0]).T
        return part.reshape(self.shape)

    def from_disk(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if self.layout == "transposed":
            array = array.reshape(self.shape[0], -1).T
        return array.reshape(shape)


def variables_to_clap(config: TwoTowersConfig, variables: Variables) -> Arrays:
    """Our variables as the arrays of a ``ClapModel`` safetensors file, float32 and int64."""
    arrays = _clap_buffers(config)
    for entry in _clap_entries(config):
        array = np.asarray(_get(variables, entry.path), np.float32)
        arrays[entry.key] = entry.to_disk(array[*entry.index, ...])
    arrays["logit_scale_t"] = arrays["logit_scale_a"]
    return arrays


def clap_to_variables(config: TwoTowersConfig, arrays: Mapping[str, np.ndarray]) -> Variables:
    """The arrays of a ``ClapModel`` safetensors file as our variables.

    Index buffers may be absent: versions of transformers differ in which they save.

    Raises:
      UserError: keys are missing, unknown or misshapen, or a buffer contradicts the config; lists them.
    """
    entries, buffers = list(_clap_entries(config)), _clap_buffers(config)
    shapes = {entry.key: entry.shape for entry in entries} | {"logit_scale_t": ()}
    problems = [f"missing {key}" for key in sorted(shapes.keys() - arrays.keys())]
    problems += [f"unknown {key}" for key in sorted(arrays.keys() - shapes.keys() - buffers.keys())]
    for key in sorted(shapes.keys() & arrays.keys()):
        if arrays[key].shape != shapes[key]:
            problems.append(f"{key} has shape {arrays[key].shape}, the config says {shapes[key]}")
    for key in sorted(buffers.keys() & arrays.keys() - {_TRACKED}):
        if not np.array_equal(arrays[key], buffers[key]):
            problems.append(f"{key} is not what the config implies")
    if problems:
        listed = "\n  ".join(problems[:20] + ["..."] * (len(problems) > 20))
        raise UserError(
            f"not the weights of a ClapModel with this config ({len(problems)} problems):\n  {listed}\n"
            "check that config.json and model.safetensors belong together"
        )

    variables = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract_two_towers(config))
    for entry in entries:
        part = _get(variables, entry.path)[*entry.index, ...]
        part[...] = entry.from_disk(arrays[entry.key], part.shape)
    return variables


def _get(tree: Mapping[str, Any], path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _clap_entries(config: TwoTowersConfig) -> Iterator[_Entry]:
    """Every float key on disk but ``logit_scale_t``."""
    yield from _audio_entries(config.audio)
    yield from _text_entries(config.text)
    for tower, width in (("audio", config.audio.width), ("text", config.text.width)):
        path = ("params", f"{tower}_projection")
        yield from _linear(f"{tower}_projection.linear1", (*path, "hidden"), width, config.embed_dim)
        yield from _linear(f"{tower}_projection.linear2", (*path, "out"), config.embed_dim, config.embed_dim)
    yield _Entry("logit_scale_a", ("params", "log_logit_scale"), ())


def _audio_entries(audio: HtsatConfig) -> Iterator[_Entry]:
    ours: Path = ("params", "audio")
    mels, embed, patch = audio.num_mels, audio.embed_dim, audio.patch_size
    yield from _norm(f"{_TOWER}.batch_norm", (*ours, "feature_norm"), mels)
    stats: Path = ("batch_stats", "audio", "feature_norm")
    yield _Entry(f"{_TOWER}.batch_norm.running_mean", (*stats, "mean"), (mels,))
    yield _Entry(f"{_TOWER}.batch_norm.running_var", (*stats, "var"), (mels,))
    theirs = f"{_TOWER}.patch_embed.proj"
    yield _Entry(
        f"{theirs}.weight", (*ours, "patch_embed", "kernel"), (embed, 1, patch, patch), layout="transposed"
    )
    yield _Entry(f"{theirs}.bias", (*ours, "patch_embed", "bias"), (embed,))
    yield from _norm(f"{_TOWER}.patch_embed.norm", (*ours, "patch_norm"), embed)
    for stage, (depth, heads) in enumerate(zip(audio.depths, audio.num_heads, strict=True)):
        width = embed * 2**stage
        for i in range(depth):
            theirs, block = f"{_TOWER}.layers.{stage}.blocks.{i}", (*ours, f"stage{stage}_block{i}")
            yield from _norm(f"{theirs}.layernorm_before", (*block, "attention_norm"), width)
            yield from _attention(f"{theirs}.attention", (*block, "attention"), width, audio.use_qkv_bias)
            yield _Entry(
                f"{theirs}.attention.self.relative_position_bias_table",
                (*block, "relative_position_bias"),
                ((2 * audio.window_size - 1) ** 2, heads),
            )
            yield from _norm(f"{theirs}.layernorm_after", (*block, "mlp_norm"), width)
            yield from _mlp(theirs, (*block, "mlp"), width, int(audio.mlp_ratio * width))
        if stage < len(audio.depths) - 1:
            theirs, merge = f"{_TOWER}.layers.{stage}.downsample", (*ours, f"stage{stage}_merge")
            yield from _norm(f"{theirs}.norm", (*merge, "norm"), 4 * width)
            yield from _linear(
                f"{theirs}.reduction", (*merge, "reduction"), 4 * width, 2 * width, use_bias=False
            )
    yield from _norm(f"{_TOWER}.norm", (*ours, "norm"), audio.width)


def _text_entries(text: BertConfig) -> Iterator[_Entry]:
    ours: Path = ("params", "text")
    for table, name, rows in (
        ("word_embeddings", "token_embed", text.vocab_size),
        ("position_embeddings", "position_embed", text.max_positions),
        ("token_type_embeddings", "type_embed", text.num_token_types),
    ):
        yield _Entry(f"text_model.embeddings.{table}.weight", (*ours, name, "embedding"), (rows, text.width))
    yield from _norm("text_model.embeddings.LayerNorm", (*ours, "embed_norm"), text.width)
    for i in range(text.num_layers):
        theirs, block = f"text_model.encoder.layer.{i}", (*ours, "blocks")
        yield from _attention(f"{theirs}.attention", (*block, "attention"), text.width, True, (i,))
        yield from _norm(f"{theirs}.attention.output.LayerNorm", (*block, "attention_norm"), text.width, (i,))
        yield from _mlp(theirs, (*block, "mlp"), text.width, text.mlp_dim, (i,))
        yield from _norm(f"{theirs}.output.LayerNorm", (*block, "mlp_norm"), text.width, (i,))
    yield from _linear("text_model.pooler.dense", (*ours, "pooler"), text.width, text.width)


def _linear(
    key: str, path: Path, inputs: int, outputs: int, index: Index = (), *, use_bias: bool = True
) -> Iterator[_Entry]:
    yield _Entry(f"{key}.weight", (*path, "kernel"), (outputs, inputs), "transposed", index)
    if use_bias:
        yield _Entry(f"{key}.bias", (*path, "bias"), (outputs,), index=index)


def _norm(key: str, path: Path, width: int, index: Index = ()) -> Iterator[_Entry]:
    yield _Entry(f"{key}.weight", (*path, "scale"), (width,), index=index)
    yield _Entry(f"{key}.bias", (*path, "bias"), (width,), index=index)


def _attention(key: str, path: Path, width: int, use_qkv_bias: bool, index: Index = ()) -> Iterator[_Entry]:
    for slot, name in enumerate(("query", "key", "value")):
        square, qkv = (width, width), (*path, "qkv")
        yield _Entry(
            f"{key}.self.{name}.weight", (*qkv, "kernel"), square, "transposed", (*index, _ALL, slot)
        )
        if use_qkv_bias:
            yield _Entry(f"{key}.self.{name}.bias", (*qkv, "bias"), (width,), index=(*index, slot))
    yield from _linear(f"{key}.output.dense", (*path, "out"), width, width, index)


def _mlp(key: str, path: Path, width: int, mlp_dim: int, index: Index = ()) -> Iterator[_Entry]:
    yield from _linear(f"{key}.intermediate.dense", (*path, "up"), width, mlp_dim, index)
    yield from _linear(f"{key}.output.dense", (*path, "down"), mlp_dim, width, index)


def _clap_buffers(config: TwoTowersConfig) -> Arrays:
    """The integer arrays that `save_pretrained` writes."""
    buffers = {_TRACKED: np.zeros((), np.int64)}
    index = relative_position_index(config.audio.window_size)
    for stage, depth in enumerate(config.audio.depths):
        for i in range(depth):
            theirs = f"{_TOWER}.layers.{stage}.blocks.{i}.attention.self.relative_position_index"
            buffers[theirs] = index.astype(np.int64)
    positions = np.arange(config.text.max_positions, dtype=np.int64)[None, :]
    buffers["text_model.embeddings.position_ids"] = positions
    buffers["text_model.embeddings.token_type_ids"] = np.zeros_like(positions)
    return buffers
