"""BERT and RoBERTa against transformers in PyTorch."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.text.bert import (
    BERT_BASE,
    NANO,
    ROBERTA_BASE,
    VARIANTS,
    Bert,
    BertConfig,
    compute_positions,
)
from alm_jax.errors import UserError

FLOAT32 = jnp.dtype("float32")
NANO_BERT = dataclasses.replace(NANO, positions="bert", num_token_types=2, layer_norm_eps=1e-12, pad_id=0)


def build_reference(config: BertConfig) -> torch.nn.Module:
    """RobertaModel or BertModel of that shape, in evaluation mode."""
    roberta = config.positions == "roberta"
    config_class = transformers.RobertaConfig if roberta else transformers.BertConfig
    model_class = transformers.RobertaModel if roberta else transformers.BertModel
    return model_class(
        config_class(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_dim,
            max_position_embeddings=config.max_positions,
            type_vocab_size=config.num_token_types,
            layer_norm_eps=config.layer_norm_eps,
            pad_token_id=config.pad_id,
            attn_implementation="eager",
        )
    ).eval()


def abstract(config: BertConfig) -> dict:
    ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.bool_)
    return nn.unbox(jax.eval_shape(Bert(config, FLOAT32).init, jax.random.key(0), ids, mask))


@pytest.mark.parametrize(
    ("name", "published"),
    [("roberta_base", 124.65e6), ("bert_base", 109.48e6), ("all_minilm_l6", 22.713e6), ("nano", None)],
)
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    with torch.device("meta"):
        reference = build_reference(VARIANTS[name])
    ours = sum(leaf.size for leaf in jax.tree.leaves(abstract(VARIANTS[name])))
    if VARIANTS[name].pooling == "mean":
        ours += sum(parameter.numel() for parameter in reference.pooler.parameters())
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    if published:
        np.testing.assert_allclose(ours, published, rtol=1e-4)


def load(config: BertConfig, reference: torch.nn.Module) -> dict:
    """Our parameters from the reference's, written out by hand (tests/interop holds the real converter)."""
    state = {key: value.detach().numpy() for key, value in reference.state_dict().items()}
    heads = (config.num_heads, config.width // config.num_heads)

    def stack(make) -> np.ndarray:
        return np.stack([make(f"encoder.layer.{i}") for i in range(config.num_layers)])

    def linear(name: str) -> dict:
        return {
            "kernel": stack(lambda layer: state[f"{layer}.{name}.weight"].T),
            "bias": stack(lambda layer: state[f"{layer}.{name}.bias"]),
        }

    def norm(name: str) -> dict:
        return {
            "scale": stack(lambda layer: state[f"{layer}.{name}.weight"]),
            "bias": stack(lambda layer: state[f"{layer}.{name}.bias"]),
        }

    qkv = [linear(f"attention.self.{name}") for name in ("query", "key", "value")]
    out = linear("attention.output.dense")
    layers = config.num_layers
    return {
        "token_embed": {"embedding": state["embeddings.word_embeddings.weight"]},
        "position_embed": {"embedding": state["embeddings.position_embeddings.weight"]},
        "type_embed": {"embedding": state["embeddings.token_type_embeddings.weight"]},
        "embed_norm": {
            "scale": state["embeddings.LayerNorm.weight"],
            "bias": state["embeddings.LayerNorm.bias"],
        },
        "blocks": {
            "attention": {
                "qkv": {
                    "kernel": np.stack([p["kernel"] for p in qkv], 2).reshape(
                        layers, config.width, 3, *heads
                    ),
                    "bias": np.stack([p["bias"] for p in qkv], 1).reshape(layers, 3, *heads),
                },
                "out": {"kernel": out["kernel"].reshape(layers, *heads, config.width), "bias": out["bias"]},
            },
            "attention_norm": norm("attention.output.LayerNorm"),
            "mlp": {"up": linear("intermediate.dense"), "down": linear("output.dense")},
            "mlp_norm": norm("output.LayerNorm"),
        },
        "pooler": {"kernel": state["pooler.dense.weight"].T, "bias": state["pooler.dense.bias"]},
    }


@pytest.mark.parametrize("config", [NANO, NANO_BERT], ids=["roberta", "bert"])
def test_pooled_output_equals_the_reference(config):
    reference = build_reference(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    params = jax.tree.map(jnp.asarray, load(config, reference))
    rng = np.random.default_rng(0)
    ids, mask = pad_randomly(config, rng)
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()
        ).pooler_output
    actual = jax.jit(Bert(config, FLOAT32).apply)({"params": params}, jnp.asarray(ids), jnp.asarray(mask))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def pad_randomly(config: BertConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Captions of 12, 5 and 8 tokens, padded behind."""
    mask = np.arange(12)[None, :] < np.array([[12], [5], [8]])
    ids = np.where(mask, rng.integers(5, config.vocab_size, mask.shape), config.pad_id)
    return ids.astype(np.int32), mask


MICRO = dataclasses.replace(NANO, vocab_size=40, width=16, num_heads=2, mlp_dim=32, max_positions=34)


@pytest.fixture(scope="module")
def params() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), abstract(MICRO)
    )


@pytest.mark.parametrize("fill", [MICRO.pad_id, 17])
def test_padding_changes_nothing(params, fill):
    """Neither its length nor the ids that lie under it."""
    ids, mask = pad_randomly(MICRO, np.random.default_rng(0))
    apply = jax.jit(Bert(MICRO, FLOAT32).apply)
    expected = apply(params, jnp.asarray(ids), jnp.asarray(mask))
    longer = np.pad(np.where(mask, ids, fill), ((0, 0), (0, 9)), constant_values=fill)
    actual = apply(params, jnp.asarray(longer), jnp.asarray(np.pad(mask, ((0, 0), (0, 9)))))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_padding_changes_no_gradient(params):
    """Of any parameter: a batch cut to a shorter bucket trains as the longer one does."""
    ids, mask = pad_randomly(MICRO, np.random.default_rng(0))
    longer = np.pad(ids, ((0, 0), (0, 9)), constant_values=MICRO.pad_id), np.pad(mask, ((0, 0), (0, 9)))

    def loss(params, ids, mask):
        return jnp.sum(jnp.sin(Bert(MICRO, FLOAT32).apply(params, ids, mask)))

    gradient = jax.jit(jax.value_and_grad(loss))
    expected, actual = gradient(params, jnp.asarray(ids), jnp.asarray(mask)), gradient(params, *longer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


def test_roberta_positions_count_real_tokens():
    mask = jnp.asarray([[True, True, True, False], [False, True, False, True]])
    np.testing.assert_array_equal(compute_positions(NANO, mask), [[2, 3, 4, 1], [1, 2, 1, 3]])
    np.testing.assert_array_equal(compute_positions(NANO_BERT, mask), [[0, 1, 2, 3], [0, 1, 2, 3]])


def test_dropout_acts_in_training_alone(params):
    ids, mask = map(jnp.asarray, pad_randomly(MICRO, np.random.default_rng(0)))
    model = Bert(MICRO, FLOAT32)
    apply = jax.jit(lambda key: model.apply(params, ids, mask, train=True, rngs={"dropout": key}))
    one, again, other = apply(jax.random.key(0)), apply(jax.random.key(0)), apply(jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.max(jnp.abs(one - other))) > 1e-3
    with pytest.raises(Exception, match="dropout"):
        model.apply(params, ids, mask, train=True)


def test_blocks_draw_different_initial_weights():
    ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.bool_)
    params = nn.unbox(jax.jit(Bert(MICRO, FLOAT32).init)(jax.random.key(0), ids, mask))["params"]
    kernel = params["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, 16, 32)
    assert not bool(jnp.any(kernel[0] == kernel[1]))
    np.testing.assert_allclose(jnp.std(kernel), MICRO.width**-0.5, rtol=0.1)
    published = dataclasses.replace(MICRO, kernel_init="normal")
    params = nn.unbox(jax.jit(Bert(published, FLOAT32).init)(jax.random.key(0), ids, mask))["params"]
    # A normal that is cut at two standard deviations has 0.88 of its spread left.
    np.testing.assert_allclose(jnp.std(params["blocks"]["mlp"]["up"]["kernel"]), 0.02 * 0.88, rtol=0.1)


def test_captions_that_do_not_fit_are_refused(params):
    length = MICRO.max_length + 1
    with pytest.raises(UserError, match=f"{length} tokens"):
        Bert(MICRO, FLOAT32).apply(params, jnp.ones((1, length), jnp.int32), jnp.ones((1, length), bool))


def test_the_longest_caption_of_each_style():
    assert (ROBERTA_BASE.max_length, BERT_BASE.max_length, NANO.max_length) == (512, 512, 64)


@pytest.mark.parametrize(
    ("changes", "match"), [({"num_heads": 3}, "multiple of num_heads"), ({"max_positions": 3}, "no room")]
)
def test_shapes_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(NANO, **changes)
