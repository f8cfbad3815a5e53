"""The contrastive captioner's own parts against PyTorch's layers, and what each half of its decoder may see."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.audio.audio_mae import AudioMaeConfig
from alm_jax.encoders.family import apply, init
from alm_jax.errors import UserError
from alm_jax.models import caption_decoder
from alm_jax.models.caption_decoder import CaptionDecoderConfig
from alm_jax.models.contrastive_captioner import ContrastiveCaptionerConfig
from alm_jax.models.generation import generate
from alm_jax.models.patch_decoders import GlobalDecoderConfig
from alm_jax.nn.attentional_pooler import AttentionalPooler
from alm_jax.ops.frontends import AstSpec, ClapSpec, ClipSpec

FAMILY = caption_decoder.FAMILY
WIDTH, HEADS, LAYERS, LENGTH, ROWS, SOURCE = 16, 2, 2, 6, 3, 4
CONFIG = CaptionDecoderConfig(
    vocab_size=40,
    width=WIDTH,
    num_unimodal_layers=LAYERS,
    num_multimodal_layers=LAYERS,
    num_heads=HEADS,
    mlp_dim=24,
    max_positions=20,
    kernel_init="fan_in",
)
read = jax.jit(functools.partial(apply, FAMILY, CONFIG), static_argnames=("method", "output"))


@pytest.fixture(scope="module")
def variables():
    """Random everywhere, biases and scales too."""
    rng = np.random.default_rng(1)
    drawn = init(FAMILY, CONFIG, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.5 * rng.standard_normal(leaf.shape, np.float32), drawn)


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH) < np.array([[6], [4], [1]])
    ids = np.where(mask, rng.integers(2, 40, (ROWS, LENGTH)), 1).astype(np.int32)
    audio = rng.standard_normal((ROWS, SOURCE, WIDTH)).astype(np.float32)
    return jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(audio)


def to_torch(array) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float64)


def set_linear(weight, bias, dense, num_inputs):
    """A kernel [inputs..., outputs...] as PyTorch's [outputs, inputs]."""
    with torch.no_grad():
        weight.copy_(to_torch(dense["kernel"]).reshape(num_inputs, -1).T)
        if bias is not None:
            bias.copy_(to_torch(dense["bias"]).reshape(-1))


def set_norm(norm, params):
    with torch.no_grad():
        norm.weight.copy_(to_torch(params["scale"]))
        norm.bias.copy_(to_torch(params["bias"]))


def set_layer(layer, params):
    """A norm-first layer of PyTorch's with one of our blocks' weights."""
    set_linear(
        layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias, params["attention"]["qkv"], WIDTH
    )
    out = params["attention"]["out"]
    set_linear(layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias, out, WIDTH)
    set_linear(layer.linear1.weight, layer.linear1.bias, params["mlp"]["up"], WIDTH)
    set_linear(layer.linear2.weight, layer.linear2.bias, params["mlp"]["down"], 24)
    set_norm(layer.norm1, params["attention_norm"])
    if "cross_attention" not in params:
        set_norm(layer.norm2, params["mlp_norm"])
        return
    set_norm(layer.norm2, params["cross_norm"])
    set_norm(layer.norm3, params["mlp_norm"])
    cross = layer.multihead_attn
    parts = [params["cross_attention"]["query"], params["key"], params["value"]]
    joined = {name: np.stack([np.asarray(part[name]) for part in parts], -3 if name == "kernel" else 0)
              for name in ("kernel", "bias")}  # fmt: skip
    set_linear(cross.in_proj_weight, cross.in_proj_bias, joined, WIDTH)
    set_linear(cross.out_proj.weight, cross.out_proj.bias, params["cross_attention"]["out"], WIDTH)


