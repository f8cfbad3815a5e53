"""Decoders' texts against transformers' `generate`, greedy and by beam search, on prompts that are padded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.family import axes
from alm_jax.encoders.text import gpt2, llama
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.gpt2 import GPT2
from alm_jax.interop.llama import LLAMA
from alm_jax.interop.parity import saved_arrays
from alm_jax.interop.qwen2_audio import PARITY, QWEN2_AUDIO
from alm_jax.models import qwen2_audio
from alm_jax.models.beam_search import Beam
from alm_jax.models.generation import GREEDY, generate
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh

NEW = 8

LENGTHS = np.array([6, 3, 1])
MASK = np.arange(6)[None, :] >= 6 - LENGTHS[:, None]
SIZES = {"vocab_size": 50, "width": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 48, "max_positions": 32}


DECODERS = {
    "gpt2": (GPT2, gpt2.FAMILY, gpt2.Gpt2Config(**SIZES)),
    "llama": (LLAMA, llama.FAMILY, llama.LlamaConfig(num_kv_heads=2, **SIZES)),
}


@functools.cache
def build(name: str):
    """A decoder of transformers' with random weights, the same as a function of prompts, and prompts.

    ``expect(end_id, **options)`` gives ids and scores of transformers, ``write(ids, mask, end_id, strategy)`` ours.
    """
    layout, family, config = DECODERS[name]
    torch.manual_seed(0)
    fields = layout.write_config(config) | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    theirs = getattr(transformers, layout.architectures[0])(
        transformers.AutoConfig.for_model(**fields)
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    saved = {key: value.numpy() for key, value in theirs.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, arrays_to_variables(layout, config, saved))
    prompt = np.where(MASK, np.random.default_rng(0).integers(1, 50, MASK.shape), 0)

    def expect(end_id: int | None, **options):
        settings = transformers.GenerationConfig(
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        written = theirs.generate(
            torch.tensor(prompt), attention_mask=torch.tensor(MASK).long(), generation_config=settings
        )
        return written.sequences[:, MASK.shape[1] :].numpy(), getattr(written, "sequences_scores", None)

    @functools.partial(jax.jit, static_argnames="strategy")
    def write(variables, ids, mask, end_id, strategy):
        return generate(
            family, config, variables, ids, mask, num_new_tokens=NEW, end_id=end_id, strategy=strategy
        )

    def run(ids, mask, end_id, strategy=GREEDY):
        return write(variables, jnp.asarray(ids, jnp.int32), jnp.asarray(mask), end_id, strategy)

    return prompt, expect, run, variables


@pytest.mark.parametrize("name", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_greedy_decoding_equals_transformers(name):
    prompt, expect, write, _ = build(name)
    # A token that one row writes in its midst, and so ends at; with -1 nothing ends.
    unending, _ = expect(None)
    end_id = int(unending[0, 4])
    np.testing.assert_array_equal(write(prompt, MASK, -1).ids, unending)
    actual, (ended, _) = write(prompt, MASK, end_id), expect(end_id)
    np.testing.assert_array_equal(actual.ids[:, : ended.shape[1]], ended)
    assert not np.any(actual.ids[:, ended.shape[1] :])
    assert 1 <= np.sum(actual.mask[0]) <= 5

    # Padded on the right, where transformers refuses to: the same texts.
    right = np.stack([np.roll(row, -shift) for row, shift in zip(prompt, 6 - LENGTHS, strict=True)])
    turned = np.arange(6)[None, :] < LENGTHS[:, None]
    np.testing.assert_array_equal(write(right, turned, -1).ids, unending)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_beam_search_equals_transformers(name):
    """Beams that end at a token which is often among the likely ones, and shorter texts where length counts less."""
    prompt, expect, write, _ = build(name)
    end_id, lengths = int(expect(None)[0][0, 4]), []
    for penalty, last in ((1.0, None), (1.0, end_id), (-2.0, end_id)):
        strategy = Beam(num_beams=3, length_penalty=penalty)
        found = write(prompt, MASK, -1 if last is None else last, strategy)
        texts, scores = expect(last, num_beams=3, length_penalty=penalty)
        # After an end transformers repeats it where the id for padding is 0.
        ours = np.where(found.mask, found.ids, last or 0)[:, : texts.shape[1]]
        np.testing.assert_array_equal(ours, texts)
        np.testing.assert_allclose(found.score, scores, rtol=1e-5)
        lengths.append(int(np.sum(found.mask)))
    assert lengths[0] == 3 * NEW > lengths[1] > lengths[2]


@pytest.mark.slow
def test_one_beam_is_greedy_decoding():
    prompt, _, write, _ = build("gpt2")
    beam = write(prompt, MASK, -1, Beam(num_beams=1, length_penalty=0.0))
    greedy = write(prompt, MASK, -1)
    np.testing.assert_array_equal(beam.ids, greedy.ids)
    np.testing.assert_allclose(beam.score, greedy.score, rtol=1e-5)


def test_a_mesh_writes_the_same_and_cuts_the_cache():
    """Rows over ``data``, heads over ``tensor``; beams are followed within a device."""
    prompt, _, write, variables = build("gpt2")
    _, family, config = DECODERS["gpt2"]
    mesh = build_mesh(MeshConfig(data=3, tensor=2), jax.devices()[:6])
    cut = sharding.parameter_shardings(axes(family, config), variables["params"], mesh)
    rows, strategy = sharding.batch_sharding(mesh), Beam(num_beams=3)

    def run(variables, ids, mask):
        return generate(
            family, config, variables, ids, mask, num_new_tokens=NEW, end_id=-1, strategy=strategy
        )

    given = variables, jnp.asarray(prompt, jnp.int32), jnp.asarray(MASK)
    with jax.set_mesh(mesh):
        placed = jax.device_put(given, ({"params": cut}, rows, rows))
        compiled = jax.jit(run).lower(*placed).compile()
        found = compiled(*placed)
    np.testing.assert_array_equal(found.ids, write(prompt, MASK, -1, strategy).ids)
    text = compiled.as_text()
    slots = MASK.shape[1] + NEW - 1
    assert f"f32[2,3,{slots},2,8]" in text
    assert f"f32[2,9,{slots}," not in text


@pytest.mark.slow
def test_qwen2_audio_writes_what_transformers_does():
    """Two recordings of different lengths, each named in a text, the second text padded on the left."""
    config = qwen2_audio.NANO
    torch.manual_seed(0)
    theirs = transformers.Qwen2AudioForConditionalGeneration(
        transformers.Qwen2AudioConfig(**QWEN2_AUDIO.write_config(config))
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    saved = saved_arrays(PARITY[0], theirs)
    variables = jax.tree.map(jnp.asarray, arrays_to_variables(QWEN2_AUDIO, config, saved))

    features = np.random.default_rng(0).normal(size=(2, 400, 40)).astype(np.float32)
    frames = np.array([400, 150])
    frame_mask = np.arange(400)[None, :] < frames[:, None]
    texts = [
        qwen2_audio.expand_audio_tokens(config, text, [int(count)])
        for text, count in zip(([1, 999, 5, 6], [3, 999, 8]), frames, strict=True)
    ]
    length = max(map(len, texts))
    ids = np.stack([np.pad(text, (length - len(text), 0)) for text in texts])
    mask = np.stack([np.arange(length) >= length - len(text) for text in texts])

    expected = theirs.generate(
        input_ids=torch.tensor(ids).long(),
        attention_mask=torch.tensor(mask).long(),
        input_features=torch.tensor(features).transpose(1, 2),
        feature_attention_mask=torch.tensor(frame_mask).long(),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        ),
    )
    write = jax.jit(
        lambda *inputs: generate(qwen2_audio.FAMILY, config, *inputs, num_new_tokens=20, end_id=-1).ids
    )
    encoded = jnp.asarray(features)[:, None], jnp.asarray(frame_mask)[:, None]
    actual = write(variables, jnp.asarray(ids), jnp.asarray(mask), *encoded)
    np.testing.assert_array_equal(actual, expected[:, length:])
