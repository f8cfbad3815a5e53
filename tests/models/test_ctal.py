"""CTAL's encoders beside RoBERTa of transformers with the same weights: the text's half, and the half that hears."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import linen as nn

from alm_jax.encoders.text.bert import BertConfig
from alm_jax.errors import UserError
from alm_jax.interop.bert import bert_entries
from alm_jax.interop.entry import Entry, fused_qkv, linear, norm
from alm_jax.interop.format import get_array
from alm_jax.models import ctal
from alm_jax.models.ctal import CtalModelConfig
from alm_jax.nn.language_model import project
from alm_jax.ops.frontends import ClipSpec, CtalSpec

TEXT = BertConfig(
    vocab_size=40, width=16, num_layers=2, num_heads=2, mlp_dim=24, max_positions=20, pooling="mean"
)
CONFIG = CtalModelConfig(
    frontend=CtalSpec(
        sample_rate_hz=8000,
        n_fft=256,
        window_samples=200,
        hop_samples=100,
        num_mels=8,
        fmax_hz=4000.0,
        clip=ClipSpec(clip_sec=0.125, pad="zero"),
    ),
    text=TEXT,
    num_audio_layers=3,
    max_frames=14,
)
NUM_FRAMES, NUM_TOKENS = 11, 6
FRAME_MASK = np.arange(NUM_FRAMES)[None, :] < np.array([[11], [7]])
TEXT_MASK = np.arange(NUM_TOKENS)[None, :] < np.array([[4], [6]])


@pytest.fixture(scope="module")
def variables() -> dict:
    """Weights drawn by NumPy, scales of norms about 1."""
    rng = np.random.default_rng(0)
    abstract = nn.unbox(jax.eval_shape(lambda key: ctal.CTAL.init(CONFIG, key), jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            rng.normal("scale" in jax.tree_util.keystr(path), 0.4, leaf.shape), jnp.float32
        ),
        abstract,
    )


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, NUM_FRAMES, CONFIG.frontend.num_features)).astype(np.float32)
    return features, rng.integers(5, 40, (2, NUM_TOKENS)).astype(np.int32)


@pytest.fixture(scope="module")
def ours(variables, inputs):
    features, ids, frame_mask, text_mask = (jnp.asarray(x) for x in (*inputs, FRAME_MASK, TEXT_MASK))

    @jax.jit
    def compute(variables):
        text = ctal.encode_text(CONFIG, variables, ids, text_mask)
        table, bias = ctal.word_table(variables["params"])
        hidden = ctal.predict_words(CONFIG, variables, text)
        logits = project(hidden, table, tied=True) + bias[None, None]
        audio = {
            compat: ctal.encode_audio(
                dataclasses.replace(CONFIG, compat=compat),
                variables,
                features,
                frame_mask,
                text,
                text_mask,
            )
            for compat in (True, False)
        }
        return text, logits, audio

    return jax.device_get(compute(variables))


def reference_config(**options) -> transformers.RobertaConfig:
    return transformers.RobertaConfig(
        vocab_size=TEXT.vocab_size,
        hidden_size=TEXT.width,
        num_attention_heads=TEXT.num_heads,
        intermediate_size=TEXT.mlp_dim,
        max_position_embeddings=TEXT.max_positions,
        type_vocab_size=1,
        layer_norm_eps=TEXT.layer_norm_eps,
        pad_token_id=TEXT.pad_id,
        attn_implementation="eager",
        **options,
    )


def fill(model: torch.nn.Module, entries: list[Entry], variables: dict, more: dict) -> torch.nn.Module:
    """``model`` with our weights; every parameter of it must be among them."""
    arrays = {
        e.key: e.to_disk(np.asarray(get_array(variables, e.path))[*e.index, ...]) for e in entries
    } | more
    state = {key: torch.tensor(np.array(array)) for key, array in arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [key for key in missing if not key.endswith(("position_ids", "token_type_ids"))]
    return model.eval()


def test_words_are_those_of_roberta_for_masked_lm(variables, inputs, ours):
    params = variables["params"]
    entries = list(bert_entries(TEXT, prefix="roberta.", path=("params", "text")))
    entries += linear("lm_head.dense", ("params", "word_head", "dense"), TEXT.width, TEXT.width)
    entries += norm("lm_head.layer_norm", ("params", "word_head", "norm"), TEXT.width)
    table, bias = params["text"]["token_embed"]["embedding"], params["word_head"]["bias"]
    more = {"lm_head.decoder.weight": table, "lm_head.decoder.bias": bias, "lm_head.bias": bias}
    model = transformers.RobertaForMaskedLM(reference_config(num_hidden_layers=TEXT.num_layers))
    fill(model, entries, variables, more)
    with torch.no_grad():
        found = model(
            torch.tensor(inputs[1]).long(), torch.tensor(TEXT_MASK).long(), output_hidden_states=True
        )
    text, logits, _ = ours
    np.testing.assert_allclose(
        text[TEXT_MASK], found.hidden_states[-1].numpy()[TEXT_MASK], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(logits[TEXT_MASK], found.logits.numpy()[TEXT_MASK], rtol=1e-4, atol=1e-4)


def audio_entries() -> list[Entry]:
    path, width, entries = ("params", "audio", "blocks"), TEXT.width, []
    for i in range(CONFIG.num_audio_layers):
        layer = f"encoder.layer.{i}"
        own = tuple(f"{layer}.attention.self.{name}" for name in ("query", "key", "value"))
        entries += fused_qkv(own, (*path, "attention", "qkv"), width, width, (i,))
        cross, joined = f"{layer}.crossattention", ("params", "audio", "cross_key_value")
        for name, ours in {
            f"{layer}.attention.output.dense": (*path, "attention", "out"),
            f"{cross}.self.query": (*path, "cross_attention", "query"),
            f"{cross}.self.key": (*joined, "key"),
            f"{cross}.self.value": (*joined, "value"),
            f"{cross}.output.dense": (*path, "cross_attention", "out"),
        }.items():
            entries += linear(name, ours, width, width, (i,))
        entries += norm(f"{layer}.attention.output.LayerNorm", (*path, "attention_norm"), width, (i,))
        entries += norm(f"{cross}.output.LayerNorm", (*path, "cross_norm"), width, (i,))
        entries += linear(f"{layer}.intermediate.dense", (*path, "mlp", "up"), width, TEXT.mlp_dim, (i,))
        entries += linear(f"{layer}.output.dense", (*path, "mlp", "down"), TEXT.mlp_dim, width, (i,))
        entries += norm(f"{layer}.output.LayerNorm", (*path, "mlp_norm"), width, (i,))
    return [*entries, *norm("embeddings.LayerNorm", ("params", "audio", "embed_norm"), width)]


@pytest.mark.parametrize("compat", [True, False], ids=["causal", "both ways"])
def test_audio_is_a_roberta_decoder_over_the_text(variables, inputs, ours, compat):
    """transformers masks causally whatever is_decoder is set on, which cross-attention needs: CTAL's accident."""
    audio = variables["params"]["audio"]
    config = reference_config(
        num_hidden_layers=CONFIG.num_audio_layers, is_decoder=True, add_cross_attention=True
    )
    model = transformers.RobertaModel(config, add_pooling_layer=False)
    # RoBERTa's positions begin after pad_id.
    positions = np.zeros((TEXT.max_positions, TEXT.width), np.float32)
    positions[TEXT.pad_id + 1 :][: CONFIG.max_frames] = audio["position_embed"]
    more = {
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": audio["type_embed"][None],
        "embeddings.word_embeddings.weight": np.zeros((TEXT.vocab_size, TEXT.width), np.float32),
    }
    fill(model, audio_entries(), variables, more)
    model.config.is_decoder = compat
    text, _, found = ours
    embeds = inputs[0] @ audio["frame_embed"]["kernel"] + audio["frame_embed"]["bias"][None, None]
    with torch.no_grad():
        expected = model(
            inputs_embeds=torch.tensor(np.array(embeds)),
            attention_mask=torch.tensor(FRAME_MASK).long(),
            encoder_hidden_states=torch.tensor(np.array(text)),
            encoder_attention_mask=torch.tensor(TEXT_MASK).long(),
            use_cache=False,
        ).last_hidden_state.numpy()
    np.testing.assert_allclose(found[compat][FRAME_MASK], expected[FRAME_MASK], rtol=1e-4, atol=1e-4)
    assert np.abs(found[compat] - found[not compat])[FRAME_MASK].max() > 0.05


def test_the_published_sizes():
    """Frames and blocks of the base model: 6 and 6 of width 768."""
    config = CtalModelConfig()
    assert config.frontend.num_frames == config.max_frames == 3000
    shapes = jax.eval_shape(lambda key: ctal.CTAL.init(config, key), jax.random.key(0))["params"]
    assert shapes["audio"]["frame_embed"]["kernel"].shape == (160, 768)
    assert shapes["audio"]["blocks"]["mlp"]["up"]["kernel"].shape == (6, 768, 3072)


def test_clips_longer_than_the_positions_are_refused():
    with pytest.raises(UserError, match="positions for 5"):
        dataclasses.replace(CONFIG, max_frames=5)
