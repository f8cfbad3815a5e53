"""Texts of models with an encoder against transformers' `generate`, greedy and by beam search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.audio.whisper import WhisperEncoderConfig
from alm_jax.encoders.family import abstract, apply
from alm_jax.encoders.text import bart, t5, whisper_decoder
from alm_jax.interop import bart as bart_files
from alm_jax.interop import t5 as t5_files
from alm_jax.interop.format import arrays_to_variables
from alm_jax.models.beam_search import Beam
from alm_jax.models.generation import Greedy, generate

NEW = 10
MASK = np.arange(6)[None, :] < np.array([[6], [3]])
SIZES = {
    "vocab_size": 50,
    "width": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "mlp_dim": 48,
}


MODELS = {
    "t5": (
        t5_files,
        t5_files.T5,
        t5.FAMILY,
        t5.T5Config(head_dim=4, tied_head=False, mlp="gated_gelu", **SIZES),
    ),
    "bart": (bart_files, bart_files.BART_LM, bart.FAMILY, bart.BartConfig(max_positions=32, **SIZES)),
}
START_IDS = {"t5": 0, "bart": 2}
SLOW = pytest.mark.slow


@functools.cache
def build(name: str):
    """A model of transformers' with random weights, and the same as a function of sources.

    ``expect(end_id, **options)`` gives ids and scores of transformers, ``write(end_id, strategy)`` ours.
    """
    (files, layout, family, config), start_id = MODELS[name], START_IDS[name]
    torch.manual_seed(0)
    theirs = files.build_oracle(layout, config)
    theirs.generation_config.forced_eos_token_id = theirs.generation_config.eos_token_id = None
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            # Positions drown tokens, and norms stay as they are, or a tied head writes one token for ever.
            if "norm" not in key:
                parameter.normal_(0, 5.0 if "embed_positions" in key else 1.0)
    saved = {key: value.numpy() for key, value in theirs.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, arrays_to_variables(layout, config, saved))
    source = np.random.default_rng(0).integers(3, 50, MASK.shape)

    def expect(end_id: int | None, **options):
        settings = transformers.GenerationConfig(
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=1,
            decoder_start_token_id=start_id,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        written = theirs.generate(
            torch.tensor(source), attention_mask=torch.tensor(MASK).long(), generation_config=settings
        )
        return written.sequences[:, 1:].numpy(), getattr(written, "sequences_scores", None)

    @functools.partial(jax.jit, static_argnames="strategy")
    def write(variables, ids, mask, end_id, strategy):
        states = apply(family, config, variables, ids, mask, method="encode")
        start = jnp.full((2, 1), start_id, jnp.int32), jnp.ones((2, 1), bool)
        read = {"method": "decode", "source": states, "source_mask": mask}
        limits = {"num_new_tokens": NEW, "end_id": end_id, "pad_id": 1, "strategy": strategy}
        return generate(family, config, variables, *start, **limits, **read)

    def run(end_id, strategy):
        return write(variables, jnp.asarray(source, jnp.int32), jnp.asarray(MASK), end_id, strategy)

    return expect, run


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=SLOW)])
def test_greedy_decoding_equals_transformers(name):
    expect, write = build(name)
    ours = write(-1, Greedy())
    np.testing.assert_array_equal(ours.ids, expect(None)[0])
    assert len({tuple(row) for row in np.asarray(ours.ids)}) == 2
    assert min(len(set(row)) for row in ours.ids.tolist()) > 1


@pytest.mark.parametrize("name", [pytest.param("t5", marks=SLOW), "bart"])
def test_beam_search_equals_transformers(name):
    expect, write = build(name)
    end_id = int(expect(None)[0][0, 3])
    for last in (None, end_id):
        found = write(-1 if last is None else last, Beam(num_beams=4, length_penalty=0.0))
        texts, scores = expect(last, num_beams=4, length_penalty=0.0)
        np.testing.assert_array_equal(found.ids[:, : texts.shape[1]], texts)
        np.testing.assert_allclose(found.score, scores, rtol=1e-4)
    assert np.sum(found.mask) < 2 * NEW


@pytest.mark.slow
def test_beams_of_whisper_score_as_their_texts_read_at_once():
    """And they find likelier ones than greedy decoding; the audio of a clip is its beams' together."""
    encoder = WhisperEncoderConfig(
        num_mels=12, max_positions=20, width=16, num_layers=1, num_heads=2, mlp_dim=32
    )
    config = whisper_decoder.WhisperConfig(
        encoder=encoder, vocab_size=30, num_layers=2, max_text_positions=12
    )
    rng, family = np.random.default_rng(0), whisper_decoder.FAMILY

    def fill(path, leaf):
        key = jax.tree_util.keystr(path)
        if "norm" in key:
            return jnp.full(leaf.shape, float("scale" in key))
        return jnp.asarray(rng.normal(0, 5.0 if "position" in key else 1.0, leaf.shape), jnp.float32)

    variables = jax.tree.map_with_path(fill, abstract(family, config))
    features = jnp.asarray(rng.normal(size=(2, 40, 12)), jnp.float32)
    frames = jnp.arange(40)[None, :] < jnp.asarray([[40], [21]])
    ids, mask = jnp.asarray(rng.integers(0, 30, (2, 3)), jnp.int32), jnp.ones((2, 3), bool)

    @functools.partial(jax.jit, static_argnames="strategy")
    def write(strategy):
        audio = apply(family, config, variables, features, frames, method="encode")
        read = {"method": "decode", "audio": audio, "audio_mask": frames[:, ::2]}
        return generate(
            family, config, variables, ids, mask, num_new_tokens=8, end_id=-1, strategy=strategy, **read
        )

    greedy, beams = write(Greedy()), write(Beam(num_beams=4, length_penalty=0.0))
    assert not np.array_equal(greedy.ids, beams.ids)
    for found in (greedy, beams):
        whole = jnp.concatenate([ids, found.ids], axis=1)
        logits = apply(
            family, config, variables, features, whole, jnp.ones((2, 11), bool), features_mask=frames
        )
        log_probs = jax.nn.log_softmax(logits)[:, 2:-1]
        expected = jnp.sum(jnp.take_along_axis(log_probs, found.ids[:, :, None], axis=2), axis=(1, 2))
        np.testing.assert_allclose(found.score, expected, rtol=1e-5)
    assert np.all(beams.score > greedy.score - 1e-5)