def test_both_halves_equal_pytorch_s_norm_first_layers(variables, text):
    """In float64: an encoder's layers under a causal mask, then a decoder's with the audio as memory."""
    ids, mask, audio = text
    params = jax.tree.map(np.asarray, variables["params"])
    settings = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    settings |= {"layer_norm_eps": CONFIG.layer_norm_eps, "dtype": torch.float64}
    real = np.pad(np.asarray(mask), ((0, 0), (0, 1)), constant_values=True)
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    x = params["token_embed"]["embedding"][np.asarray(ids)]
    last = np.broadcast_to(params["class_embed"], (ROWS, 1, WIDTH))
    x = to_torch(np.concatenate([x, last], axis=1) + params["position_embed"]["embedding"][positions])
    hidden = torch.triu(torch.ones(LENGTH + 1, LENGTH + 1, dtype=torch.bool), 1)
    padding = torch.tensor(~real)
    with torch.no_grad():
        for number in range(LAYERS):
            layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 24, **settings).eval()
            set_layer(layer, jax.tree.map(lambda leaf, number=number: leaf[number], params["unimodal"]))
            x = layer(x, src_mask=hidden, src_key_padding_mask=padding)
        states, summary = x, torch.nn.LayerNorm(WIDTH, dtype=torch.float64)
        set_norm(summary, params["text_norm"])
        summary = summary(states[:, -1])
        for number in range(LAYERS):
            layer = torch.nn.TransformerDecoderLayer(WIDTH, HEADS, 24, **settings).eval()
            both = params["multimodal"] | params["cross_key_value"]
            set_layer(layer, jax.tree.map(lambda leaf, number=number: leaf[number], both))
            x = layer(x, to_torch(audio), tgt_mask=hidden, tgt_key_padding_mask=padding)
        norm = torch.nn.LayerNorm(WIDTH, dtype=torch.float64)
        set_norm(norm, params["norm"])
        logits = norm(x)[:, :-1] @ to_torch(params["token_embed"]["embedding"]).T

    ours = read(variables, ids, mask, method="read")
    real_tokens = torch.tensor(real)
    np.testing.assert_allclose(ours[real], states[real_tokens].numpy(), atol=1e-4)
    np.testing.assert_allclose(read(variables, ours, method="summarise"), summary.numpy(), atol=1e-4)
    written = read(variables, audio, ids, mask)
    counted = np.asarray(mask)
    np.testing.assert_allclose(written[counted], logits[torch.tensor(counted)].numpy(), atol=1e-4)


def test_the_pooler_equals_pytorch_s_attention():
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.standard_normal((ROWS, 5, 10)), jnp.float32)
    mask = jnp.asarray(np.arange(5) < np.array([[5], [3], [1]]))
    pooler = AttentionalPooler(3, WIDTH, HEADS, jnp.dtype("float32"), jax.nn.initializers.normal(0.5))
    drawn = jax.jit(pooler.init)(jax.random.key(0), states, mask)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, nn.unbox(drawn)["params"])
    reference = torch.nn.MultiheadAttention(
        WIDTH, HEADS, kdim=10, vdim=10, batch_first=True, dtype=torch.float64
    ).eval()
    biases = [params["attention"]["query"]["bias"]]
    for name in ("key", "value"):
        kernel = {"kernel": params["key_value"][name]["kernel"][0]}
        set_linear(getattr(reference, f"{name[0]}_proj_weight"), None, kernel, 10)
        biases.append(params["key_value"][name]["bias"][0])
    set_linear(reference.q_proj_weight, None, params["attention"]["query"], WIDTH)
    set_linear(reference.out_proj.weight, reference.out_proj.bias, params["attention"]["out"], WIDTH)
    norms = {name: torch.nn.LayerNorm(size, dtype=torch.float64)
             for name, size in (("query_norm", WIDTH), ("states_norm", 10), ("norm", WIDTH))}  # fmt: skip
    for name, norm in norms.items():
        set_norm(norm, params[name])
    with torch.no_grad():
        reference.in_proj_bias.copy_(to_torch(np.concatenate([bias.reshape(-1) for bias in biases])))
        query = norms["query_norm"](to_torch(params["queries"])).expand(ROWS, -1, -1)
        encoded = norms["states_norm"](to_torch(states))
        expected, _ = reference(query, encoded, encoded, key_padding_mask=~torch.tensor(np.asarray(mask)))
        expected = norms["norm"](expected)
    actual = jax.jit(pooler.apply)({"params": params}, states, mask)
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)


