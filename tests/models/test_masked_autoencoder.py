"""The masked autoencoder and its objective: ViT-MAE's loss, what is hidden stays hidden, accumulation, sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.audio.audio_mae import AudioMaeConfig, compute_positions
from alm_jax.errors import UserError
from alm_jax.interop.audio_mae import PRETRAINED
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.parity import randomise
from alm_jax.losses.reconstruction import masked_reconstruction, normalize_patches
from alm_jax.models.masked_autoencoder import MASKED_AUTOENCODER, MaskedAutoencoderConfig, reconstruct
from alm_jax.models.patch_decoders import GlobalDecoderConfig, LocalDecoderConfig
from alm_jax.ops.frontends import ClapSpec, ClipSpec
from alm_jax.ops.patch_masking import keep_lowest
from alm_jax.ops.patchify import patchify
from alm_jax.ops.positions import sincos_grid

ENCODER = AudioMaeConfig(
    num_frames=64, num_mels=64, patch_size=8, width=32, num_layers=2, num_heads=2, mlp_dim=48
)
FRONTEND = ClapSpec(
    sample_rate_hz=16000,
    n_fft=1024,
    hop_samples=256,
    num_mels=64,
    fmax_hz=8000.0,
    clip=ClipSpec(clip_sec=1.008),
)
GLOBAL = MaskedAutoencoderConfig(
    frontend=FRONTEND,
    encoder=ENCODER,
    decoder=GlobalDecoderConfig(width=16, num_layers=2, num_heads=2, mlp_dim=24),
)
LOCAL = dataclasses.replace(
    GLOBAL, decoder=LocalDecoderConfig(width=16, num_layers=4, num_heads=2, mlp_dim=24, bias_dim=8)
)


NAMES = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.layers.": "blocks.",
    "vit.layernorm.": "norm.",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_layers.": "decoder_blocks.",
    "decoder.decoder_": "decoder_",
    ".attention.o_proj": ".attn.proj",
    ".attention.q_proj": ".attn.qkv",
    ".layernorm_before": ".norm1",
    ".layernorm_after": ".norm2",
}
"""ViT-MAE's names of modules and AudioMAE's."""


def to_audio_mae(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ViT-MAE's state dict under AudioMAE's keys, query, key and value joined."""
    renamed = {}
    for key, array in arrays.items():
        if ".k_proj" in key or ".v_proj" in key:
            continue
        if ".q_proj" in key:
            others = [arrays[key.replace(".q_proj", f".{name}_proj")] for name in "kv"]
            array = np.concatenate([array, *others])
        for theirs, ours in NAMES.items():
            key = key.replace(theirs, ours)
        renamed[key] = array
    return renamed


