"""EnCodec of 24 kHz as `transformers.EncodecModel` saves it, and as its authors' archives hold it.

The archives are those of https://github.com/facebookresearch/encodec. The stereo model of 48 kHz has other norms and is
refused.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from alm_jax.encoders import family
from alm_jax.encoders.audio.encodec import FAMILY, NANO, EncodecConfig
from alm_jax.interop.entry import WEIGHT_NORM_FORMER, Entry, Path
from alm_jax.interop.fields import Fields
from alm_jax.interop.format import Format
from alm_jax.interop.parity import Parity, RealInputs


def _conv(key: str, path: Path, inputs: int, outputs: int, window: int) -> Iterator[Entry]:
    """A weight-normed convolution; for a transposed one ``inputs`` is what it produces."""
    kernel = f"{key}.conv.parametrizations.weight"
    yield Entry(f"{kernel}.original0", (*path, "gain"), (outputs, 1, 1))
    yield Entry(f"{kernel}.original1", (*path, "kernel"), (outputs, inputs, window), "conv")


def _causal(key: str, path: Path, inputs: int, outputs: int, window: int) -> Iterator[Entry]:
    yield from _conv(key, (*path, "conv"), inputs, outputs, window)
    yield Entry(f"{key}.conv.bias", (*path, "conv", "bias"), (outputs,))


def _residual(key: str, path: Path, config: EncodecConfig, channels: int) -> Iterator[Entry]:
    hidden = channels // config.compress
    yield from _causal(f"{key}.block.1", (*path, "conv1"), channels, hidden, config.residual_window)
    yield from _causal(f"{key}.block.3", (*path, "conv2"), hidden, channels, 1)
    yield from _causal(f"{key}.shortcut", (*path, "shortcut"), channels, channels, 1)


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
    yield from _causal("encoder.layers.0", (*path, "conv_in"), 1, channels, config.window)
    for step, stride in enumerate(config.strides):
        for unit in range(config.num_residual_layers):
            ours = (*path, f"residual_{step}_{unit}")
            yield from _residual(f"encoder.layers.{at}", ours, config, channels)
            at += 1
        down = (*path, f"down_{step}")
        yield from _causal(f"encoder.layers.{at + 1}", down, channels, 2 * channels, 2 * stride)
        channels, at = 2 * channels, at + 2
    yield from _lstm(f"encoder.layers.{at}", (*path, "lstm"), config, channels)
    yield from _causal(
        f"encoder.layers.{at + 2}", (*path, "conv_out"), channels, config.width, config.last_window
    )


def _decoder_entries(config: EncodecConfig, path: Path) -> Iterator[Entry]:
    channels, at = config.num_filters * 2 ** len(config.strides), 2
    yield from _causal("decoder.layers.0", (*path, "conv_in"), config.width, channels, config.window)
    yield from _lstm("decoder.layers.1", (*path, "lstm"), config, channels)
    for step, stride in enumerate(reversed(config.strides)):
        theirs, up = f"decoder.layers.{at + 1}", (*path, f"up_{step}")
        yield from _conv(theirs, up, channels // 2, channels, 2 * stride)
        yield Entry(f"{theirs}.conv.bias", (*up, "bias"), (channels // 2,))
        channels, at = channels // 2, at + 2
        for unit in range(config.num_residual_layers):
            yield from _residual(f"decoder.layers.{at}", (*path, f"residual_{step}_{unit}"), config, channels)
            at += 1
    yield from _causal(f"decoder.layers.{at + 1}", (*path, "conv_out"), channels, 1, config.last_window)


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


_FIXED = {
    "audio_channels": 1,
    "normalize": False,
    "chunk_length_s": None,
    "norm_type": "weight_norm",
    "use_causal_conv": True,
    "pad_mode": "reflect",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": True,
}
"""Fields of config.json that must have the value of the 24 kHz model, not that of the 48 kHz stereo model."""


def read_encodec_config(fields: Mapping[str, Any]) -> EncodecConfig:
    """config.json of an EncodecModel, absent fields at transformers' defaults."""
    fields = Fields.of(fields)
    fields.only(_FIXED, "our EnCodec, the one of 24 kHz,")
    width = fields.size("hidden_size", 128)
    if (fields.size_or_none("codebook_dim") or width) != width:
        raise fields.error("codebook_dim", f"hidden_size, {width}: our EnCodec has one for both")
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
        key = re.sub(r"\.conv\.(parametrizations|bias)", rf".{name}.{name}.\1", key)
        for former, new in WEIGHT_NORM_FORMER:
            key = key.replace(new, former.replace("\\", "").removesuffix("$"))
        yield dataclasses.replace(entry, key=key)


def infer_encodec_config(shapes: Mapping[str, tuple[int, ...]]) -> EncodecConfig:
    """The config of an archive from its shapes; what they do not show is the released model's of 24 kHz."""
    first = re.compile(r"encoder\.model\.(\d+)\.conv\.conv\.weight_v")
    numbers = sorted(int(found[1]) for key in shapes if (found := first.fullmatch(key)))
    convolutions = [shapes[f"encoder.model.{number}.conv.conv.weight_v"] for number in numbers]
    strides = tuple(window // 2 for _, _, window in convolutions[1:-1])
    channels, _, window = convolutions[0]
    width, _, last_window = convolutions[-1]
    hidden, _, residual_window = shapes["encoder.model.1.block.1.conv.conv.weight_v"]
    units = sum(key.startswith("encoder.") and key.endswith(".shortcut.conv.conv.bias") for key in shapes)
    codebooks = sum(key.endswith("._codebook.embed") for key in shapes)
    config = EncodecConfig(
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
    released = dataclasses.replace(config, bandwidths_kbps=EncodecConfig.bandwidths_kbps)
    own = dataclasses.replace(config, bandwidths_kbps=(codebooks * config.bits_per_second / 1000,))
    return released if released.num_codebooks == codebooks else own


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
    # Deliberately not a whole number of hops.
    seconds = 50.5 * config.hop_samples / config.sample_rate_hz
    return {"waveforms": real.waveforms(config.sample_rate_hz, seconds)}


def _parity(name: str, method: str, theirs: Callable[[Any, Any], Any]) -> Parity:
    return Parity(
        name=name,
        layout=ENCODEC,
        config=NANO,
        oracle=_build,
        oracle_name="transformers.EncodecModel",
        inputs=_waveforms,
        ours=lambda config, variables, given, dtype: family.apply(
            FAMILY, config, variables, given["waveforms"], dtype=dtype, method=method
        ),
        theirs=theirs,
    )


PARITY = (
    _parity(
        "encodec latents, nano",
        "embed",
        lambda module, given: module.encoder(given["waveforms"][:, None]).mT,
    ),
    # Through the codes: a wrong code would change the waveform.
    _parity(
        "encodec waveforms, nano",
        "__call__",
        lambda module, given: module(
            given["waveforms"][:, None], bandwidth=NANO.bandwidths_kbps[-1]
        ).audio_values[:, 0],
    ),
)