def _unbox(tree):
    return jax.tree.map(
        lambda leaf: leaf.unbox(),
        tree,
        is_leaf=lambda leaf: hasattr(leaf, "unbox") and hasattr(leaf, "names"),
    )


def test_tokens_see_what_is_before_them_and_the_class_token_everything(variables, text):
    ids, mask, audio = text
    states = np.asarray(read(variables, ids, mask, method="read"))
    other = np.asarray(read(variables, ids.at[0, 3].set(39), mask, method="read"))
    np.testing.assert_array_equal(other[0, :3], states[0, :3])
    assert np.abs(other[0, [3, 4, 5, 6]] - states[0, [3, 4, 5, 6]]).max(axis=-1).min() > 1e-3
    # What lies under padding has no influence, on the class token neither.
    under = np.asarray(read(variables, jnp.where(mask, ids, 7), mask, method="read"))
    real = np.pad(np.asarray(mask), ((0, 0), (0, 1)), constant_values=True)
    np.testing.assert_array_equal(under[real], states[real])
    # The first half has not heard anything, the second one has, in every row its own audio.
    grounded = np.asarray(read(variables, states, mask, audio, method="ground"))
    louder = np.asarray(read(variables, states, mask, audio.at[1].add(1.0), method="ground"))
    np.testing.assert_array_equal(louder[[0, 2]], grounded[[0, 2]])
    assert np.abs(louder[1] - grounded[1]).max(axis=-1).min() > 1e-3


def test_greedy_captions_from_a_cache_are_those_without_one(variables, text):
    _, _, audio = text
    num_new = 5
    start = jnp.full((ROWS, 1), 3, jnp.int32)
    written = jax.jit(
        lambda audio: generate(
            FAMILY, CONFIG, variables, start, start > 0, num_new_tokens=num_new, end_id=-1, method="decode",
            source=audio,
        )
    )(audio)  # fmt: skip
    ids = jnp.pad(start, ((0, 0), (0, num_new)), constant_values=1)
    for at in range(num_new):
        mask = jnp.broadcast_to(jnp.arange(num_new + 1) <= at, ids.shape)
        logits = read(variables, audio, ids, mask)
        ids = ids.at[:, at + 1].set(jnp.argmax(logits[:, at], axis=-1))
    np.testing.assert_array_equal(written.ids, ids[:, 1:])
    assert len({tuple(row) for row in np.asarray(ids)}) == ROWS


AUDIO = AudioMaeConfig(
    num_frames=32, num_mels=16, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_dim=16
)
MODEL = ContrastiveCaptionerConfig(
    frontend=AstSpec(num_mels=16, padded_frames=32, clip=ClipSpec(clip_sec=0.3)),
    audio=AUDIO,
    text=CONFIG,
    caption_queries=2,
    embed_dim=8,
    patch_decoder=GlobalDecoderConfig(width=16, num_layers=1, num_heads=2, mlp_dim=16),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: dataclasses.replace(CONFIG, num_heads=3), "multiple of num_heads"),
        (lambda: dataclasses.replace(CONFIG, num_multimodal_layers=0), "at least one of each"),
        (lambda: dataclasses.replace(MODEL, caption_queries=0), "attends to one"),
        (lambda: dataclasses.replace(MODEL, audio=dataclasses.replace(AUDIO, num_mels=32)), "mel bins"),
        (
            lambda: dataclasses.replace(
                MODEL,
                audio=dataclasses.replace(htsat.NANO, num_mels=16),
                frontend=ClapSpec(num_mels=16, hop_samples=480, clip=ClipSpec(clip_sec=1.0)),
            ),
            "sees all of a clip",
        ),
    ],
)
def test_what_does_not_fit_says_what_to_change(change, message):
    with pytest.raises(UserError, match=message):
        change()


def test_a_text_that_is_too_long_is_refused(variables):
    with pytest.raises(UserError, match=r"text\.max_positions"):
        read(variables, jnp.zeros((1, 20), jnp.int32), jnp.ones((1, 20), bool), method="read")
