"""Greedy decoding against transformers' `generate`, on prompts that are padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.text import gpt2, llama
from alm_jax.interop.format import Format, arrays_to_variables
from alm_jax.interop.gpt2 import GPT2
from alm_jax.interop.llama import LLAMA
from alm_jax.interop.parity import saved_arrays
from alm_jax.interop.qwen2_audio import PARITY, QWEN2_AUDIO
from alm_jax.models import qwen2_audio
from alm_jax.models.generation import generate_greedily

NEW = 8
LENGTHS = np.array([6, 3, 1])
MASK = np.arange(6)[None, :] >= 6 - LENGTHS[:, None]
SIZES = {"vocab_size": 50, "width": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 48, "max_positions": 32}


@pytest.mark.parametrize(
    ("layout", "family", "config"),
    [
        pytest.param(GPT2, gpt2.FAMILY, gpt2.Gpt2Config(**SIZES), marks=pytest.mark.slow),
        (LLAMA, llama.FAMILY, llama.LlamaConfig(num_kv_heads=2, **SIZES)),
    ],
    ids=["gpt2", "llama"],
)
def test_greedy_decoding_equals_transformers(layout: Format, family, config):
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

    def expect(end_id: int | None) -> np.ndarray:
        settings = transformers.GenerationConfig(
            max_new_tokens=NEW, do_sample=False, eos_token_id=end_id, pad_token_id=0, use_cache=True
        )
        written = theirs.generate(
            torch.tensor(prompt), attention_mask=torch.tensor(MASK).long(), generation_config=settings
        )
        return written[:, MASK.shape[1] :].numpy()

    # A token that one row writes in its midst, and so ends at; with -1 nothing ends.
    unending = expect(None)
    end_id = int(unending[0, 4])
    write = jax.jit(
        lambda variables, ids, mask, end_id: generate_greedily(
            family, config, variables, ids, mask, num_new_tokens=NEW, end_id=end_id
        )
    )
    ids = jnp.asarray(prompt, jnp.int32)
    np.testing.assert_array_equal(write(variables, ids, jnp.asarray(MASK), -1).ids, unending)
    actual, ended = write(variables, ids, jnp.asarray(MASK), end_id), expect(end_id)
    np.testing.assert_array_equal(actual.ids[:, : ended.shape[1]], ended)
    assert not np.any(actual.ids[:, ended.shape[1] :])
    assert 1 <= np.sum(actual.mask[0]) <= 5

    # Padded on the right, where transformers refuses to: the same texts.
    right = np.stack([np.roll(row, -shift) for row, shift in zip(prompt, 6 - LENGTHS, strict=True)])
    turned = jnp.asarray(np.arange(6)[None, :] < LENGTHS[:, None])
    np.testing.assert_array_equal(write(variables, jnp.asarray(right, jnp.int32), turned, -1).ids, unending)


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
            max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        ),
    )
    write = jax.jit(
        lambda *inputs: (
            generate_greedily(qwen2_audio.FAMILY, config, *inputs, num_new_tokens=NEW, end_id=-1).ids
        )
    )
    heard = jnp.asarray(features)[:, None], jnp.asarray(frame_mask)[:, None]
    actual = write(variables, jnp.asarray(ids), jnp.asarray(mask), *heard)
    np.testing.assert_array_equal(actual, expected[:, length:])
