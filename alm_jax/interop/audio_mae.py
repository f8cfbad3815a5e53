"""AudioMAE's released archives: encoder and decoder of pre-training, and the encoder alone, as fine-tuning keeps it."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.audio_mae import FAMILY, NANO, AudioMaeConfig, compute_positions
from alm_jax.errors import UserError
from alm_jax.interop.entry import Entry, Path, linear, norm
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs, load_oracle
from alm_jax.interop.safetensors_io import Arrays
from alm_jax.interop.shapes import published_heads
from alm_jax.models.masked_autoencoder import (
    MASKED_AUTOENCODER,
    MaskedAutoencoderConfig,
    reconstruct,
)
from alm_jax.models.patch_decoders import GlobalDecoderConfig, LocalDecoderConfig
from alm_jax.ops.frontends import AstSpec, compute_features, published_clip
from alm_jax.ops.patch_masking import keep_lowest
from alm_jax.ops.positions import sincos_grid


def _block(key: str, path: Path, width: int, mlp_dim: int, index: tuple[int, ...]) -> Iterator[Entry]:
    yield from norm(f"{key}.norm1", (*path, "attention_norm"), width, index)
    yield from linear(f"{key}.attn.qkv", (*path, "attention", "qkv"), width, 3 * width, index)
    yield from linear(f"{key}.attn.proj", (*path, "attention", "out"), width, width, index)
    yield from norm(f"{key}.norm2", (*path, "mlp_norm"), width, index)
    yield from linear(f"{key}.mlp.fc1", (*path, "mlp", "up"), width, mlp_dim, index)
    yield from linear(f"{key}.mlp.fc2", (*path, "mlp", "down"), mlp_dim, width, index)


def _encoder_entries(config: AudioMaeConfig, root: Path, last_norm: str) -> Iterator[Entry]:
    width, size = config.width, config.patch_size
    kernel = (width, 1, size, size)
    # Ours is one axis of pixels: the elements are in the same order once the width has gone last.
    yield Entry("patch_embed.proj.weight", (*root, "patch_embed", "kernel"), kernel, "transposed")
    yield Entry("patch_embed.proj.bias", (*root, "patch_embed", "bias"), (width,))
    yield Entry("cls_token", (*root, "cls_token"), (1, 1, width))
    for i in range(config.num_layers):
        yield from _block(f"blocks.{i}", (*root, "blocks"), width, config.mlp_dim, (i,))
    yield from norm(last_norm, (*root, "norm"), width)


def _entries(config: MaskedAutoencoderConfig) -> Iterator[Entry]:
    """Every key of an archive of pre-training."""
    yield from _encoder_entries(config.encoder, ("params", "encoder"), "norm")
    decoder, root = config.decoder, ("params", "decoder")
    width = decoder.width
    yield from linear("decoder_embed", (*root, "embed"), config.encoder.width, width)
    yield Entry("mask_token", (*root, "mask_token"), (1, 1, width))
    for i in range(decoder.num_layers):
        key, index = f"decoder_blocks.{i}", (i,)
        path: Path = (*root, "blocks")
        if isinstance(decoder, LocalDecoderConfig):
            path, index = (*path, "shifted" if i % 2 else "plain"), (i // 2,)
            attention, bias_dim = (*path, "attention"), decoder.bias_dim
            yield Entry(f"{key}.attn.tau", (*attention, "tau"), (decoder.num_heads,), index=index)
            yield from linear(f"{key}.attn.meta_mlp.fc1", (*attention, "bias_up"), 2, bias_dim, index)
            yield from linear(
                f"{key}.attn.meta_mlp.fc2", (*attention, "bias_down"), bias_dim, decoder.num_heads, index
            )
        yield from _block(key, path, width, decoder.mlp_dim, index)
    yield from norm("decoder_norm", (*root, "norm"), width)
    yield from linear("decoder_pred", (*root, "head"), width, config.encoder.patch_size**2)


def _with_class_token(positions: np.ndarray) -> np.ndarray:
    return np.pad(positions, ((1, 0), (0, 0)))[None]


def _buffers(config: MaskedAutoencoderConfig) -> Arrays:
    """The fixed positions, stored as parameters that do not train; those of the class token are 0."""
    rows, columns = reversed(config.grid) if config.encoder.compat else config.grid
    return {
        "pos_embed": _with_class_token(compute_positions(config.encoder)),
        "decoder_pos_embed": _with_class_token(sincos_grid(rows, columns, config.decoder.width)),
    }


def _infer_encoder(shapes: Mapping[str, tuple[int, ...]]) -> AudioMaeConfig:
    """The encoder of an archive from its shapes: 128 mel bins, heads of 64, positions as released."""
    width, _, size, _ = shapes["patch_embed.proj.weight"]
    num_patches, columns = shapes["pos_embed"][1] - 1, 128 // size
    if num_patches % columns:
        raise UserError(
            f"{num_patches} patches are no grid of {columns} bands, 128 mel bins in patches of {size}: say the config"
        )
    return AudioMaeConfig(
        num_frames=num_patches // columns * size,
        patch_size=size,
        width=width,
        num_layers=_count(shapes, "blocks."),
        num_heads=published_heads(width),
        mlp_dim=shapes["blocks.0.mlp.fc1.weight"][0],
        compat=True,
    )


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    return 1 + max(int(key[len(prefix) :].split(".")[0]) for key in shapes if key.startswith(prefix))


def _frontend(encoder: AudioMaeConfig) -> AstSpec:
    """The published front-end for clips of the encoder's longest input."""
    return AstSpec(
        clip=published_clip(encoder.num_frames),
        num_mels=encoder.num_mels,
        padded_frames=encoder.num_frames,
    )


