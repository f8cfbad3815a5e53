"""T5: sizes as published, generation over a cache, padding, and what it refuses. (Outputs: `alm zoo --parity`.)"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.text.t5 import (
    ENCODER_FAMILY,
    ENCODER_VARIANTS,
    FAMILY,
    NANO,
    VARIANTS,
    T5Config,
    encoder_config,
)
from alm_jax.errors import UserError
from alm_jax.interop.t5 import write_t5_config
from alm_jax.nn.kv_cache import make_cache
from alm_jax.nn.language_model import head_kernel

MICRO = dataclasses.replace(
    NANO, vocab_size=40, width=16, num_heads=2, head_dim=4, mlp_dim=24, num_decoder_layers=3
)
TIED = dataclasses.replace(MICRO, mlp="relu", tied_head=True)


def count(tree: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("t5_small", 60.51e6),
        ("t5_base", 222.90e6),
        ("t5_large", 737.67e6),
        ("flan_t5_base", 247.58e6),
        ("flan_t5_large", 783.15e6),
        ("nano", None),
    ],
)
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    config = VARIANTS[name]
    with torch.device("meta"):
        reference = transformers.T5ForConditionalGeneration(
            transformers.AutoConfig.for_model(**write_t5_config(config))
        )
    ours = count(family.abstract(FAMILY, config))
    # transformers 5 ties every head that it makes.
    own_head = 0 if config.tied_head else config.vocab_size * config.width
    assert ours == sum(parameter.numel() for parameter in reference.parameters()) + own_head
    encoder = [*reference.shared.parameters(), *reference.encoder.block.parameters()]
    expected = sum(parameter.numel() for parameter in encoder) + config.width
    assert count(family.abstract(ENCODER_FAMILY, ENCODER_VARIANTS[name])) == expected
    if published:
        np.testing.assert_allclose(ours, published, rtol=1e-4)


def draw(config: T5Config) -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), family.abstract(FAMILY, config)
    )


@pytest.fixture(scope="module")
def given() -> tuple[jax.Array, ...]:
    """A source of 6 and one of 4 tokens; texts of 5 tokens, the second padded on the left by 2."""
    rng = np.random.default_rng(0)
    source_mask = np.arange(6)[None, :] < np.array([[6], [4]])
    mask = np.arange(5)[None, :] >= np.array([[0], [2]])
    ids = [rng.integers(1, 40, m.shape) * m for m in (source_mask, mask)]
    return tuple(map(jnp.asarray, (ids[0], source_mask, ids[1], mask)))


def test_step_by_step_equals_the_whole_text(given):
    """A prompt of three slots, then two steps; logits of real tokens are those of one pass without a cache."""
    variables = draw(MICRO)
    source_ids, source_mask, ids, mask = given

    @jax.jit
    def whole(variables):
        source = family.apply(FAMILY, MICRO, variables, source_ids, source_mask, method="encode")
        return source, family.apply(FAMILY, MICRO, variables, *given)

    @jax.jit
    def decode(variables, ids, mask, cache, **source):
        return family.apply(FAMILY, MICRO, variables, ids, mask, method="decode", cache=cache, **source)

    source, expected = whole(variables)
    empty = make_cache(MICRO.cache_shape, 2, 7, jnp.float32)
    first, cache = decode(variables, ids[:, :3], mask[:, :3], empty, source=source, source_mask=source_mask)
    steps = [first]
    for i in (3, 4):
        step, cache = decode(variables, ids[:, i : i + 1], mask[:, i : i + 1], cache)
        steps.append(step)
    real = np.asarray(mask)
    np.testing.assert_allclose(np.concatenate(steps, axis=1)[real], np.asarray(expected)[real], atol=1e-4)
    assert int(cache.text.length) == 5


@pytest.mark.parametrize("config", [pytest.param(MICRO, marks=pytest.mark.slow), TIED], ids=["flan", "first"])
def test_states_and_the_head_make_the_logits(config, given):
    variables = draw(config)

    @jax.jit
    def run(variables):
        outputs = ("states", "last", "logits")
        return [family.apply(FAMILY, config, variables, *given, output=output) for output in outputs]

    states, last, logits = run(variables)
    np.testing.assert_array_equal(last, states[:, -1])
    kernel, is_table = head_kernel(config, variables["params"])
    np.testing.assert_allclose(states @ (kernel.T if is_table else kernel), logits, rtol=1e-5, atol=1e-5)


def test_the_encoder_by_itself_is_a_part_of_the_whole(given):
    alone, variables, (ids, mask) = encoder_config(MICRO), draw(MICRO), given[:2]

    @jax.jit
    def run(variables):
        params = {name: variables["params"][name] for name in ("token_embed", "encoder")}
        part = {"params": params}
        return (
            family.apply(FAMILY, MICRO, variables, ids, mask, method="encode"),
            family.apply(ENCODER_FAMILY, alone, part, ids, mask, output="states"),
            family.apply(ENCODER_FAMILY, alone, part, ids, mask),
        )

    whole, states, mean = run(variables)
    np.testing.assert_allclose(states, whole, atol=1e-6)
    expected = [np.mean(np.asarray(states[row, : np.sum(mask[row])]), axis=0) for row in range(2)]
    np.testing.assert_allclose(mean, expected, atol=1e-6)


@pytest.mark.slow
def test_dropout_draws_in_training(given):
    @jax.jit
    def run(variables, key):
        return family.apply(FAMILY, MICRO, variables, *given, train=True, rngs={"dropout": key})

    variables = draw(MICRO)
    first, second = (run(variables, jax.random.key(seed)) for seed in (0, 1))
    assert not np.allclose(first, second)


def test_buckets_that_cannot_be_are_refused():
    for change in ({"num_buckets": 7}, {"max_distance": 16}):
        with pytest.raises(UserError, match="must be even and its half less than max_distance"):
            dataclasses.replace(NANO, **change)


def test_a_decoder_without_a_source_is_refused(given):
    with pytest.raises(UserError, match="give states with the prompt"):
        family.apply(FAMILY, MICRO, draw(MICRO), *given[2:], method="decode")
