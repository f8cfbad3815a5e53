"""One head: equal to PyTorch's encoder over both modalities' embeddings, and deaf to what it must not see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.errors import UserError
from alm_jax.models import one_head
from alm_jax.models.one_head import Audio, OneHeadConfig, Text
from alm_jax.ops.frontends import AstSpec, ClipSpec

CONFIG = OneHeadConfig(
    frontend=AstSpec(
        sample_rate_hz=8000,
        n_fft=256,
        window_samples=200,
        hop_samples=100,
        num_mels=8,
        fmax_hz=4000.0,
        padded_frames=16,
        clip=ClipSpec(clip_sec=0.2),
    ),
    patch_size=4,
    vocab_size=30,
    max_length=9,
    width=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=24,
    embed_dim=5,
)
ROWS, LENGTH = 3, 6
TOGETHER = np.array([True, False, True])


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy, scales of norms about 1."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda key: one_head.ONE_HEAD.init(CONFIG, key), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            rng.normal("scale" in jax.tree_util.keystr(path), 0.4, leaf.shape), jnp.float32
        ),
        abstract,
    )


@pytest.fixture(scope="module")
def inputs() -> tuple[Audio, Text]:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(ROWS, 16, 8)).astype(np.float32)
    mask = np.repeat(np.arange(4)[None, :] < np.array([[4], [3], [4]]), 2, axis=1)
    hidden = rng.random((ROWS, 8)) < 0.5
    ids = rng.integers(0, 30, (ROWS, LENGTH)).astype(np.int32)
    text_mask = np.arange(LENGTH)[None, :] < np.array([[6], [4], [3]])
    return Audio(features, mask, hidden), Text(ids, text_mask)


@pytest.fixture(scope="module")
def run(variables):
    """(audio, text) -> states of both as ``TOGETHER`` says, states of each alone, the audio's vector."""

    @jax.jit
    def compute(audio, text):
        joint = one_head.encode(CONFIG, variables, audio, text, together=jnp.asarray(TOGETHER))
        encoded, _ = one_head.encode(CONFIG, variables, audio, None)
        _, read = one_head.encode(CONFIG, variables, None, text)
        return joint, (encoded, read), one_head.embed(CONFIG, variables, encoded, audio.mask)

    return lambda audio, text: jax.device_get(compute(audio, text))


def torch_trunk(trunk: dict) -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(
        CONFIG.width,
        CONFIG.num_heads,
        CONFIG.mlp_dim,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=CONFIG.layer_norm_eps,
        batch_first=True,
        norm_first=True,
    )
    last = torch.nn.LayerNorm(CONFIG.width, eps=CONFIG.layer_norm_eps)
    model = torch.nn.TransformerEncoder(layer, CONFIG.num_layers, last, enable_nested_tensor=False)
    blocks, width = trunk["blocks"], CONFIG.width
    state = {"norm.weight": trunk["norm"]["scale"], "norm.bias": trunk["norm"]["bias"]}
    for i in range(CONFIG.num_layers):
        block = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), blocks)
        for name, norm in (("norm1", "attention_norm"), ("norm2", "mlp_norm")):
            state |= {f"layers.{i}.{name}.weight": block[norm]["scale"]}
            state |= {f"layers.{i}.{name}.bias": block[norm]["bias"]}
        qkv, out = block["attention"]["qkv"], block["attention"]["out"]
        state |= {
            f"layers.{i}.self_attn.in_proj_weight": qkv["kernel"].reshape(width, -1).T,
            f"layers.{i}.self_attn.in_proj_bias": qkv["bias"].reshape(-1),
            f"layers.{i}.self_attn.out_proj.weight": out["kernel"].reshape(-1, width).T,
            f"layers.{i}.self_attn.out_proj.bias": out["bias"],
        }
        for name, dense in (("linear1", "up"), ("linear2", "down")):
            state |= {f"layers.{i}.{name}.weight": block["mlp"][dense]["kernel"].T}
            state |= {f"layers.{i}.{name}.bias": block["mlp"][dense]["bias"]}
    model.load_state_dict({key: torch.tensor(np.array(value)) for key, value in state.items()})
    return model.eval()


def test_both_modalities_are_one_sequence_of_pytorchs_encoder(variables, inputs, run):
    """Embeddings summed by hand, patch by patch; rows that are not together are two sequences."""
    trunk = jax.tree.map(np.asarray, variables["params"]["trunk"])
    audio, text = inputs
    patches = np.zeros((ROWS, 8, CONFIG.width), np.float32)
    for step in range(4):
        for band in range(2):
            pixels = audio.features[:, 4 * step : 4 * step + 4, 4 * band : 4 * band + 4].reshape(ROWS, 16)
            drawn = pixels @ trunk["patch_embed"]["kernel"] + trunk["patch_embed"]["bias"]
            drawn = np.where(audio.hidden[:, 2 * step + band, None], trunk["hidden_embed"], drawn)
            at = trunk["time_embed"][step] + trunk["frequency_embed"][band] + trunk["modality_embed"][0]
            patches[:, 2 * step + band] = drawn + at
    tokens = trunk["token_embed"]["embedding"][text.ids]
    tokens = tokens + (trunk["position_embed"][:LENGTH] + trunk["modality_embed"][1])[None]
    model = torch_trunk(trunk)

    def encode(x, mask):
        with torch.no_grad():
            return model(torch.tensor(x), src_key_padding_mask=torch.tensor(~mask)).numpy()

    expected = encode(np.concatenate([patches, tokens], 1), np.concatenate([audio.mask, text.mask], 1))
    alone = encode(patches, audio.mask), encode(tokens, text.mask)
    joint, ours_alone, _ = run(audio, text)
    for found, separate, other, mask, part in (
        (joint[0], ours_alone[0], alone[0], audio.mask, slice(0, 8)),
        (joint[1], ours_alone[1], alone[1], text.mask, slice(8, None)),
    ):
        wanted = np.where(TOGETHER[:, None, None], expected[:, part], other)
        np.testing.assert_allclose(found[mask], wanted[mask], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(separate[mask], other[mask], rtol=1e-4, atol=1e-4)


def test_hidden_patches_and_padding_have_no_influence(inputs, run):
    audio, text = inputs
    (encoded, read), _, emb = run(audio, text)
    unseen = np.repeat(np.repeat((audio.hidden | ~audio.mask).reshape(ROWS, 4, 2), 4, 1), 4, 2)
    louder = audio._replace(features=np.where(unseen, 99, audio.features).astype(np.float32))
    other = text._replace(ids=np.where(text.mask, text.ids, 7).astype(np.int32))
    (encoded_again, read_again), _, emb_again = run(louder, other)
    np.testing.assert_array_equal(encoded_again[audio.mask], encoded[audio.mask])
    np.testing.assert_array_equal(read_again[text.mask], read[text.mask])
    np.testing.assert_array_equal(emb_again, emb)
    np.testing.assert_allclose(np.linalg.norm(emb, axis=-1), 1, rtol=1e-6)


def test_what_does_not_fit_is_refused(variables):
    with pytest.raises(UserError, match="patch size 5"):
        dataclasses.replace(CONFIG, patch_size=5)
    longer = Text(jnp.zeros((ROWS, 12), jnp.int32), jnp.ones((ROWS, 12), bool))
    with pytest.raises(UserError, match="texts of 12 tokens"):
        one_head.encode(CONFIG, variables, None, longer)
