"""The two-tower model's free functions: what they promise, whatever the weights.

That the numbers are those of `transformers.ClapModel` is shown in tests/interop/test_clap_parity.py.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.encoders.audio import htsat
from alm_jax.encoders.text import bert
from alm_jax.errors import UserError
from alm_jax.models.two_towers import TWO_TOWERS, TwoTowersConfig, encode_audio, encode_text
from alm_jax.nn import parameter
from alm_jax.nn.norm import feature_moments
from alm_jax.ops.frontends import ClapSpec, ClipSpec

MICRO = TwoTowersConfig(
    frontend=ClapSpec(
        sample_rate_hz=8000,
        n_fft=256,
        hop_samples=80,
        num_mels=16,
        fmax_hz=4000.0,
        clip=ClipSpec(clip_sec=0.5),
    ),
    audio=htsat.HtsatConfig(
        spec_size=32,
        num_mels=16,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(1, 2),
        window_size=4,
        drop_path_rate=0.2,
        spec_augment_time_width=8,
        spec_augment_freq_width=4,
    ),
    text=bert.BertConfig(
        vocab_size=40, width=16, num_layers=2, num_heads=2, mlp_dim=32, max_positions=20, dropout=0.1
    ),
    embed_dim=12,
)
PLAIN = dataclasses.replace(
    MICRO,
    audio=dataclasses.replace(
        MICRO.audio, drop_path_rate=0.0, spec_augment_time_stripes=0, spec_augment_freq_stripes=0
    ),
    text=dataclasses.replace(MICRO.text, dropout=0.0),
)

# One block: for what compiles the gradient twice.
SMALL = dataclasses.replace(MICRO, audio=dataclasses.replace(MICRO.audio, depths=(1,), num_heads=(2,)))


def draw_variables(config: TwoTowersConfig) -> dict:
    """Variables drawn by NumPy: large enough that every example has its own embedding."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        return jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, TWO_TOWERS.abstract(config))


@pytest.fixture(scope="module")
def variables() -> dict:
    return draw_variables(MICRO)


@pytest.fixture(scope="module")
def features() -> jax.Array:
    """Unit scale, as the running statistics of `draw_variables` expect."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(6, 51, 16)), jnp.float32)


@pytest.fixture(scope="module")
def captions() -> tuple[jax.Array, jax.Array]:
    mask = np.arange(10)[None, :] < np.array([10, 2, 7, 5, 9, 3])[:, None]
    ids = np.where(mask, np.random.default_rng(2).integers(2, 40, mask.shape), 1)
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask)


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def encode(config, variables, features, text_ids, text_mask, *, train=False, key=None):
    """Both towers' embeddings."""
    audio_emb, _ = encode_audio(config, variables, features, train=train, key=key)
    return audio_emb, encode_text(config, variables, text_ids, text_mask, train=train, key=key)


@functools.partial(jax.jit, static_argnums=0)
def differentiate(config, variables, features, text_ids, text_mask, key):
    """A loss that tells every embedding apart, the embeddings, and its gradient in the parameters."""

    def loss(params):
        towers = {**variables, "params": params}
        audio_emb, _ = encode_audio(config, towers, features, train=True, key=key)
        text_emb = encode_text(config, towers, text_ids, text_mask, train=True, key=key)
        logits = jnp.exp(params["log_logit_scale"]) * audio_emb @ text_emb.T
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits))), (audio_emb, text_emb)

    (value, embeddings), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return value, embeddings, gradient


def test_embeddings_have_unit_length(variables, features, captions):
    for emb in encode(MICRO, variables, features, *captions):
        assert (emb.shape, emb.dtype) == ((6, 12), jnp.float32)
        np.testing.assert_allclose(jnp.linalg.norm(emb, axis=1), 1.0, atol=1e-6)
        assert float(jnp.min(jnp.linalg.norm(emb[:1] - emb[1:], axis=1))) > 0.01


def test_an_example_is_embedded_the_same_wherever_it_stands(variables, features, captions):
    order = np.array([3, 0, 5, 1, 4, 2])
    expected = encode(MICRO, variables, features, *captions)
    moved = encode(MICRO, variables, features[order], captions[0][order], captions[1][order])
    for one, two in zip(expected, moved, strict=True):
        np.testing.assert_allclose(one[order], two, atol=1e-6)


def test_gradient_reaches_every_parameter(variables, features, captions):
    _, _, gradient = differentiate(PLAIN, variables, features, *captions, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert bool(jnp.all(jnp.isfinite(leaf))), path
        assert float(jnp.max(jnp.abs(leaf))) > 1e-7, path


@pytest.mark.slow
def test_rematerialisation_changes_neither_value_nor_gradient(features, captions):
    """With dropout, stochastic depth and SpecAugment on: the second forward pass draws the same masks."""
    key, variables = jax.random.key(0), draw_variables(SMALL)
    value, _, gradient = differentiate(SMALL, variables, features, *captions, key)
    remat = dataclasses.replace(SMALL, remat="block")
    remat_value, _, remat_gradient = differentiate(remat, variables, features, *captions, key)
    np.testing.assert_allclose(remat_value, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), remat_gradient, gradient)


@pytest.mark.parametrize("remat", ["none", "block"])
def test_every_block_is_rematerialised_where_asked(variables, features, captions, remat):
    config = dataclasses.replace(PLAIN, remat=remat)
    audio = jax.make_jaxpr(lambda v: encode_audio(config, v, features))(variables)
    text = jax.make_jaxpr(lambda v: encode_text(config, v, *captions))(variables)
    # Three Swin blocks, and the body of the scan over text blocks.
    expected = (3, 1) if remat == "block" else (0, 0)
    assert (str(audio).count("remat2["), str(text).count("remat2[")) == expected


