"""AST: what is special to it. Equality with transformers is in alm_jax/interop/ast.py's PARITY."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders import family
from alm_jax.encoders.audio.ast import FAMILY, NANO, VARIANTS, Ast, AstConfig
from alm_jax.errors import UserError
from alm_jax.interop.ast import write_ast_config

MICRO = AstConfig(
    num_frames=80, num_mels=32, width=16, num_layers=2, num_heads=2, mlp_dim=32, layer_norm_eps=1e-6
)
FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("base", 86.19e6),
        ("audioset_10_10", None),
        ("audioset_16_16", None),
        ("speech_commands_v2", None),
        ("nano", None),
    ],
)
def test_every_variant_has_the_parameters_of_the_reference(name, published):
    config = VARIANTS[name]
    fields = write_ast_config(config)
    theirs = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    kind = transformers.ASTModel if config.num_classes is None else transformers.ASTForAudioClassification
    with torch.device("meta"):
        reference = kind(theirs)
    ours = sum(leaf.size for leaf in jax.tree.leaves(family.abstract(FAMILY, config)["params"]))
    assert ours == sum(parameter.numel() for parameter in reference.parameters())
    if published:
        np.testing.assert_allclose(ours, published, rtol=2e-4)


def test_the_published_grids():
    grids = {name: config.grid for name, config in VARIANTS.items()}
    assert grids["base"] == grids["audioset_10_10"] == (12, 101)
    assert grids["audioset_16_16"] == (8, 64)
    assert dataclasses.replace(VARIANTS["base"], num_frames=512).grid == (12, 50)


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), family.abstract(FAMILY, MICRO)
    )


def test_padding_changes_nothing(variables):
    """A clip of 46 frames alone, and followed by anything under the mask, alone and among others."""
    features = jnp.asarray(np.random.default_rng(1).normal(size=(3, 80, 32)), jnp.float32)
    real = jnp.arange(80)[None, :] < jnp.asarray([[80], [46], [30]])
    filled = jnp.where(real[:, :, None], features, 77.0)
    draw = jax.jit(lambda features, mask: Ast(MICRO, FLOAT32).apply(variables, features, mask=mask))
    clips = draw(filled, real)
    alone = jax.jit(lambda features: Ast(MICRO, FLOAT32).apply(variables, features))(features[1:2, :46])
    np.testing.assert_allclose(clips[1], alone[0], atol=1e-5)
    order = jnp.asarray([2, 0, 1])
    np.testing.assert_allclose(draw(filled[order], real[order]), clips[order], atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 90, 32), (1, 15, 32), (1, 80, 30)])
def test_features_that_do_not_fit_are_refused(variables, shape):
    with pytest.raises(UserError, match="16 to 80 frames of 32"):
        Ast(MICRO, FLOAT32).apply(variables, jnp.zeros(shape))


def test_logits_without_classes_and_shapes_that_do_not_fit_are_refused(variables):
    with pytest.raises(UserError, match="no classifier"):
        Ast(MICRO, FLOAT32, "logits").apply(variables, jnp.zeros((1, 80, 32)))
    with pytest.raises(UserError, match="multiple of num_heads"):
        dataclasses.replace(NANO, num_heads=3)
    with pytest.raises(UserError, match="hold no patch"):
        dataclasses.replace(NANO, num_frames=12)
