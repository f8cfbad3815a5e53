"""Connectors: the transformer mapper beside PyTorch, pooling beside NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch
from flax import linen as nn
from oracles.transformer_mapper import TransformerMapper

from alm_jax.errors import UserError
from alm_jax.models.connectors import (
    Connector,
    DirectConnectorConfig,
    LinearConnectorConfig,
    MapperConnectorConfig,
    MlpConnectorConfig,
    QFormerConnectorConfig,
    check_connector,
)
from alm_jax.models.q_former import QFormerConfig, query_audio

FLOAT32 = jnp.dtype("float32")


def test_the_mapper_equals_pytorch():
    config = MapperConnectorConfig(num_vectors=5, num_inputs=3, num_layers=2, num_heads=4, mlp_dim=32)
    torch.manual_seed(0)
    oracle = TransformerMapper(8, 16, 3, 5, 2, 4, 32)
    weights = {name: value.detach().numpy() for name, value in oracle.named_parameters()}

    def stack(name, reshape=lambda x: x):
        return np.stack([reshape(weights[f"layers.{i}.{name}"]) for i in range(2)])

    def join_qkv(i):
        queries = weights[f"layers.{i}.attn.to_queries.weight"].T.reshape(16, 1, 4, 4)
        return np.concatenate(
            [queries, weights[f"layers.{i}.attn.to_keys_values.weight"].T.reshape(16, 2, 4, 4)], axis=1
        )

    params = {
        "mapper": {
            "linear": {
                "kernel": weights["linear.weight"].T.reshape(8, 3, 16),
                "bias": weights["linear.bias"].reshape(3, 16),
            },
            "prefix": weights["prefix_const"],
            "blocks": {
                "attention_norm": {"scale": stack("norm1.weight"), "bias": stack("norm1.bias")},
                "mlp_norm": {"scale": stack("norm2.weight"), "bias": stack("norm2.bias")},
                "attention": {
                    "qkv": {"kernel": np.stack([join_qkv(i) for i in range(2)])},
                    "out": {
                        "kernel": stack("attn.project.weight", lambda x: x.T.reshape(4, 4, 16)),
                        "bias": stack("attn.project.bias"),
                    },
                },
                "mlp": {
                    "up": {"kernel": stack("mlp.fc1.weight", np.transpose), "bias": stack("mlp.fc1.bias")},
                    "down": {"kernel": stack("mlp.fc2.weight", np.transpose), "bias": stack("mlp.fc2.bias")},
                },
            },
        }
    }
    x = jax.random.normal(jax.random.key(0), (3, 8))
    params = jax.tree.map(jnp.asarray, params)
    connector = Connector(config, 16, FLOAT32)
    drawn = nn.unbox(connector.init(jax.random.key(0), x, None))["params"]
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)
    vectors, mask = connector.apply({"params": params}, x, None)
    with torch.no_grad():
        np.testing.assert_allclose(vectors, oracle(torch.from_numpy(np.array(x))), atol=1e-5)
    assert mask.shape == (3, 5)
    assert mask.all()


@pytest.mark.parametrize("kind", [LinearConnectorConfig, MlpConnectorConfig])
def test_states_are_pooled_and_projected_and_groups_with_padding_are_none(kind):
    options = {"mlp_dim": 6} if kind is MlpConnectorConfig else {}
    connector = Connector(kind(pool_size=2, **options), 4, FLOAT32)
    x = jax.random.normal(jax.random.key(0), (2, 7, 8))
    real = np.arange(7)[None] < np.array([[7], [3]])
    params = nn.unbox(connector.init(jax.random.key(0), x, jnp.asarray(real)))["params"]
    vectors, mask = connector.apply({"params": params}, x, jnp.asarray(real))
    params = jax.tree.map(np.asarray, params)
    y = np.asarray(x[:, :6], np.float64).reshape(2, 3, 2, 8).mean(axis=2)
    if kind is MlpConnectorConfig:
        y = y @ params["up"]["kernel"] + params["up"]["bias"]
        y = 0.5 * y * (1 + scipy.special.erf(y / np.sqrt(2)))
    layer = params["linear" if kind is LinearConnectorConfig else "down"]
    np.testing.assert_allclose(vectors, y @ layer["kernel"] + layer["bias"], atol=1e-6)
    np.testing.assert_array_equal(mask, [[True, True, True], [True, False, False]])


@pytest.mark.slow
def test_a_q_former_makes_as_many_vectors_of_any_clip():
    config = QFormerConfig(num_queries=3, width=8, num_layers=1, num_heads=2, mlp_dim=8, cross_every=1)
    connector = Connector(QFormerConnectorConfig(q_former=config), 4, FLOAT32)
    x, real = jax.random.normal(jax.random.key(0), (2, 5, 6)), jnp.arange(5)[None] < jnp.asarray([[5], [2]])
    params = nn.unbox(connector.init(jax.random.key(0), x, real))["params"]
    vectors, mask = connector.apply({"params": params}, x, real)
    layer = params["linear"]
    queried = np.asarray(query_audio(config, params["q_former"], x, real))
    np.testing.assert_allclose(
        vectors, queried @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), atol=1e-6
    )
    assert mask.shape == (2, 3)
    assert mask.all()


def test_what_cannot_be_connected_is_refused():
    with pytest.raises(UserError, match="8 wide and the language model 4"):
        Connector(DirectConnectorConfig(), 4, FLOAT32).apply({}, jnp.zeros((1, 2, 8)), jnp.ones((1, 2), bool))
    with pytest.raises(UserError, match="at least 1"):
        LinearConnectorConfig(pool_size=0)
    with pytest.raises(UserError, match="num_heads 8"):
        check_connector(MapperConnectorConfig(), 12)
