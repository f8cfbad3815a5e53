"""EnCodec of 24 kHz and of 48 kHz as `transformers.EncodecModel` saves it, and as its authors' archives hold it.

The archives are those of https://github.com/facebookresearch/encodec.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.encodec import FAMILY, NANO, NANO_STEREO, STEREO, EncodecConfig
from alm_jax.interop.entry import WEIGHT_NORM_FORMER, Entry, Path, norm
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs


def _conv(
    key: str, path: Path, norm_path: Path, config: EncodecConfig, inputs: int, outputs: int, window: int
) -> Iterator[Entry]:
    """A convolution and its norm, without its bias; for a transposed one ``inputs`` is what it produces."""
    if config.norm == "weight":
        kernel = f"{key}.conv.parametrizations.weight"
        yield Entry(f"{kernel}.original0", (*path, "gain"), (outputs, 1, 1))
        yield Entry(f"{kernel}.original1", (*path, "kernel"), (outputs, inputs, window), "conv")
    else:
        yield Entry(f"{key}.conv.weight", (*path, "kernel"), (outputs, inputs, window), "conv")
        yield from norm(f"{key}.norm", norm_path, inputs if "up_" in path[-1] else outputs)


def _mirrored(
    key: str, path: Path, config: EncodecConfig, inputs: int, outputs: int, window: int
) -> Iterator[Entry]:
    yield from _conv(key, (*path, "conv"), (*path, "norm"), config, inputs, outputs, window)
    yield Entry(f"{key}.conv.bias", (*path, "conv", "bias"), (outputs,))


def _residual(key: str, path: Path, config: EncodecConfig, channels: int) -> Iterator[Entry]:
    hidden = channels // config.compress
    yield from _mirrored(f"{key}.block.1", (*path, "conv1"), config, channels, hidden, config.residual_window)
    yield from _mirrored(f"{key}.block.3", (*path, "conv2"), config, hidden, channels, 1)
    yield from _mirrored(f"{key}.shortcut", (*path, "shortcut"), config, channels, channels, 1)


def _lstm(key: str, path: Path, config: EncodecConfig, width: int) -> Iterator[Entry]:
    for i in range(config.num_lstm_layers):
        theirs = f"{key}.lstm"
        yield Entry(
            f"{theirs}.weight_ih_l{i}", (*path, "input", "kernel"), (4 * width, width), "transposed", (i,)
        )
        yield Entry(f"{theirs}.bias_ih_l{i}", (*path, "input", "bias"), (4 * width,), index=(i,))
        yield Entry(f"{theirs}.weight_hh_l{i}", (*path, "recurrent"), (4 * width, width), "transposed", (i,))
        yield Entry(f"{theirs}.bias_hh_l{i}", (*path, "recurrent_bias"), (4 * width,), index=(i,))


def _encoder_entries(config: EncodecConfig, path: Path) -> Iterator[Entry]:
    """Yields the encoder's entries; their modules form one list, in which the ELUs count."""
    channels, at = config.num_filters, 1
    first = (*path, "conv_in")
    yield from _mirrored("encoder.layers.0", first, config, config.num_channels, channels, config.window)
    for step, stride in enumerate(config.strides):
        for unit in range(config.num_residual_layers):
            ours = (*path, f"residual_{step}_{unit}")
            yield from _residual(f"encoder.layers.{at}", ours, config, channels)
            at += 1
        down = (*path, f"down_{step}")
        yield from _mirrored(f"encoder.layers.{at + 1}", down, config, channels, 2 * channels, 2 * stride)
        channels, at = 2 * channels, at + 2
    yield from _lstm(f"encoder.layers.{at}", (*path, "lstm"), config, channels)
    last = (*path, "conv_out")
    yield from _mirrored(f"encoder.layers.{at + 2}", last, config, channels, config.width, config.last_window)


