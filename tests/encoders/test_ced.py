"""CED: published sizes, chunks of long inputs, padding, and the config of an archive.

That its numbers are those of the equations in PyTorch is shown by tests/interop/test_parity.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.encoders import family
from alm_jax.encoders.audio.ced import FAMILY, MINI, VARIANTS, Ced, CedConfig
from alm_jax.errors import UserError
from alm_jax.interop.ced import CED_ARCHIVE
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.parity import load_oracle

FLOAT32 = jnp.dtype("float32")
MICRO = CedConfig(chunk_frames=18, num_mels=8, patch_size=4, width=8, num_layers=1, num_heads=2, mlp_dim=16)


@pytest.mark.parametrize(("name", "published"), [
    ("base_audioset", 86e6), ("small_audioset", 22e6), ("mini_audioset", 9.6e6), ("tiny_audioset", 5.5e6),
])  # fmt: skip
def test_full_sizes_have_the_parameters_of_the_oracle_and_of_the_paper(name, published):
    config = VARIANTS[name]
    with torch.device("meta"):
        oracle = load_oracle("ced").Ced(config)
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, config)["params"]))
    assert ours == sum(parameter.numel() for parameter in oracle.parameters())
    np.testing.assert_allclose(ours, published, rtol=0.02)


def test_an_archive_says_its_config():
    config = dataclasses.replace(MINI, num_layers=2, num_classes=7)
    arrays = {key: tensor.numpy() for key, tensor in load_oracle("ced").build(config).state_dict().items()}
    assert CED_ARCHIVE.infer_config(
        {key: array.shape for key, array in arrays.items()}
    ) == dataclasses.replace(config, compat=True)
    back = variables_to_arrays(CED_ARCHIVE, config, arrays_to_variables(CED_ARCHIVE, config, arrays))
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array, strict=True, err_msg=key)


@pytest.fixture(scope="module")
def variables() -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(rng.normal(size=leaf.shape)), jnp.float32),
        family.abstract(FAMILY, MICRO),
    )


@pytest.fixture(scope="module")
def run(variables):
    return jax.jit(lambda features, mask: Ced(MICRO, FLOAT32, "tokens").apply(variables, features, mask=mask))


def test_chunks_of_a_recording_are_encoded_apart_and_stay_together(run):
    features = jnp.asarray(np.random.default_rng(1).normal(size=(2, 36, 8)), jnp.float32)
    tokens = run(features, None)
    assert tokens.shape == (2, 2 * 2 * 4, 8)
    for row in range(2):
        parts = run(features[row].reshape(2, 18, 8), None)
        np.testing.assert_allclose(tokens[row], parts.reshape(-1, 8), atol=1e-5)


def test_padding_has_no_say(variables):
    """Of three chunks the second row's audio fills one and part of the second."""
    features = jnp.asarray(np.random.default_rng(2).normal(size=(2, 45, 8)), jnp.float32)
    mask = jnp.arange(45)[None] < jnp.asarray([[45], [26]])

    @jax.jit
    def encode(features, mask):
        return Ced(MICRO, FLOAT32).apply(variables, features, mask=mask)

    padded = encode(features, mask)
    alone = encode(features[1:, :36].at[:, 26:].set(7.0), mask[1:, :36])
    np.testing.assert_allclose(padded[1], alone[0], atol=1e-5)
    assert float(jnp.max(jnp.abs(encode(features, jnp.ones_like(mask))[1] - alone[0]))) > 1e-2


def test_a_last_full_chunk_is_lost_as_published(variables):
    features = jnp.asarray(np.random.default_rng(5).normal(-20, 5, size=(1, 36, 8)), jnp.float32)
    compat = Ced(dataclasses.replace(MICRO, compat=True), FLOAT32)
    whole, first = (Ced(MICRO, FLOAT32).apply(variables, x) for x in (features, features[:, :18]))
    np.testing.assert_allclose(compat.apply(variables, features), first, atol=1e-6)
    assert float(jnp.max(jnp.abs(whole - first))) > 1e-3


def test_training_moves_the_statistics_by_a_hundredth(variables):
    features = jnp.asarray(np.random.default_rng(3).normal(-20, 5, size=(2, 18, 8)), jnp.float32)
    train = jax.jit(lambda x: Ced(MICRO, FLOAT32).apply(variables, x, train=True, mutable=["batch_stats"])[1])
    before = variables["batch_stats"]["feature_norm"]["mean"]
    after = train(features)["batch_stats"]["feature_norm"]["mean"]
    np.testing.assert_allclose(after, 0.99 * before + 0.01 * features.mean(axis=(0, 1)), atol=1e-5)


def test_what_does_not_fit_is_refused(variables):
    with pytest.raises(UserError, match="at least 4 frames of 8"):
        Ced(MICRO, FLOAT32).apply(variables, jnp.zeros((1, 3, 8)))
    with pytest.raises(UserError, match="no classifier"):
        Ced(MICRO, FLOAT32, "logits").apply(variables, jnp.zeros((1, 8, 8)))
    with pytest.raises(UserError, match="whole patches"):
        dataclasses.replace(MICRO, num_mels=9)
    with pytest.raises(UserError, match="num_heads"):
        dataclasses.replace(MICRO, num_heads=3)
