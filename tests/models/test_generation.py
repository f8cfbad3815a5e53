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
from alm_jax.models.generation import generate_greedily

NEW = 12
LENGTHS = np.array([6, 3, 1])
MASK = np.arange(6)[None, :] >= 6 - LENGTHS[:, None]
SIZES = {"vocab_size": 50, "width": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 48, "max_positions": 32}


@pytest.mark.parametrize(
    ("layout", "family", "config"),
    [
        (GPT2, gpt2.FAMILY, gpt2.Gpt2Config(**SIZES)),
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
