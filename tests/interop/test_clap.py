"""A folder that transformers loads: from raw clips to logits, both libraries apart."""

import dataclasses
import importlib
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from alm_jax.errors import UserError
from alm_jax.interop.clap import compare_with_transformers, export_clap, import_clap
from alm_jax.interop.clap_weights import CLAP
from alm_jax.interop.format import arrays_to_variables
from alm_jax.models.two_towers import encode_audio, encode_text
from alm_jax.ops.frontends import compute_features, fit_clips

CARD = "---\nlicense: other\n---\n"


@pytest.fixture(scope="module")
def variables(nano_config, build_clap) -> dict:
    """Random weights under which every clip has an embedding of its own."""
    state = build_clap(nano_config).state_dict()
    return arrays_to_variables(CLAP, nano_config, {key: value.numpy() for key, value in state.items()})


@pytest.fixture(scope="module")
def folder(nano_config, variables, tokenizer_json, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export_clap(folder, nano_config, variables, tokenizer_json, CARD)
    return folder


def test_transformers_computes_our_logits_from_raw_clips(
    folder, nano_config, variables, tokenizer_json, read_clips, captions
):
    """One clip of 5 s, one shorter, one much shorter: the padding policies meet too. Measured 3e-6."""
    clips = read_clips(16000)[:3]
    clips = [clips[0][:80000], clips[1][:50000], clips[2][:9000]]
    texts = captions[:5]

    processor = transformers.ClapProcessor.from_pretrained(folder)
    model = transformers.ClapModel.from_pretrained(folder).eval()
    inputs = processor(text=texts, audio=clips, sampling_rate=16000, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs).logits_per_audio.numpy()
    assert theirs.std() > 0.1

    padded = np.zeros((3, 80000), np.float32)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.enable_padding(pad_id=1)
    encodings = tokenizer.encode_batch(texts)
    ids = jnp.asarray([encoding.ids for encoding in encodings], jnp.int32)
    mask = jnp.asarray([encoding.attention_mask for encoding in encodings], jnp.bool_)

    @jax.jit
    def compute_logits(variables, waveforms, num_samples):
        spec = nano_config.frontend
        fitted, _ = fit_clips(
            waveforms, num_samples, clip_samples=spec.clip_samples, crop="centre", pad=spec.clip.pad
        )
        audio_emb, _ = encode_audio(nano_config, variables, compute_features(fitted[:, 0], spec))
        text_emb = encode_text(nano_config, variables, ids, mask)
        return jnp.exp(variables["params"]["log_logit_scale"]) * audio_emb @ text_emb.T

    num_samples = jnp.asarray([len(clip) for clip in clips], jnp.int32)
    ours = compute_logits(jax.tree.map(jnp.asarray, variables), jnp.asarray(padded), num_samples)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_import_is_the_export_bit_for_bit(folder, nano_config, variables):
    config, imported, tokenizer_path = import_clap(folder)
    # SpecAugment and initialisers are training's alone, and no file of transformers holds them.
    training_alone = {
        field.name: getattr(config.audio, field.name)
        for field in dataclasses.fields(config.audio)
        if field.name.startswith(("spec_augment", "kernel_init"))
    }
    audio = dataclasses.replace(nano_config.audio, **training_alone)
    text = dataclasses.replace(nano_config.text, kernel_init=config.text.kernel_init)
    assert config == dataclasses.replace(nano_config, audio=audio, text=text)
    jax.tree.map(np.testing.assert_array_equal, imported, variables)
    assert tokenizer_path == folder / "tokenizer.json"


def test_a_folder_saved_by_transformers_is_read(folder, variables, tmp_path):
    """Its own layout: one processor_config.json."""
    transformers.ClapModel.from_pretrained(folder).save_pretrained(tmp_path)
    transformers.ClapProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").is_file()
    config, imported, _ = import_clap(tmp_path)
    assert config == import_clap(folder)[0]
    jax.tree.map(np.testing.assert_array_equal, imported, variables)


def test_the_folder_holds_what_it_should(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (folder / "README.md").read_text() == CARD
    assert isinstance(transformers.AutoProcessor.from_pretrained(folder), transformers.ClapProcessor)


def test_the_stated_difference_is_that_of_the_logits(folder, read_clips, captions):
    """Clips longer than 5 s and a caption too long for the tower among them."""
    clips = [np.tile(clip, 2) for clip in read_clips(16000)[:2]]
    texts = [captions[0], " ".join(captions[:30])]
    difference = compare_with_transformers(folder, clips, texts, 16000)
    assert 0 < difference < 2e-5


def test_a_difference_is_seen(folder, read_clips, captions, tmp_path, monkeypatch):
    """With another mel bank on our side, the figure says so."""
    clap = importlib.import_module("alm_jax.interop.clap")

    def import_with_other_bank(folder):
        config, variables, tokenizer_path = import_clap(folder)
        frontend = dataclasses.replace(config.frontend, mel_scale="htk")
        return dataclasses.replace(config, frontend=frontend), variables, tokenizer_path

    monkeypatch.setattr(clap, "import_clap", import_with_other_bank)
    assert compare_with_transformers(folder, read_clips(16000)[:1], captions[:2], 16000) > 1e-2


def test_comparing_at_another_rate_is_refused(folder, read_clips, captions):
    with pytest.raises(UserError, match="48000 Hz"):
        compare_with_transformers(folder, read_clips(48000)[:1], captions[:1], 48000)


def test_comparing_without_pytorch_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"alm_jax\[torch\]"):
        compare_with_transformers(folder, [], [], 16000)


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"]
)
def test_a_missing_file_is_named(folder, tmp_path, name):
    for path in folder.iterdir():
        if path.name != name:
            shutil.copyfile(path, tmp_path / path.name)
    with pytest.raises(UserError, match=name):
        import_clap(tmp_path)


@pytest.mark.parametrize(("content", "match"), [("{", "not valid JSON"), ("[]", "expected a JSON object")])
def test_a_damaged_config_is_named(folder, tmp_path, content, match):
    for path in folder.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=match):
        import_clap(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        import_clap(tmp_path / "nowhere")


def test_special_ids_in_the_config_are_the_tokenizers(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert (text["bos_token_id"], text["eos_token_id"], text["pad_token_id"]) == (0, 2, 1)
