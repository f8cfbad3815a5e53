"""wav2vec 2.0 and HuBERT as `transformers.Wav2Vec2Model` and `HubertModel` save them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.wav2vec2 import FAMILY, NANO, Wav2Vec2Config, compute_state_mask
from alm_jax.interop.entry import WEIGHT_NORM_FORMER, Entry, fused_qkv, linear, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs
from alm_jax.types import PyTree


def _entries(config: Wav2Vec2Config, *, prefix: str = "") -> Iterator[Entry]:
    """Every key of a Wav2Vec2Model or HubertModel; ``prefix`` is their place inside a larger model."""
    width, root = config.width, ("params",)
    inputs = 1
    for i, (channels, window) in enumerate(zip(config.conv_channels, config.conv_windows, strict=True)):
        theirs = f"{prefix}feature_extractor.conv_layers.{i}"
        yield Entry(
            f"{theirs}.conv.weight", (*root, f"conv_{i}", "kernel"), (channels, inputs, window), "conv"
        )
        if config.conv_bias:
            yield Entry(f"{theirs}.conv.bias", (*root, f"conv_{i}", "bias"), (channels,))
        if i == 0 or config.conv_norm == "layer":
            yield from norm(f"{theirs}.layer_norm", (*root, f"conv_norm_{i}"), channels)
        inputs = channels
    yield from norm(f"{prefix}feature_projection.layer_norm", (*root, "features_norm"), inputs)
    yield from linear(f"{prefix}feature_projection.projection", (*root, "projection"), inputs, width)
    if config.has_mask_embed:
        yield Entry(f"{prefix}masked_spec_embed", (*root, "mask_embed"), (width,))
    theirs, ours, window = (
        f"{prefix}encoder.pos_conv_embed.conv",
        (*root, "position_conv"),
        config.position_window,
    )
    yield Entry(f"{theirs}.parametrizations.weight.original0", (*ours, "gain"), (1, 1, window))
    shape = (width, width // config.position_groups, window)
    yield Entry(f"{theirs}.parametrizations.weight.original1", (*ours, "kernel"), shape, "conv")
    yield Entry(f"{theirs}.bias", (*ours, "bias"), (width,))
    yield from norm(f"{prefix}encoder.layer_norm", (*root, "norm"), width)
    blocks = (*root, "blocks")
    for i in range(config.num_layers):
        theirs = f"{prefix}encoder.layers.{i}"
        query, key, value = (f"{theirs}.attention.{name}_proj" for name in "qkv")
        yield from fused_qkv((query, key, value), (*blocks, "attention", "qkv"), width, width, (i,))
        yield from linear(f"{theirs}.attention.out_proj", (*blocks, "attention", "out"), width, width, (i,))
        yield from norm(f"{theirs}.layer_norm", (*blocks, "attention_norm"), width, (i,))
        up, down = (f"{theirs}.feed_forward.{name}_dense" for name in ("intermediate", "output"))
        yield from linear(up, (*blocks, "mlp", "up"), width, config.mlp_dim, (i,))
        yield from linear(down, (*blocks, "mlp", "down"), config.mlp_dim, width, (i,))
        yield from norm(f"{theirs}.final_layer_norm", (*blocks, "mlp_norm"), width, (i,))


_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
}
"""Fields of config.json that must have the one value that we compute."""


def read_wav2vec2_config(fields: Mapping[str, Any]) -> Wav2Vec2Config:
    """config.json of a Wav2Vec2Model or HubertModel, absent fields at transformers' defaults.

    The result treats padding as the released code does (``compat``).
    """
    fields = Fields.of(fields)
    fields.only(_FIXED, "our wav2vec 2.0")
    width = fields.size("hidden_size", 768)
    channels = fields.sizes("conv_dim", (512,) * 7)
    masks = [fields.number("mask_time_prob", 0.05) > 0, fields.number("mask_feature_prob", 0.0) > 0]
    return Wav2Vec2Config(
        conv_channels=channels,
        conv_windows=fields.sizes("conv_kernel", (10, 3, 3, 3, 3, 2, 2), length=len(channels)),
        conv_strides=fields.sizes("conv_stride", (5, 2, 2, 2, 2, 2, 2), length=len(channels)),
        conv_bias=fields.flag("conv_bias", False),
        conv_norm=fields.word("feat_extract_norm", "group", among=("group", "layer")),  # type: ignore[arg-type]
        width=width,
        num_layers=fields.size("num_hidden_layers", 12),
        num_heads=fields.divisor("num_attention_heads", 12, of=width),
        mlp_dim=fields.size("intermediate_size", 3072),
        pre_norm=fields.flag("do_stable_layer_norm", False),
        position_window=fields.size("num_conv_pos_embeddings", 128),
        position_groups=fields.divisor("num_conv_pos_embedding_groups", 16, of=width),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5, above=0.0),
        has_mask_embed=any(masks),
        compat=True,
    )


def _write_config(model_type: str, config: Wav2Vec2Config) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "conv_dim": list(config.conv_channels),
        "conv_kernel": list(config.conv_windows),
        "conv_stride": list(config.conv_strides),
        "conv_bias": config.conv_bias,
        "num_feat_extract_layers": len(config.conv_channels),
        "feat_extract_norm": config.conv_norm,
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "do_stable_layer_norm": config.pre_norm,
        "num_conv_pos_embeddings": config.position_window,
        "num_conv_pos_embedding_groups": config.position_groups,
        "layer_norm_eps": config.layer_norm_eps,
        "mask_time_prob": 0.05 if config.has_mask_embed else 0.0,
        "mask_feature_prob": 0.0,
    }


def _format(name: str, architecture: str) -> Format:
    return Format(
        name=name,
        config_type=Wav2Vec2Config,
        abstract=functools.partial(family.abstract, FAMILY),
        entries=_entries,
        former=WEIGHT_NORM_FORMER,
        architectures=(architecture,),
        read_config=read_wav2vec2_config,
        write_config=functools.partial(_write_config, name),
    )


def _inside(layout: Format, architectures: tuple[str, ...]) -> Format:
    """Makes the same encoder inside a model with heads, which are ignored."""
    prefix = f"{layout.name}."
    return dataclasses.replace(
        layout,
        name=f"{layout.name}-tower",
        entries=functools.partial(_entries, prefix=prefix),
        architectures=architectures,
        ignored=(rf"(?!{prefix}).*",),
    )


WAV2VEC2 = _format("wav2vec2", "Wav2Vec2Model")
HUBERT = _format("hubert", "HubertModel")
WAV2VEC2_TOWER = _inside(WAV2VEC2, ("Wav2Vec2ForPreTraining", "Wav2Vec2ForCTC"))
HUBERT_TOWER = _inside(HUBERT, ("HubertForCTC",))
FORMATS = (WAV2VEC2, HUBERT, WAV2VEC2_TOWER, HUBERT_TOWER)


def _parity(name: str, layout: Format, config: Wav2Vec2Config, layer: int | None = None) -> Parity:
    def build(config: Wav2Vec2Config) -> Any:
        import transformers

        assert layout.write_config is not None
        fields = layout.write_config(config) | {"attn_implementation": "eager"}
        model_type = fields.pop("model_type")
        return getattr(transformers, layout.architectures[0])(
            transformers.AutoConfig.for_model(model_type, **fields)
        ).eval()

    def inputs(config: Wav2Vec2Config, real: RealInputs) -> dict[str, np.ndarray]:
        waveforms = real.waveforms(16000, 0.2)
        num_samples = waveforms.shape[1]
        mask = np.arange(num_samples)[None, :] < np.asarray([[num_samples], [num_samples * 3 // 4]])
        return {"waveforms": np.where(mask, waveforms, 0).astype(np.float32), "mask": mask}

    def ours(config: Wav2Vec2Config, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
        mask = given["mask"]
        states = family.apply(
            FAMILY, config, variables, given["waveforms"], mask=mask, layer=layer, dtype=dtype
        )
        return jnp.where(compute_state_mask(config, mask)[:, :, None], states, 0)

    def theirs(module: Any, given: dict[str, Any]) -> Any:
        mask = given["mask"].long()
        read = module(given["waveforms"], attention_mask=mask, output_hidden_states=True)
        states = read.last_hidden_state if layer is None else read.hidden_states[layer]
        is_real = module._get_feature_vector_attention_mask(states.shape[1], mask)
        return states * is_real[:, :, None]

    return Parity(
        name=name,
        layout=layout,
        config=config,
        oracle=build,
        oracle_name=f"transformers.{layout.architectures[0]}",
        inputs=inputs,
        ours=ours,
        theirs=theirs,
    )


_COMPAT = dataclasses.replace(NANO, compat=True)
_LARGE = dataclasses.replace(_COMPAT, conv_norm="layer", conv_bias=True, pre_norm=True, has_mask_embed=True)
PARITY = (
    _parity("wav2vec2, nano", WAV2VEC2, _COMPAT),
    _parity("hubert, nano like large", HUBERT, _LARGE),
    _parity("hubert layer 1, nano like large", HUBERT, _LARGE, layer=1),
)