def _decoder_entries(config: EncodecConfig, path: Path) -> Iterator[Entry]:
    channels, at = config.num_filters * 2 ** len(config.strides), 2
    first = (*path, "conv_in")
    yield from _mirrored("decoder.layers.0", first, config, config.width, channels, config.window)
    yield from _lstm("decoder.layers.1", (*path, "lstm"), config, channels)
    for step, stride in enumerate(reversed(config.strides)):
        theirs, up = f"decoder.layers.{at + 1}", (*path, f"up_{step}")
        up_norm = (*path, f"up_norm_{step}")
        yield from _conv(theirs, up, up_norm, config, channels // 2, channels, 2 * stride)
        yield Entry(f"{theirs}.conv.bias", (*up, "bias"), (channels // 2,))
        channels, at = channels // 2, at + 2
        for unit in range(config.num_residual_layers):
            yield from _residual(f"decoder.layers.{at}", (*path, f"residual_{step}_{unit}"), config, channels)
            at += 1
    last = (*path, "conv_out")
    yield from _mirrored(
        f"decoder.layers.{at + 1}", last, config, channels, config.num_channels, config.last_window
    )


def _entries(config: EncodecConfig) -> Iterator[Entry]:
    """Every key of an EncodecModel."""
    yield from _encoder_entries(config, ("params", "encoder"))
    yield from _decoder_entries(config, ("params", "decoder"))
    size, width = config.codebook_size, config.width
    shapes = {"embed": (size, width), "cluster_size": (size,), "embed_avg": (size, width), "inited": (1,)}
    for i in range(config.num_codebooks):
        for name, shape in shapes.items():
            key = f"quantizer.layers.{i}.codebook.{name}"
            yield Entry(key, ("batch_stats", "codebooks", name), shape, index=(i,))


_FIXED = {"pad_mode": "reflect", "trim_right_ratio": 1.0, "use_conv_shortcut": True}
"""Fields of config.json of which we compute one value: that of both released models."""
_NORMS: dict[str, Literal["weight", "row"]] = {"weight_norm": "weight", "time_group_norm": "row"}


def read_encodec_config(fields: Mapping[str, Any]) -> EncodecConfig:
    """config.json of an EncodecModel, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    fields.only(_FIXED, "our EnCodec")
    width = fields.size("hidden_size", 128)
    if (fields.size_or_none("codebook_dim") or width) != width:
        raise fields.error("codebook_dim", f"hidden_size, {width}: our EnCodec has one for both")
    num_channels = fields.size("audio_channels", 1)
    if num_channels > 2:
        raise fields.error("audio_channels", "1 or 2")
    is_whole = fields.get("chunk_length_s") is None
    return EncodecConfig(
        sample_rate_hz=fields.size("sampling_rate", 24000),
        num_filters=fields.size("num_filters", 32),
        strides=tuple(reversed(fields.sizes("upsampling_ratios", (8, 5, 4, 2)))),
        num_residual_layers=fields.size("num_residual_layers", 1),
        dilation_growth=fields.size("dilation_growth_rate", 2),
        window=fields.size("kernel_size", 7),
        last_window=fields.size("last_kernel_size", 7),
        residual_window=fields.size("residual_kernel_size", 3),
        compress=fields.size("compress", 2),
        num_lstm_layers=fields.size("num_lstm_layers", 2),
        width=width,
        codebook_size=fields.size("codebook_size", 1024),
        bandwidths_kbps=fields.numbers("target_bandwidths", (1.5, 3.0, 6.0, 12.0, 24.0)),
        num_channels=num_channels,
        norm=_NORMS[fields.word("norm_type", "weight_norm", among=tuple(_NORMS))],
        is_causal=fields.flag("use_causal_conv", True),
        divides_by_level=fields.flag("normalize", False),
        piece_sec=None if is_whole else fields.number("chunk_length_s", 1.0, above=0.0),
        overlap=0.0 if is_whole else fields.rate("overlap", 0.0),
    )


def write_encodec_config(config: EncodecConfig) -> dict[str, Any]:
    """config.json of the model that computes what ``config`` computes."""
    return _FIXED | {
        "model_type": "encodec",
        "sampling_rate": config.sample_rate_hz,
        "num_filters": config.num_filters,
        "upsampling_ratios": list(reversed(config.strides)),
        "num_residual_layers": config.num_residual_layers,
        "dilation_growth_rate": config.dilation_growth,
        "kernel_size": config.window,
        "last_kernel_size": config.last_window,
        "residual_kernel_size": config.residual_window,
        "compress": config.compress,
        "num_lstm_layers": config.num_lstm_layers,
        "hidden_size": config.width,
        "codebook_dim": config.width,
        "codebook_size": config.codebook_size,
        "target_bandwidths": list(config.bandwidths_kbps),
        "audio_channels": config.num_channels,
        "norm_type": {ours: theirs for theirs, ours in _NORMS.items()}[config.norm],
        "use_causal_conv": config.is_causal,
        "normalize": config.divides_by_level,
        "chunk_length_s": config.piece_sec,
        "overlap": None if config.piece_sec is None else config.overlap,
    }


ENCODEC = Format(
    name="encodec",
    config_type=EncodecConfig,
    abstract=functools.partial(family.abstract, FAMILY),
    entries=_entries,
    former=WEIGHT_NORM_FORMER,
    architectures=("EncodecModel",),
    read_config=read_encodec_config,
    write_config=write_encodec_config,
)


def _archive_entries(config: EncodecConfig) -> Iterator[Entry]:
    """Renames the arrays to the authors' names, whose convolutions lie one module deeper."""
    for entry in _entries(config):
        key = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", entry.key)
        key = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", key)
        name = "convtr" if "up_" in "".join(entry.path) else "conv"
        key = re.sub(r"\.conv\.(parametrizations|weight|bias)", rf".{name}.{name}.\1", key)
        key = re.sub(r"\.norm\.", rf".{name}.norm.", key)
        for former, new in WEIGHT_NORM_FORMER:
            key = key.replace(new, former.replace("\\", "").removesuffix("$"))
        yield dataclasses.replace(entry, key=key)


def infer_encodec_config(shapes: Mapping[str, tuple[int, ...]]) -> EncodecConfig:
    """The config of an archive from its shapes; what they do not show is that of the released model of this norm."""
    released = EncodecConfig() if "encoder.model.0.conv.conv.weight_v" in shapes else STEREO
    kernel = "weight_v" if released.norm == "weight" else "weight"
    first = re.compile(rf"encoder\.model\.(\d+)\.conv\.conv\.{kernel}")
    numbers = sorted(int(found[1]) for key in shapes if (found := first.fullmatch(key)))
    convolutions = [shapes[f"encoder.model.{number}.conv.conv.{kernel}"] for number in numbers]
    strides = tuple(window // 2 for _, _, window in convolutions[1:-1])
    channels, num_channels, window = convolutions[0]
    width, _, last_window = convolutions[-1]
    hidden, _, residual_window = shapes[f"encoder.model.1.block.1.conv.conv.{kernel}"]
    units = sum(key.startswith("encoder.") and key.endswith(".shortcut.conv.conv.bias") for key in shapes)
    codebooks = sum(key.endswith("._codebook.embed") for key in shapes)
    config = dataclasses.replace(
        released,
        num_channels=num_channels,
        num_filters=channels,
        strides=strides,
        num_residual_layers=units // len(strides),
        window=window,
        last_window=last_window,
        residual_window=residual_window,
        compress=channels // hidden,
        num_lstm_layers=sum(
            key.startswith(f"encoder.model.{numbers[-1] - 2}.lstm.weight_ih_l") for key in shapes
        ),
        width=width,
        codebook_size=shapes["quantizer.vq.layers.0._codebook.embed"][0],
        bandwidths_kbps=(1e6,),
    )
    usual = dataclasses.replace(config, bandwidths_kbps=released.bandwidths_kbps)
    own = dataclasses.replace(config, bandwidths_kbps=(codebooks * config.bits_per_second / 1000,))
    return usual if usual.num_codebooks == codebooks else own


ENCODEC_ARCHIVE = Format(
    name="encodec-archive",
    config_type=EncodecConfig,
    abstract=ENCODEC.abstract,
    entries=_archive_entries,
    infer_config=infer_encodec_config,
    signature="quantizer.vq.layers.0._codebook.embed",
)
FORMATS = (ENCODEC, ENCODEC_ARCHIVE)


def _build(config: EncodecConfig) -> Any:
    """Makes the model of transformers with random codebooks, which transformers leaves at zero."""
    import torch
    import transformers

    fields = write_encodec_config(config)
    module = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    ).eval()
    generator = torch.Generator().manual_seed(2)
    for layer in module.quantizer.layers:
        layer.codebook.embed.normal_(generator=generator)
    return module


def _waveforms(config: EncodecConfig, real: RealInputs) -> dict[str, np.ndarray]:
    # Not a whole number of hops; of a model with pieces two whole ones, and one that is cut.
    samples = 50.5 * config.hop_samples if config.piece_samples is None else 2.5 * config.piece_samples
    waveforms = real.waveforms(config.sample_rate_hz, samples / config.sample_rate_hz)
    # The second channel is another recording.
    others = waveforms[::-1]
    return {"waveforms": np.stack([waveforms, others], 1)[:, : config.num_channels]}


def _ours(method: str) -> Callable[..., Any]:
    def run(config: EncodecConfig, variables: Any, given: Any, dtype: Any) -> Any:
        waveforms = given["waveforms"]
        waveforms = waveforms[:, 0] if config.num_channels == 1 else waveforms.swapaxes(1, 2)
        found = family.apply(FAMILY, config, variables, waveforms, dtype=dtype, method=method)
        return found if method == "embed" or config.num_channels == 1 else found.swapaxes(1, 2)

    return run


def _their_latents(module: Any, given: Any) -> Any:
    import torch

    waveforms, config = given["waveforms"], module.config
    length = config.chunk_length or waveforms.shape[-1]
    pieces = waveforms.split(config.chunk_stride, dim=-1) if config.chunk_length else (waveforms,)
    starts = [sum(piece.shape[-1] for piece in pieces[:i]) for i in range(len(pieces))]
    latents = []
    for start in starts:
        piece = waveforms[..., start : start + length]
        if config.normalize:
            level = piece.mean(1, keepdim=True).pow(2).mean(-1, keepdim=True).sqrt() + 1e-8
            piece = piece / level
        latents.append(module.encoder(piece).mT)
    return torch.cat(latents, 1)


def _their_waveforms(module: Any, given: Any) -> Any:
    found = module(given["waveforms"], bandwidth=module.config.target_bandwidths[-1]).audio_values
    return found[:, 0] if module.config.audio_channels == 1 else found


def _parity(name: str, config: EncodecConfig, method: str, theirs: Callable[[Any, Any], Any]) -> Parity:
    return Parity(
        name=name,
        layout=ENCODEC,
        config=config,
        oracle=_build,
        oracle_name="transformers.EncodecModel",
        inputs=_waveforms,
        ours=_ours(method),
        theirs=theirs,
    )


PARITY = tuple(
    parity
    for variant, config in (("nano", NANO), ("nano-stereo", NANO_STEREO))
    for parity in (
        _parity(f"encodec latents, {variant}", config, "embed", _their_latents),
        # Through the codes: another one than theirs would be heard.
        _parity(f"encodec waveforms, {variant}", config, "__call__", _their_waveforms),
    )
)
