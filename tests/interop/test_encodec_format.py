"""EnCodec: what the test of every format does not see of its files."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.audio.encodec import NANO, STEREO, EncodecConfig
from alm_jax.errors import UserError
from alm_jax.interop.encodec import ENCODEC, ENCODEC_ARCHIVE
from alm_jax.interop.folder import import_model
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.safetensors_io import read_safetensors


def test_every_buffer_and_residual_unit_goes_in_and_out_bit_for_bit(tmp_path):
    """The test of every format has one unit a step, and averages that are all zero."""
    config = dataclasses.replace(NANO, num_residual_layers=2, strides=(3,), bandwidths_kbps=(100.0,))
    fields = ENCODEC.write_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    module = transformers.EncodecModel(theirs)
    generator = torch.Generator().manual_seed(0)
    for buffer in module.quantizer.buffers():
        buffer.normal_(generator=generator)
    module.save_pretrained(tmp_path)
    saved = read_safetensors(tmp_path / "model.safetensors")

    back = variables_to_arrays(ENCODEC, config, arrays_to_variables(ENCODEC, config, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True)
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in saved.items()
    }
    assert old.keys() != saved.keys()
    again = variables_to_arrays(ENCODEC, config, arrays_to_variables(ENCODEC, config, old))
    assert again.keys() == saved.keys()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pad_mode": "zero"}, "'reflect' alone"),
        ({"codebook_dim": 3}, "one for both"),
        ({"audio_channels": 6}, "1 or 2"),
    ],
)
def test_what_we_do_not_compute_is_refused(changes, match):
    with pytest.raises(UserError, match=match):
        ENCODEC.read_config(ENCODEC.write_config(NANO) | changes)


def to_authors(key: str) -> str:
    """The name of a key of transformers in the authors' repository."""
    key = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", key)
    key = key.replace("quantizer.layers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        key = key.replace(new, old)
    # Of the decoder's modules these are the transposed ones: the third of each step.
    name = "convtr" if re.match(r"decoder\.model\.(3|6|9|12)\.", key) else "conv"
    key = re.sub(r"\.norm\.", rf".{name}.norm.", key)
    return re.sub(r"\.conv\.(weight|bias)", rf".{name}.{name}.\1", key)


RELEASED = {
    "encodec_24khz": (
        EncodecConfig(),
        (0.6,),
        (
            "encoder.model.0.conv.conv.weight_g",
            "encoder.model.1.shortcut.conv.conv.bias",
            "encoder.model.13.lstm.weight_ih_l0",
            "decoder.model.3.convtr.convtr.weight_v",
            "decoder.model.15.conv.conv.bias",
            "quantizer.vq.layers.31._codebook.embed_avg",
        ),
    ),
    "encodec_48khz": (
        STEREO,
        (1.2,),
        (
            "encoder.model.0.conv.conv.weight",
            "encoder.model.0.conv.norm.weight",
            "encoder.model.1.shortcut.conv.norm.bias",
            "encoder.model.13.lstm.weight_ih_l0",
            "decoder.model.3.convtr.convtr.weight",
            "decoder.model.3.convtr.norm.bias",
            "decoder.model.15.conv.conv.bias",
            "quantizer.vq.layers.15._codebook.embed_avg",
        ),
    ),
}
"""By archive: its config, the bit rate of two codebooks, and names of keys of the released file."""


@pytest.mark.parametrize("name", RELEASED)
def test_the_authors_archive_holds_the_same_model(name, tmp_path):
    """As `torch.hub` brings it: a bare state dict under the names of github.com/facebookresearch/encodec."""
    released, rates, names = RELEASED[name]
    config = dataclasses.replace(released, num_filters=2, width=8, codebook_size=16, bandwidths_kbps=rates)
    fields = ENCODEC.write_config(config)
    module = transformers.EncodecModel(transformers.AutoConfig.for_model(fields.pop("model_type"), **fields))
    state = module.state_dict()
    torch.save({to_authors(key): value for key, value in state.items()}, tmp_path / f"{name}.th")
    found = import_model(tmp_path / f"{name}.th")
    assert found.layout is ENCODEC_ARCHIVE
    assert found.config == config
    expected = arrays_to_variables(ENCODEC, config, {key: value.numpy() for key, value in state.items()})
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), found.variables, expected)
    assert {entry.key for entry in ENCODEC_ARCHIVE.entries(released)} >= set(names)
