"""Every flag of every class of transformers, on and off: in and out bit for bit, or refused by the flag's name."""

import re

import numpy as np
import pytest
import transformers

from alm_jax.errors import UserError
from alm_jax.interop.folder import export_model, import_model
from alm_jax.interop.formats import FORMATS, PARITY
from alm_jax.interop.safetensors_io import read_weights

# ClapModel's flags are in its parts, and tests/interop/test_clap_config.py walks them.
CLASSES = [
    layout
    for layout in FORMATS.values()
    if layout.write_config and not layout.ignored and layout.name != "clap"
]
# Of generation, of what a call returns, and of training: no weight and no number of a forward pass depends on them.
OTHER = re.compile(
    r"return_dict|output_\w+|use_cache|apply_spec_augment|is_decoder|is_encoder_decoder|torchscript|tie_encoder_decoder|"
    r"summary_\w+|reorder_and_upcast_attn|cross_attention_hidden_size|add_cross_attention|use_bfloat16|\w*_loss\w*|"
    r"forced_\w+|chunk_size_\w+|use_weighted_layer_sum|classifier_\w+|ctc_\w+|normalize_before|is_gated_act"
)
WORDS = {
    "hidden_act": ("gelu", "relu"),
    "activation_function": ("gelu", "gelu_new", "relu"),
    "feed_forward_proj": ("relu", "gated-gelu", "gated-silu"),
    "feat_extract_norm": ("group", "layer"),
    "norm_type": ("weight_norm", "time_group_norm"),
}


def cases() -> list:
    found = []
    for layout in CLASSES:
        config = next(
            (case.config for case in PARITY if case.layout is layout),
            next(case.config for case in PARITY if isinstance(case.config, layout.config_type)),
        )
        fields = dict(layout.write_config(config))
        theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        for name, value in theirs.to_dict().items():
            if OTHER.fullmatch(name):
                continue
            others = [not value] if isinstance(value, bool) else WORDS.get(name, ())
            found += [
                pytest.param(layout, fields, {name: other}, id=f"{layout.name}-{name}-{other}")
                for other in others
                if other != value
            ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "fields", "changed"), cases())
def test_a_flag_is_carried_or_refused_by_name(layout, fields, changed, tmp_path):
    model_type = layout.write_config(
        next(c.config for c in PARITY if isinstance(c.config, layout.config_type))
    )["model_type"]
    try:
        theirs = transformers.AutoConfig.for_model(model_type, **fields | changed)
        module = getattr(transformers, layout.architectures[0])(theirs)
    except (ValueError, TypeError, NotImplementedError, AttributeError, RuntimeError) as error:
        pytest.skip(f"transformers has no such model: {error}")
    module.save_pretrained(tmp_path / "theirs")
    refused = ""
    try:
        found = import_model(tmp_path / "theirs")
    except UserError as error:
        refused = str(error)
    if refused:
        assert next(iter(changed)) in refused
        return
    export_model(tmp_path / "ours", found.config, found.variables, found.layout)
    saved, written = read_weights(tmp_path / "theirs"), read_weights(tmp_path / "ours")
    assert saved.keys() == written.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(written[key], value, strict=True, err_msg=key)
    again = import_model(tmp_path / "ours")
    assert again.config == found.config