def test_bfloat16_is_close_and_float32_where_it_counts(variables, features, captions):
    half = dataclasses.replace(PLAIN, compute_dtype="bfloat16")
    _, exact, _ = differentiate(PLAIN, variables, features, *captions, jax.random.key(0))
    _, rounded, gradient = differentiate(half, variables, features, *captions, jax.random.key(0))
    for one, two in zip(exact, rounded, strict=True):
        assert two.dtype == jnp.float32
        # Measured 0.9994: eight bits of mantissa through three blocks.
        assert float(jnp.min(jnp.sum(one * two, axis=1))) > 0.998
    for leaf in jax.tree.leaves(gradient):
        assert leaf.dtype == jnp.float32
        assert bool(jnp.all(jnp.isfinite(leaf)))


def test_padding_rows_are_finite_forward_and_backward(variables, features, captions):
    ids, mask = captions[0].at[0].set(1), captions[1].at[0].set(False)
    value, _, gradient = differentiate(
        PLAIN, variables, features.at[0].set(0.0), ids, mask, jax.random.key(0)
    )
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in [value, *jax.tree.leaves(gradient)])


def test_micro_batches_with_the_moments_of_the_whole_equal_the_whole(variables, features):
    @jax.jit
    def embed(features, moments):
        return encode_audio(PLAIN, variables, features, train=True, moments=moments)

    mask = jnp.asarray([True] * 5 + [False])
    whole, whole_stats = jax.jit(lambda x: encode_audio(PLAIN, variables, x, train=True, mask=mask))(features)
    moments = feature_moments(features, mask)
    parts = [embed(features[i : i + 2], moments) for i in (0, 2, 4)]
    np.testing.assert_allclose(np.concatenate([emb for emb, _ in parts])[:5], whole[:5], atol=1e-5)
    for _, stats in parts:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, whole_stats)


def test_init_is_a_function_of_the_key():
    tiny = dataclasses.replace(
        PLAIN, audio=dataclasses.replace(PLAIN.audio, depths=(1,), num_heads=(1,)), embed_dim=4
    )
    one, again, other = (TWO_TOWERS.init(tiny, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    np.testing.assert_allclose(one["params"]["log_logit_scale"], np.log(1 / 0.07), rtol=1e-6)
    np.testing.assert_array_equal(one["batch_stats"]["audio"]["feature_norm"]["var"], 1.0)
    kernels = [
        (a, b)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one["params"]), jax.tree.leaves(other["params"]), strict=True
        )
        if path[-1].key in ("kernel", "embedding", "relative_position_bias")
    ]
    assert len(kernels) == 18
    assert not any(bool(jnp.any(a == b)) for a, b in kernels)
    expected, actual = TWO_TOWERS.abstract(tiny), jax.tree.map(jax.typeof, one)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), expected, actual
    )


FULL_SIZE = [("tiny", "roberta_base"), ("base", "bert_base"), ("large", "roberta_base"), ("nano", "nano")]


@pytest.fixture(params=FULL_SIZE, ids="-".join)
def full_size(request) -> TwoTowersConfig:
    audio, text = request.param
    frontend = ClapSpec(clip=ClipSpec(clip_sec=10.0 if audio != "nano" else 2.0))
    return TwoTowersConfig(frontend=frontend, audio=htsat.VARIANTS[audio], text=bert.VARIANTS[text])


def test_every_axis_of_every_parameter_has_a_name(full_size):
    known = set(re.findall(r"\w+", parameter.__doc__))
    shapes = TWO_TOWERS.abstract(full_size)["params"]
    axes = TWO_TOWERS.axes(full_size)
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_names) == jax.tree.structure(shapes)
    for (path, names), leaf in zip(
        jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_names), jax.tree.leaves(shapes), strict=True
    ):
        assert len(names) == leaf.ndim, path
        assert len(set(names)) == len(names), path
        assert set(names) <= known, path


def test_one_name_is_one_size_within_a_layer_of_text(full_size):
    """Names carry meaning: wherever the text tower says "embed", it is the width."""
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    sizes: dict[str, set[int]] = {}
    shapes, axes = TWO_TOWERS.abstract(full_size)["params"]["text"], TWO_TOWERS.axes(full_size)["text"]
    for names, leaf in zip(jax.tree.leaves(axes, is_leaf=is_names), jax.tree.leaves(shapes), strict=True):
        for name, size in zip(names, leaf.shape, strict=True):
            sizes.setdefault(name, set()).add(size)
    assert all(len(found) == 1 for found in sizes.values()), sizes


def test_the_published_model_has_its_published_size():
    config = TwoTowersConfig(
        frontend=ClapSpec(clip=ClipSpec(clip_sec=10.0)), audio=htsat.TINY, text=bert.ROBERTA_BASE
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(TWO_TOWERS.abstract(config)["params"]))
    np.testing.assert_allclose(count, 153.49e6, atol=0.01e6)


@pytest.mark.parametrize(
    ("frontend", "match"),
    [({"num_mels": 20}, "20 mel bins"), ({"clip": ClipSpec(clip_sec=1.0)}, "101 frames")],
)
def test_parts_that_do_not_fit_are_refused(frontend, match):
    with pytest.raises(UserError, match=match):
        dataclasses.replace(MICRO, frontend=dataclasses.replace(MICRO.frontend, **frontend))