def test_the_loss_is_vit_mae_s_given_the_same_weights_and_noise():
    torch.manual_seed(0)
    sizes = GLOBAL.decoder
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=64,
            patch_size=8,
            num_channels=1,
            hidden_size=ENCODER.width,
            num_hidden_layers=ENCODER.num_layers,
            num_attention_heads=ENCODER.num_heads,
            intermediate_size=ENCODER.mlp_dim,
            decoder_hidden_size=sizes.width,
            decoder_num_hidden_layers=sizes.num_layers,
            decoder_num_attention_heads=sizes.num_heads,
            decoder_intermediate_size=sizes.mlp_dim,
            layer_norm_eps=ENCODER.layer_norm_eps,
            mask_ratio=0.8,
            norm_pix_loss=True,
            attn_implementation="eager",
        )
    ).eval()
    randomise(theirs)
    # On a square grid; transformers lays rows and columns the other way round.
    with torch.no_grad():
        for target, positions in (
            (theirs.vit.embeddings.position_embeddings, compute_positions(ENCODER)),
            (theirs.decoder.decoder_pos_embed, sincos_grid(8, 8, sizes.width)),
        ):
            target.copy_(torch.as_tensor(np.pad(positions, ((1, 0), (0, 0)))[None]))
    rng = np.random.default_rng(0)
    features = rng.standard_normal((3, 64, 64)).astype(np.float32)
    noise = rng.random((3, 64)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.as_tensor(features)[:, None], noise=torch.as_tensor(noise))

    arrays = to_audio_mae({key: value.numpy() for key, value in theirs.state_dict().items()})
    variables = arrays_to_variables(PRETRAINED, GLOBAL, arrays)
    masked = keep_lowest(jnp.asarray(noise), 12)
    pixels = jax.jit(reconstruct, static_argnums=0)(GLOBAL, variables, features, masked)
    total, weight = masked_reconstruction(
        pixels, normalize_patches(patchify(jnp.asarray(features), 8)), masked.hidden
    )
    np.testing.assert_array_equal(masked.hidden, expected.mask.numpy().astype(bool))
    np.testing.assert_allclose(pixels, expected.logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(total / weight, expected.loss.item(), rtol=1e-5)


@pytest.mark.parametrize("config", [GLOBAL, LOCAL], ids=["global", "local"])
def test_an_archive_goes_in_and_out_bit_for_bit(config):
    config = dataclasses.replace(config, encoder=dataclasses.replace(ENCODER, compat=True))
    variables = jax.tree.map(np.asarray, MASKED_AUTOENCODER.init(config, jax.random.key(0)))
    arrays = variables_to_arrays(PRETRAINED, config, variables)
    back = variables_to_arrays(PRETRAINED, config, arrays_to_variables(PRETRAINED, config, arrays))
    assert back.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(back[key], value, strict=True)
    # Every element of ours is on disk once; the rest are the two tables of positions.
    stored = sum(array.size for key, array in arrays.items() if "pos_embed" not in key)
    assert stored == sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("config", [GLOBAL, LOCAL], ids=["global", "local"])
def test_what_is_hidden_is_neither_seen_nor_computed(config):
    variables = MASKED_AUTOENCODER.init(config, jax.random.key(0))
    features = jax.random.normal(jax.random.key(1), (2, 64, 64))
    masked = keep_lowest(jax.random.uniform(jax.random.key(2), (2, 64)), 12)
    hidden = jnp.repeat(jnp.repeat(masked.hidden.reshape(2, 8, 8), 8, axis=1), 8, axis=2)
    draw = jax.jit(reconstruct, static_argnums=0)
    pixels = draw(config, variables, features, masked)
    np.testing.assert_array_equal(draw(config, variables, jnp.where(hidden, 7.0, features), masked), pixels)
    seen = draw(config, variables, jnp.where(hidden, features, 7.0), masked)
    assert np.abs(seen - pixels).max() > 1e-3


def test_published_sizes():
    """The encoder counts as transformers' does, 85.25 M without positions; the local decoder as its equations say."""
    config = MaskedAutoencoderConfig()
    params = MASKED_AUTOENCODER.abstract(config)["params"]
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    width, mlp, heads, meta = 512, 2048, 16, 384
    block = (
        4 * width * width + 4 * width + 2 * width * mlp + mlp + width + 4 * width  # attention, MLP, norms
        + heads + 2 * meta + meta + meta * heads + heads  # temperature, bias network
    )  # fmt: skip
    ends = 768 * width + width + width + 2 * width + width * 256 + 256
    assert count["decoder"] == 16 * block + ends
    vit = transformers.ViTMAEConfig(num_channels=1)
    with torch.device("meta"):
        theirs = transformers.ViTMAEModel(vit)
    positions = theirs.embeddings.position_embeddings.numel()
    assert count["encoder"] == sum(p.numel() for p in theirs.parameters()) - positions


@pytest.mark.parametrize("config", [GLOBAL, LOCAL], ids=["global", "local"])
def test_recomputing_blocks_changes_nothing_and_every_parameter_learns(config):
    variables = MASKED_AUTOENCODER.init(config, jax.random.key(0))
    features = jax.random.normal(jax.random.key(1), (2, 64, 64))
    masked = keep_lowest(jax.random.uniform(jax.random.key(2), (2, 64)), 12)

    def grads(config):
        def loss(params):
            pixels = reconstruct(
                config, {"params": params}, features, masked, train=True, key=jax.random.key(3)
            )
            return jnp.mean(jnp.square(pixels - patchify(features, 8)))

        return jax.jit(jax.grad(loss))(variables["params"])

    plain, again = grads(config), grads(dataclasses.replace(config, remat="block"))
    # The sums of 64 patches in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)
    for path, grad in jax.tree.leaves_with_path(plain):
        assert np.abs(grad).max() > 0, path
    axes = MASKED_AUTOENCODER.axes(config)
    assert jax.tree.structure(axes, is_leaf=lambda leaf: isinstance(leaf, tuple)) == jax.tree.structure(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: dataclasses.replace(LOCAL, decoder=dataclasses.replace(LOCAL.decoder, window_size=3)), "windows of 3"),
        (lambda: dataclasses.replace(LOCAL, encoder=dataclasses.replace(ENCODER, num_mels=32)), "mel bins"),
        (
            lambda: dataclasses.replace(
                LOCAL, frontend=dataclasses.replace(FRONTEND, clip=ClipSpec(clip_sec=0.9))
            ),
            "no multiple of the patch size",
        ),
        (lambda: dataclasses.replace(LOCAL.decoder, num_layers=3), "even number"),
        (lambda: dataclasses.replace(LOCAL.decoder, num_heads=3), "multiple of num_heads"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_what_to_change(change, message):
    with pytest.raises(UserError, match=message):
        change()
