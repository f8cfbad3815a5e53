"""The Q-Former against transformers' BLIP-2 with the same random weights, and who sees whom."""

import functools
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

from alm_jax.errors import UserError
from alm_jax.models.q_former import QFormer, QFormerConfig, query_audio

CONFIG = QFormerConfig(num_queries=5, width=24, num_layers=4, num_heads=3, mlp_dim=40, dropout=0.0)
AUDIO_WIDTH, NUM_STATES, NUM_TOKENS = 16, 7, 6
AUDIO = np.random.default_rng(0).normal(size=(3, NUM_STATES, AUDIO_WIDTH)).astype(np.float32)
AUDIO_MASK = np.arange(NUM_STATES) < np.array([[7], [4], [1]])
ALL = np.ones_like(AUDIO_MASK)
"""transformers' cross-attention takes a mask of states beside queries alone, not beside queries and text."""
TEXT = np.random.default_rng(1).normal(size=(3, NUM_TOKENS, 24)).astype(np.float32)
TEXT_MASK = np.arange(NUM_TOKENS) < np.array([[6], [3], [5]])
MODULE = QFormer(CONFIG, jnp.dtype("float32"))


@pytest.fixture(scope="module")
def params():
    """Drawn wide, so that no branch is next to nothing; no norm is the identity."""
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), AUDIO, AUDIO_MASK, TEXT, TEXT_MASK)["params"]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(centre, 0.3, leaf.shape), jnp.float32)

    return jax.tree.map_with_path(draw, nn.unbox(shapes))


@pytest.fixture(scope="module")
def run(params):
    def apply(params, audio, mask, text, text_mask, reading="both"):
        return MODULE.apply({"params": params}, audio, mask, text, text_mask, reading=reading)

    compiled = jax.jit(apply, static_argnames="reading")
    return lambda *inputs, **options: np.asarray(compiled(params, *inputs, **options))


@pytest.fixture(scope="module")
def oracle(params):
    """transformers' model with these weights; it takes what goes into the first norm, and normalised audio."""
    shape = Blip2QFormerConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=40,
        encoder_hidden_size=AUDIO_WIDTH,
        cross_attention_frequency=2,
        use_qformer_text_input=True,
        attn_implementation="eager",
    )
    model = Blip2QFormerModel(shape).eval()
    state, width = {}, CONFIG.width

    def put(name, kernel, bias):
        state[f"{name}.weight"] = np.asarray(kernel).T
        state[f"{name}.bias"] = np.asarray(bias)

    def put_norm(name, norm):
        state[f"{name}.weight"], state[f"{name}.bias"] = np.asarray(norm["scale"]), np.asarray(norm["bias"])

    def put_out(name, out):
        put(f"{name}.output.dense", out["kernel"].reshape(-1, width), out["bias"])

    put_norm("layernorm", params["embed_norm"])
    for layer in range(4):
        group, index = divmod(layer, 2)
        block = jax.tree.map(operator.itemgetter(group), params["groups"][f"block_{index}"])
        name = f"encoder.layer.{layer}"
        qkv = block["attention"]["qkv"]
        for place, part in enumerate(("query", "key", "value")):
            kernel = qkv["kernel"][:, place].reshape(width, width)
            put(f"{name}.attention.attention.{part}", kernel, qkv["bias"][place].reshape(-1))
        put_out(f"{name}.attention", block["attention"]["out"])
        put_norm(f"{name}.attention.output.LayerNorm", block["attention_norm"])
        if index == 0:
            cross, key_value = block["cross_attention"], params["key_value"]
            sources = {
                "query": cross["query"],
                **{
                    part: jax.tree.map(operator.itemgetter(group), key_value[part])
                    for part in ("key", "value")
                },
            }
            for part, dense in sources.items():
                kernel = dense["kernel"].reshape(dense["kernel"].shape[0], width)
                put(f"{name}.crossattention.attention.{part}", kernel, dense["bias"].reshape(-1))
            put_out(f"{name}.crossattention", cross["out"])
            put_norm(f"{name}.crossattention.output.LayerNorm", block["cross_attention_norm"])
        for mlp, suffix in (("query_mlp", "_query"), ("mlp", "")):
            put(f"{name}.intermediate{suffix}.dense", block[mlp]["up"]["kernel"], block[mlp]["up"]["bias"])
            put(f"{name}.output{suffix}.dense", block[mlp]["down"]["kernel"], block[mlp]["down"]["bias"])
            put_norm(f"{name}.output{suffix}.LayerNorm", block[f"{mlp}_norm"])
    model.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=True)
    mean, deviation = AUDIO.mean(-1, keepdims=True), np.sqrt(AUDIO.var(-1, keepdims=True) + 1e-5)
    norm = params["audio_norm"]
    audio = torch.tensor((AUDIO - mean) / deviation * np.asarray(norm["scale"]) + np.asarray(norm["bias"]))
    queries = torch.tensor(np.asarray(params["queries"]))[None].expand(3, -1, -1)
    return model, queries, {"encoder_hidden_states": audio}


