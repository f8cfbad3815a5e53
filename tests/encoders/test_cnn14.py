"""CNN14: published sizes, the running statistics that training leaves in PyTorch, and what training adds.

That its numbers are those of the equations in PyTorch is shown by tests/interop/test_parity.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.encoders import family
from alm_jax.encoders.audio.cnn14 import AUDIOSET, FAMILY, FRONTENDS, NANO, Cnn14, Cnn14Config
from alm_jax.errors import UserError
from alm_jax.interop.cnn14 import CNN14_ARCHIVE
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.parity import load_oracle

FLOAT32 = jnp.dtype("float32")
MICRO = Cnn14Config(
    num_mels=8, channels=(4, 8), has_dropout=False, spec_augment_time_stripes=0, spec_augment_freq_stripes=0
)


def test_parameters_are_the_published_number():
    """Trainable ones of PANNs' `Cnn14` with its classifier: not the Fourier kernels and the mel bank."""
    shapes = family.abstract(FAMILY, AUDIOSET)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 80_753_615
    # The frozen ones belong to the front-end.
    spec = FRONTENDS["32k"]
    bins = spec.n_fft // 2 + 1
    assert 2 * bins * spec.n_fft + bins * spec.num_mels == 1_083_456


@pytest.fixture(scope="module")
def variables() -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32),
        family.abstract(FAMILY, MICRO),
    )


def test_training_normalises_and_moves_statistics_as_pytorch_over_the_real_rows():
    torch.manual_seed(0)
    oracle = load_oracle("cnn14").build(MICRO).train()
    arrays = {key: tensor.numpy().copy() for key, tensor in oracle.state_dict().items()}
    variables = arrays_to_variables(CNN14_ARCHIVE, MICRO, arrays)
    features = np.random.default_rng(0).normal(-40, 10, (4, 11, 8)).astype(np.float32)
    mask = np.array([True, True, True, False])
    with torch.no_grad():
        expected = oracle(torch.tensor(features[mask]))["clip"]
    train = jax.jit(
        lambda v, x: Cnn14(MICRO, FLOAT32).apply(
            v, x, train=True, row_mask=jnp.asarray(mask), mutable=["batch_stats"]
        )
    )
    actual, updated = train(variables, features)
    np.testing.assert_allclose(actual[mask], expected, atol=2e-5)
    moved = arrays_to_variables(
        CNN14_ARCHIVE,
        MICRO,
        {key: tensor.numpy() for key, tensor in oracle.state_dict().items()},
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        updated["batch_stats"],
        moved["batch_stats"],
    )


def test_training_drops_features_and_evaluation_does_not(variables):
    noisy = dataclasses.replace(MICRO, has_dropout=True)
    features = jnp.ones((2, 8, 8))

    @jax.jit
    def train(key):
        return Cnn14(noisy, FLOAT32).apply(
            variables, features, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]

    one, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert bool(jnp.any(one != other))
    # The last dropout is on the clip vector: half of it is gone.
    assert 0 < int(jnp.sum(one == 0)) < one.size


def test_tokens_are_the_last_map_in_time(variables):
    tokens = jax.jit(Cnn14(MICRO, FLOAT32, "tokens").apply)(variables, jnp.ones((2, 11, 8)))
    assert tokens.shape == (2, 5, 8)


def test_what_does_not_fit_is_refused(variables):
    with pytest.raises(UserError, match="at least 2 frames of 8"):
        Cnn14(MICRO, FLOAT32).apply(variables, jnp.zeros((1, 1, 8)))
    with pytest.raises(UserError, match="no classifier"):
        Cnn14(MICRO, FLOAT32, "logits").apply(variables, jnp.zeros((1, 4, 8)))
    with pytest.raises(UserError, match="less than one"):
        dataclasses.replace(NANO, num_mels=7)
