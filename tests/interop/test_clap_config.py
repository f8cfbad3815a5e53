"""JSON of a ClapModel folder, both ways."""

import dataclasses
import json

import pytest
import transformers
from tokenizers import Tokenizer, models

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import bert
from alm_jax.errors import UserError
from alm_jax.interop.clap_config import (
    clap_to_config,
    config_to_clap,
    frontend_to_preprocessor,
    preprocessor_to_frontend,
    special_tokens,
)
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.ops.frontends import CedSpec, ClapSpec, ClipSpec, TorchlibrosaSpec

IDS = {"bos_token": 0, "eos_token": 2}
FRONTEND = ClapSpec(clip=ClipSpec(clip_sec=10.0))


@pytest.fixture(scope="module")
def preprocessor() -> dict:
    return frontend_to_preprocessor(FRONTEND)


@pytest.mark.parametrize("audio", ["tiny", "base", "large"])
def test_config_comes_back_through_transformers(audio, preprocessor):
    """Our JSON, read and written again by ClapConfig, names the same model."""
    config = TwoTowersConfig(
        frontend=FRONTEND, audio=htsat.VARIANTS[audio], text=bert.ROBERTA_BASE, embed_dim=384
    )
    rewritten = transformers.ClapConfig(**config_to_clap(config, IDS)).to_json_string(use_diff=False)
    assert clap_to_config(json.loads(rewritten), preprocessor) == config


def test_absent_fields_have_the_defaults_of_transformers(preprocessor):
    """Old files hold only what differs from the class's defaults."""
    complete = transformers.ClapConfig().to_dict()
    assert clap_to_config({}, preprocessor) == clap_to_config(complete, preprocessor)


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("audio_config", "enable_fusion", True),
        ("audio_config", "hidden_act", "relu"),
        ("audio_config", "patch_stride", [2, 2]),
        ("audio_config", "layer_norm_eps", 1e-6),
        ("audio_config", "hidden_size", 1024),
        ("text_config", "hidden_act", "gelu_new"),
        ("text_config", "position_embedding_type", "relative_key"),
    ],
)
def test_models_that_our_towers_do_not_compute_are_refused(preprocessor, where, field, value):
    clap = transformers.ClapConfig().to_dict()
    clap[where][field] = value
    with pytest.raises(UserError, match=f"{where}.{field}"):
        clap_to_config(clap, preprocessor)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bert.BERT_BASE, "text.positions is 'bert', and ClapTextModel knows only 'roberta'"),
        (bert.ALL_MINILM_L6, "text.pooling is 'mean', and ClapTextModel knows only 'pooler'"),
    ],
)
def test_another_text_tower_cannot_be_exported(text, message):
    config = TwoTowersConfig(frontend=FRONTEND, audio=htsat.TINY, text=text)
    with pytest.raises(UserError, match=message):
        config_to_clap(config, IDS)


SPECS = [
    FRONTEND,
    ClapSpec(
        sample_rate_hz=16000,
        n_fft=512,
        hop_samples=160,
        num_mels=40,
        fmin_hz=20.0,
        fmax_hz=7600.0,
        clip=ClipSpec(clip_sec=3.0, pad="zero"),
    ),
    ClapSpec(clip=ClipSpec(clip_sec=5.0, pad="repeat")),
]


@pytest.mark.parametrize("spec", SPECS)
def test_front_end_comes_back_through_the_feature_extractor(spec):
    extractor = transformers.ClapFeatureExtractor.from_dict(frontend_to_preprocessor(spec))
    assert extractor.nb_max_samples == spec.clip_samples
    assert preprocessor_to_frontend(json.loads(extractor.to_json_string())) == spec


def test_torchlibrosa_without_its_oddities_is_the_same_front_end():
    assert frontend_to_preprocessor(TorchlibrosaSpec(clip=FRONTEND.clip)) == frontend_to_preprocessor(
        FRONTEND
    )


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (TorchlibrosaSpec(clip=FRONTEND.clip, int16_quantize=True), "int16_quantize"),
        (TorchlibrosaSpec(clip=FRONTEND.clip, mel_sample_rate_hz=32000), "mel_sample_rate_hz is 32000"),
        (dataclasses.replace(FRONTEND, mel_scale="htk"), "mel_scale"),
        (CedSpec(clip=FRONTEND.clip), "CedSpec is another family"),
        (dataclasses.replace(FRONTEND, clip=ClipSpec(clip_sec=2.5)), "2.5, and it takes whole seconds"),
    ],
)
def test_other_front_ends_cannot_be_exported(spec, match):
    with pytest.raises(UserError, match=match):
        frontend_to_preprocessor(spec)


@pytest.mark.parametrize(("field", "value"), [("truncation", "middle"), ("padding", "reflect")])
def test_other_feature_extractors_are_refused(preprocessor, field, value):
    with pytest.raises(UserError, match=field):
        preprocessor_to_frontend(preprocessor | {field: value})


def build_tokenizer(*specials: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def test_special_tokens_of_both_families():
    roberta = special_tokens(build_tokenizer("<s>", "<pad>", "</s>", "<unk>"), bert.NANO)
    assert roberta["bos_token"] == roberta["cls_token"] == "<s>"
    assert "mask_token" not in roberta
    text = dataclasses.replace(bert.NANO, pad_id=0)
    wordpiece = special_tokens(build_tokenizer("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), text)
    assert (wordpiece["pad_token"], wordpiece["eos_token"], wordpiece["mask_token"]) == (
        "[PAD]",
        "[SEP]",
        "[MASK]",
    )


@pytest.mark.parametrize(
    ("specials", "match"),
    [(("<|endoftext|>",), "neither"), (("<pad>", "<s>", "</s>", "<unk>"), "pads with id 0")],
)
def test_tokenizers_that_do_not_fit_are_refused(specials, match):
    with pytest.raises(UserError, match=match):
        special_tokens(build_tokenizer(*specials), bert.NANO)
