"""Llama and Qwen2: their sizes, their cache, and what may stand in for tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.text.llama import FAMILY, QWEN2, LlamaConfig, Qwen2Config
from alm_jax.errors import UserError
from alm_jax.interop.llama import write_llama_config
from alm_jax.interop.qwen2 import write_qwen2_config
from alm_jax.nn.kv_cache import make_cache
from alm_jax.nn.language_model import head_kernel, project

PUBLISHED = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "qwen2_0_5b": 494_032_768,
    "qwen2_1_5b": 1_543_714_304,
    "qwen2_7b": 7_615_616_512,
}
MICRO = Qwen2Config(
    vocab_size=40, width=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=24, max_positions=32
)
LENGTH = 10
MASK = np.arange(LENGTH)[None, :] >= np.array([[0], [3], [5]])  # padded left


@pytest.mark.parametrize(
    ("of", "name"), [(of, name) for of in (FAMILY, QWEN2) for name in of.variants if name != "nano"]
)
def test_every_published_size_has_the_parameters_of_the_reference(of, name):
    config = of.variants[name]
    fields = write_llama_config(config) if of is FAMILY else write_qwen2_config(config)
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(of, config)))
    assert ours == PUBLISHED[name] == sum(parameter.numel() for parameter in reference.parameters())


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), family.abstract(QWEN2, MICRO)
    )


@pytest.fixture(scope="module")
def ids() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, MICRO.vocab_size, MASK.shape), jnp.int32)


@functools.cache
def whole(dtype=jnp.float32):
    """A pass over whole texts, without a cache."""
    return jax.jit(lambda variables, ids, mask: family.apply(QWEN2, MICRO, variables, ids, mask, dtype=dtype))


@functools.cache
def read_on(dtype=jnp.float32):
    """A pass over more tokens, for a prompt or a step."""
    return jax.jit(
        lambda variables, ids, mask, cache: family.apply(
            QWEN2, MICRO, variables, ids, mask, cache=cache, dtype=dtype
        )
    )


@pytest.fixture(scope="module")
def full(variables, ids) -> np.ndarray:
    """Logits of whole texts."""
    return np.asarray(whole()(variables, ids, jnp.asarray(MASK)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_a_prompt_and_steps_give_the_logits_of_the_whole_text(variables, ids, dtype, tolerance):
    """In bfloat16 one rounding is 0.004; measured on a CPU: no difference at all."""
    expected = np.asarray(whole(dtype)(variables, ids, jnp.asarray(MASK)))
    step, cache = read_on(dtype), make_cache(MICRO.cache_shape, 3, LENGTH + 2, dtype)
    logits, cache = step(variables, ids[:, :6], jnp.asarray(MASK[:, :6]), cache)
    pieces = [logits]
    for t in range(6, LENGTH):
        logits, cache = step(variables, ids[:, t : t + 1], jnp.asarray(MASK[:, t : t + 1]), cache)
        pieces.append(logits)
    assert cache.key.dtype == dtype
    actual = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(actual[MASK], expected[MASK], atol=tolerance * np.abs(expected[MASK]).max())


def test_a_prompt_padded_right_goes_on_after_its_last_token(variables, ids, full):
    """Rows whose prompts have 6, 3 and 1 tokens, padded behind; the next tokens lie behind the padding."""
    cache = make_cache(MICRO.cache_shape, 3, LENGTH + 2, jnp.float32)
    starts, lengths = np.array([0, 3, 5]), np.array([6, 3, 1])
    rows = np.arange(3)[:, None]
    prompt = ids[rows, np.minimum(starts[:, None] + np.arange(6), LENGTH - 1)]
    _, cache = read_on()(variables, prompt, jnp.asarray(np.arange(6)[None] < lengths[:, None]), cache)
    for t in range(6, LENGTH):
        logits, cache = read_on()(variables, ids[:, t : t + 1], jnp.ones((3, 1), bool), cache)
        np.testing.assert_allclose(logits[:, 0], full[:, t], atol=1e-4)


def test_what_lies_under_padding_changes_nothing(variables, ids, full):
    other = jnp.where(MASK, ids, (ids + 7) % MICRO.vocab_size)
    actual = whole()(variables, other, jnp.asarray(MASK))
    np.testing.assert_array_equal(np.asarray(actual)[MASK], full[MASK])


@pytest.mark.parametrize("is_tied", [False, True])
def test_states_and_the_kernel_make_the_logits(variables, ids, full, is_tied):
    """What the loss over the vocabulary takes; the last state and the next token's logits are among them."""
    config = dataclasses.replace(MICRO, tied_head=is_tied)
    outputs = ("states", "last", "next") if is_tied else ("states",)
    states, *last = jax.jit(
        lambda v: [
            family.apply(QWEN2, config, v, ids, jnp.asarray(MASK), output=output) for output in outputs
        ]
    )(variables)
    kernel, tied = head_kernel(config, variables["params"])
    assert tied == is_tied
    logits = project(states, kernel, tied=tied)
    if is_tied:
        assert np.abs(logits[MASK] - full[MASK]).max() > 0.1
        np.testing.assert_allclose(last[0], states[:, -1], atol=1e-6)
        np.testing.assert_allclose(last[1], logits[:, -1], atol=1e-4)
    else:
        np.testing.assert_allclose(logits[MASK], full[MASK], atol=1e-4)


def test_vectors_stand_in_for_tokens(variables, ids, full):
    """The embeddings of the tokens themselves, given as vectors where the ids say something else."""
    where = jnp.asarray(np.random.default_rng(2).random(MASK.shape) < 0.5)
    embeds = variables["params"]["token_embed"]["embedding"][ids]
    run = jax.jit(
        lambda ids, **options: family.apply(QWEN2, MICRO, variables, ids, jnp.asarray(MASK), **options)
    )
    hidden = jnp.where(where, 0, ids)
    assert np.abs(whole()(variables, hidden, jnp.asarray(MASK))[MASK] - full[MASK]).max() > 0.1
    np.testing.assert_allclose(run(hidden, embeds=embeds, embeds_mask=where)[MASK], full[MASK], atol=1e-5)
    np.testing.assert_allclose(run(ids * 0, embeds=embeds)[MASK], full[MASK], atol=1e-5)
    with pytest.raises(UserError, match="give both or neither"):
        run(hidden, embeds_mask=where)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"num_heads": 3}, "heads of an even size"), ({"num_kv_heads": 3}, "multiple of num_kv_heads")],
)
def test_shapes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        LlamaConfig(**changes)


def test_a_step_writes_a_donated_cache_in_place():
    """The compiler's memory: keys and values of one layer beside the cache, and not of all eight."""
    config = dataclasses.replace(MICRO, num_layers=8)
    cache = jax.eval_shape(lambda: make_cache(config.cache_shape, 4, 1024, jnp.float32))
    token, is_real = jax.ShapeDtypeStruct((4, 1), jnp.int32), jax.ShapeDtypeStruct((4, 1), jnp.bool_)
    step = jax.jit(
        lambda variables, ids, mask, cache: family.apply(
            QWEN2, config, variables, ids, mask, cache=cache, output="next"
        ),
        donate_argnums=3,
    )
    memory = step.lower(family.abstract(QWEN2, config), token, is_real, cache).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 3