def test_queries_alone_equal_transformers(run, oracle, params):
    model, queries, audio = oracle
    with torch.no_grad():
        mask = torch.tensor(AUDIO_MASK).long()
        want = model(query_embeds=queries, encoder_attention_mask=mask, **audio).last_hidden_state.numpy()
    np.testing.assert_allclose(run(AUDIO, AUDIO_MASK, None, None), want, atol=1e-4)
    vectors = jax.jit(functools.partial(query_audio, CONFIG))(params, AUDIO, AUDIO_MASK)
    np.testing.assert_allclose(vectors, want, atol=1e-4)


def test_queries_and_text_that_see_each_other_equal_transformers(run, oracle):
    model, queries, audio = oracle
    mask = torch.tensor(np.concatenate([np.ones((3, 5), bool), TEXT_MASK], axis=1)).long()
    with torch.no_grad():
        embeds = torch.cat([queries, torch.tensor(TEXT)], dim=1)
        want = model(query_embeds=embeds, query_length=5, attention_mask=mask, **audio)
    found = run(AUDIO, ALL, TEXT, TEXT_MASK)
    real = mask.bool().numpy()
    np.testing.assert_allclose(found[real], want.last_hidden_state.numpy()[real], atol=1e-4)


def test_text_alone_equals_transformers(run, oracle):
    model, _, _ = oracle
    with torch.no_grad():
        mask = torch.tensor(TEXT_MASK).long()
        want = model(query_embeds=torch.tensor(TEXT), query_length=0, attention_mask=mask)
    found = run(None, None, TEXT, TEXT_MASK)
    np.testing.assert_allclose(found[TEXT_MASK], want.last_hidden_state.numpy()[TEXT_MASK], atol=1e-4)


def test_a_text_that_is_written_sees_queries_and_what_is_written_and_they_do_not_see_it(run, oracle):
    """transformers, told by a mask of pairs who sees whom."""
    model, queries, audio = oracle
    visible = np.zeros((3, 1, 11, 11), bool)
    visible[..., :5] = True
    visible[..., 5:, 5:] = np.tril(np.ones((6, 6), bool)) & TEXT_MASK[:, None, None, :]
    with torch.no_grad():
        embeds = torch.cat([queries, torch.tensor(TEXT)], dim=1)
        added = torch.where(torch.tensor(visible), 0.0, torch.finfo(torch.float32).min)
        options = {"query_length": 5, "attention_mask": added}
        want = model(query_embeds=embeds, **options, **audio).last_hidden_state.numpy()
    found = run(AUDIO, ALL, TEXT, TEXT_MASK, reading="causal")
    real = np.concatenate([np.ones((3, 5), bool), TEXT_MASK], axis=1)
    np.testing.assert_allclose(found[real], want[real], atol=1e-4)
    np.testing.assert_allclose(found[:, :5], run(AUDIO, ALL, None, None), atol=1e-5)
    later = TEXT.copy()
    later[:, 4, 0] += 3
    moved = run(AUDIO, ALL, later, TEXT_MASK, reading="causal")
    np.testing.assert_array_equal(moved[:, :9], found[:, :9])
    assert np.abs(moved[0, 9:] - found[0, 9:]).max(axis=1).min() > 1e-3


def test_padding_of_audio_is_not_heard(run):
    louder = np.where(AUDIO_MASK[:, :, None], AUDIO, 99).astype(np.float32)
    np.testing.assert_array_equal(run(louder, AUDIO_MASK, None, None), run(AUDIO, AUDIO_MASK, None, None))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 5}, "width 768"),
        ({"cross_every": 5}, "every 5th of 12 layers"),
        ({"num_queries": 0}, "0 queries"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        QFormerConfig(**wrong)
