"""ClapModel with feature fusion: its files come in and go out bit for bit, and its folder is a two-tower model."""

import json

import numpy as np
import pytest

from alm_jax.encoders.audio import htsat, htsat_fusion
from alm_jax.encoders.text import bert
from alm_jax.errors import UserError
from alm_jax.interop.clap import compare_with_transformers, export_clap
from alm_jax.interop.clap_config import clap_to_config, frontend_to_preprocessor, preprocessor_to_frontend
from alm_jax.interop.clap_weights import CLAP
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.model_files import PREPROCESSOR
from alm_jax.interop.safetensors_io import read_safetensors
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.ops.frontends import ClipSpec, FusionSpec

FUSION = TwoTowersConfig(
    frontend=FusionSpec(sample_rate_hz=16000, hop_samples=320, fmax_hz=8000.0, clip=ClipSpec(clip_sec=2.0)),
    audio=htsat_fusion.NANO,
    text=bert.NANO,
    embed_dim=64,
)


@pytest.fixture(scope="module")
def folder(build_clap, tmp_path_factory):
    """What `save_pretrained` writes of a model with fusion, and its extractor's file."""
    folder = tmp_path_factory.mktemp("fused")
    build_clap(FUSION).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(frontend_to_preprocessor(FUSION.frontend)))
    return folder


def test_export_of_an_import_is_the_file_bit_for_bit(folder):
    saved = read_safetensors(folder / "model.safetensors")
    assert any("fusion_model" in key for key in saved)
    fields = json.loads((folder / "config.json").read_text())
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    config = CLAP.read_config(fields | {PREPROCESSOR: preprocessor})
    # SpecAugment and the initialisation are of training and stand in no file.
    assert config.frontend == FUSION.frontend
    assert CLAP.write_config(config) == CLAP.write_config(FUSION)
    back = variables_to_arrays(CLAP, config, arrays_to_variables(CLAP, config, saved))
    assert back.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(back[key], value, strict=True, err_msg=key)


def test_the_extractor_of_transformers_reads_the_front_end():
    transformers = pytest.importorskip("transformers")
    fields = frontend_to_preprocessor(FUSION.frontend)
    extractor = transformers.ClapFeatureExtractor.from_dict(fields)
    assert extractor.truncation == "fusion"
    assert preprocessor_to_frontend(fields) == FUSION.frontend


@pytest.mark.slow
def test_transformers_computes_our_logits_from_raw_clips(
    folder, tokenizer_json, read_clips, captions, tmp_path
):
    """Of recordings no longer than a clip: transformers cuts the others at random. Measured 5.5e-6."""
    variables = arrays_to_variables(CLAP, FUSION, read_safetensors(folder / "model.safetensors"))
    export_clap(tmp_path, FUSION, variables, tokenizer_json, "---\nlicense: other\n---\n")
    clips = [clip[:length] for clip, length in zip(read_clips(16000), (32000, 20000, 5000), strict=False)]
    assert compare_with_transformers(tmp_path, clips, captions[:3], 16000) < 5e-5


def test_a_front_end_of_the_other_kind_is_refused(folder):
    fields = json.loads((folder / "config.json").read_text())
    preprocessor = frontend_to_preprocessor(FUSION.frontend) | {"truncation": "rand_trunc"}
    with pytest.raises(UserError, match="enable_fusion is True"):
        clap_to_config(fields, preprocessor)
    fields["audio_config"] |= {"fusion_type": "channel_map"}
    with pytest.raises(UserError, match="fusion_type is 'channel_map'"):
        clap_to_config(fields, preprocessor)


def test_towers_and_front_ends_of_two_kinds_do_not_meet():
    with pytest.raises(UserError, match="FusionSpec"):
        TwoTowersConfig(frontend=FUSION.frontend, audio=htsat.NANO, text=bert.NANO)