def infer_masked_autoencoder(shapes: Mapping[str, tuple[int, ...]]) -> MaskedAutoencoderConfig:
    """The config of an archive of pre-training; the local decoder's heads are counted, the global decoder has 16."""
    encoder = _infer_encoder(shapes)
    width, num_layers = shapes["decoder_embed.weight"][0], _count(shapes, "decoder_blocks.")
    mlp_dim = shapes["decoder_blocks.0.mlp.fc1.weight"][0]
    decoder: GlobalDecoderConfig | LocalDecoderConfig
    if "decoder_blocks.0.attn.tau" in shapes:
        decoder = LocalDecoderConfig(
            width=width,
            num_layers=num_layers,
            num_heads=shapes["decoder_blocks.0.attn.tau"][0],
            mlp_dim=mlp_dim,
            bias_dim=shapes["decoder_blocks.0.attn.meta_mlp.fc1.weight"][0],
        )
    else:
        decoder = GlobalDecoderConfig(width=width, num_layers=num_layers, mlp_dim=mlp_dim)
    return MaskedAutoencoderConfig(frontend=_frontend(encoder), encoder=encoder, decoder=decoder)


PRETRAINED = Format(
    name="audio_mae",
    config_type=MaskedAutoencoderConfig,
    abstract=MASKED_AUTOENCODER.abstract,
    entries=_entries,
    buffers=_buffers,
    infer_config=infer_masked_autoencoder,
    archive_entry=("model",),
    signature="decoder_pred.weight",
    # Buffers that Swin blocks derive from their sizes.
    ignored=(r"decoder_blocks\.\d+\.(attn_mask|attn\.relative_coordinates_log)",),
)
FINE_TUNED = Format(
    name="audio_mae-fine-tuned",
    config_type=AudioMaeConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=lambda config: _encoder_entries(config, ("params",), "fc_norm"),
    buffers=lambda config: {"pos_embed": _with_class_token(compute_positions(config))},
    infer_config=_infer_encoder,
    archive_entry=("model",),
    signature="fc_norm.weight",
    ignored=(r"head\.(weight|bias)",),
)
FORMATS = (PRETRAINED, FINE_TUNED)


LOCAL_NANO = MaskedAutoencoderConfig(
    frontend=_frontend(NANO),
    encoder=dataclasses.replace(NANO, compat=True),
    decoder=LocalDecoderConfig(width=64, num_layers=4, num_heads=4, mlp_dim=128, bias_dim=16),
)
GLOBAL_NANO = dataclasses.replace(
    LOCAL_NANO, decoder=GlobalDecoderConfig(width=64, num_layers=2, num_heads=4, mlp_dim=128)
)


def _build(config: MaskedAutoencoderConfig) -> Any:
    positions = (array[0, 1:] for array in _buffers(config).values())
    is_local = isinstance(config.decoder, LocalDecoderConfig)
    return load_oracle("audio_mae").AudioMae(config, *positions, is_local=is_local).eval()


def _inputs(config: MaskedAutoencoderConfig, real: RealInputs) -> dict[str, np.ndarray]:
    """Real features, and a fifth of their patches, another fifth for each clip."""
    spec = config.frontend
    waveforms = jnp.asarray(real.waveforms(spec.sample_rate_hz, spec.clip.clip_sec))
    features = np.asarray(compute_features(waveforms, spec))
    noise = np.random.default_rng(0).random((len(features), config.num_patches), np.float32)
    return {"features": features, "noise": noise}


def _mask(config: MaskedAutoencoderConfig, noise: Any) -> Any:
    return keep_lowest(noise, config.num_patches // 5)


def _theirs(config: MaskedAutoencoderConfig, module: Any, given: dict[str, Any]) -> Any:
    visible_ids = given["noise"].argsort(dim=1)[:, : config.num_patches // 5]
    return module(given["features"], visible_ids)


PARITY = tuple(
    Parity(
        name=f"audio_mae, nano, pixels of the {decoder} decoder",
        layout=PRETRAINED,
        config=config,
        oracle=_build,
        oracle_name="tests/oracles/audio_mae.py",
        inputs=_inputs,
        ours=lambda config, variables, given, dtype: reconstruct(
            config, variables, given["features"], _mask(config, given["noise"]), dtype=dtype
        ),
        theirs=functools.partial(_theirs, config),
    )
    for decoder, config in (("local", LOCAL_NANO), ("global", GLOBAL_NANO))
)
