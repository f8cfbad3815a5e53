"""Packed clips are what they are alone; what does not belong to a clip never reaches it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.encoders import family
from alm_jax.encoders.audio.packed_vit import BASE, FAMILY, NANO, SMALL, PackedVitConfig
from alm_jax.errors import UserError

CONFIG = dataclasses.replace(
    NANO,
    num_frames=128,
    num_mels=32,
    width=32,
    num_heads=2,
    mlp_dim=64,
    clips_per_row=3,
    row_steps=12,
)
FRAMES = 100
REAL_FRAMES = np.array([33, 80, 5, 100, 16, 60])


@functools.cache
def make_apply(train: bool):
    return jax.jit(
        lambda variables, x, mask: family.apply(FAMILY, CONFIG, variables, x, mask=mask, train=train)
    )


@pytest.fixture(scope="module")
def variables():
    """Positions large enough to be missed."""
    variables = family.init(FAMILY, CONFIG, jax.random.key(0))
    grown = {name: variables["params"][name] * 20 for name in ("time_embed", "frequency_embed")}
    return {"params": {**variables["params"], **grown}}


@pytest.fixture(scope="module")
def clips():
    features = np.random.default_rng(0).normal(size=(6, FRAMES, 32)).astype(np.float32)
    return jnp.asarray(features), jnp.asarray(np.arange(FRAMES)[None, :] < REAL_FRAMES[:, None])


def test_packed_clips_equal_each_clip_alone(variables, clips):
    features, mask = clips
    packed = make_apply(True)(variables, features, mask)
    # Rows of 3 + 5 + 1 and of 7 + 1 + 4 steps: all fit into 12.
    apply = jax.jit(lambda variables, x: family.apply(FAMILY, CONFIG, variables, x))
    alone = jnp.concatenate([apply(variables, features[i : i + 1, :n]) for i, n in enumerate(REAL_FRAMES)])
    np.testing.assert_allclose(packed, alone, atol=2e-6)
    assert float(jnp.min(jnp.std(alone, axis=0))) > 1e-3


def test_neither_padding_nor_neighbours_are_heard(variables, clips):
    features, mask = clips
    loud = jnp.where(mask[:, :, None], features, 1e4)
    for train in (False, True):
        apply = make_apply(train)
        np.testing.assert_array_equal(apply(variables, loud, mask), apply(variables, features, mask))
    other = make_apply(True)(variables, features.at[1].mul(-3.0), mask)
    packed = make_apply(True)(variables, features, mask)
    np.testing.assert_allclose(other[np.array([0, 2])], packed[np.array([0, 2])], atol=1e-6)
    assert float(jnp.max(jnp.abs(other[1] - packed[1]))) > 0.1


def test_gradients_of_packed_clips_equal_those_of_each_alone(variables, clips):
    features, mask = clips
    target = jnp.asarray(np.random.default_rng(1).normal(size=(6, 32)), jnp.float32)

    def gradient(train):
        return jax.grad(lambda v: jnp.sum(make_apply(train)(v, features, mask) * target))(variables)

    packed, alone = gradient(True), gradient(False)
    for (path, one), two in zip(
        jax.tree_util.tree_leaves_with_path(packed), jax.tree.leaves(alone), strict=True
    ):
        scale = float(jnp.max(jnp.abs(two)))
        assert scale > 1e-6, path
        np.testing.assert_allclose(one, two, atol=1e-5 * scale, err_msg=str(path))


def test_clips_too_long_for_their_row_are_cut_at_their_end(variables, clips):
    features, _ = clips
    # Three clips of 7 steps in 12: each keeps the first 4 steps, 64 frames.
    packed = make_apply(True)(variables, features, jnp.ones((6, FRAMES), bool))
    alone = make_apply(False)(variables, features, jnp.asarray(np.arange(FRAMES) < 64)[None].repeat(6, 0))
    np.testing.assert_allclose(packed, alone, atol=2e-6)


def test_packing_costs_less_than_padding():
    """By the compiler's count of one forward pass: 8 clips of 5 s on average where the longest have 10 s."""
    config = PackedVitConfig(
        num_frames=1024, num_mels=64, width=128, num_layers=1, num_heads=4, mlp_dim=512, row_steps=144
    )

    def count(train):
        apply = functools.partial(family.apply, FAMILY, config)
        variables = family.abstract(FAMILY, config)
        x, mask = (
            jax.ShapeDtypeStruct((8, 1000, *rest), dtype)
            for rest, dtype in (((64,), jnp.float32), ((), bool))
        )
        lowered = jax.jit(lambda v, x, mask: apply(v, x, mask=mask, train=train)).lower(variables, x, mask)
        return lowered.cost_analysis()["flops"]

    def expect(num_rows, length):
        """Multiply-adds of the blocks and the patches, twice: 4 D^2 + 2 D M + 256 D a token, 2 D a pair of tokens."""
        a_token = 4 * 128**2 + 2 * 128 * 512 + 256 * 128
        return 2 * num_rows * (length * a_token + length**2 * 2 * 128)

    packed, padded = expect(2, 144 * 4), expect(8, 63 * 4)
    assert packed / padded < 0.75
    # Norms, softmax and the packing itself are the rest.
    assert count(True) == pytest.approx(packed, rel=0.05)
    assert count(False) == pytest.approx(padded, rel=0.05)


def test_sizes():
    """A ViT's blocks (Dosovitskiy et al. 2020), 256 pixels a patch, 192 steps and 8 bands."""
    for config, width, mlp_dim in ((BASE, 768, 3072), (SMALL, 384, 1536)):
        block = 4 * width**2 + 4 * width + 2 * width * mlp_dim + mlp_dim + width + 4 * width
        expected = 12 * block + 257 * width + (192 + 8) * width + 2 * width
        assert sum(x.size for x in jax.tree.leaves(family.abstract(FAMILY, config))) == expected


def test_what_does_not_fit_is_refused(clips):
    features, mask = clips
    variables = family.abstract(FAMILY, CONFIG)

    def trace(x, **options):
        jax.eval_shape(lambda v: family.apply(FAMILY, CONFIG, v, x, **options), variables)

    with pytest.raises(UserError, match="200 frames of 32 mel bins"):
        trace(jnp.zeros((3, 200, 32)))
    with pytest.raises(UserError, match="4 clips cannot be packed 3 to a row"):
        trace(features[:4], mask=mask[:4], train=True)
    with pytest.raises(UserError, match="rows of 2 steps cannot hold 3 clips"):
        dataclasses.replace(CONFIG, row_steps=2)
    with pytest.raises(UserError, match="multiples of patch_size 16"):
        dataclasses.replace(CONFIG, num_mels=40)
