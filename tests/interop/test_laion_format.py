"""LAION-CLAP's archives: a ClapModel's weights under the authors' names come in as the same model."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from alm_jax.encoders.audio import cnn14, htsat, htsat_fusion
from alm_jax.encoders.text import bert
from alm_jax.errors import UserError
from alm_jax.interop.clap_weights import CLAP
from alm_jax.interop.folder import import_model
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.laion import LAION
from alm_jax.interop.parity import load_oracle, randomise
from alm_jax.models.two_towers import TwoTowersConfig, encode_text
from alm_jax.ops.frontends import ClapSpec, ClipSpec, FusionSpec, TorchlibrosaSpec

SMALL = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "drop_path_rate": 0.0}
TEXT = dataclasses.replace(bert.NANO, width=64, num_heads=1, mlp_dim=128, kernel_init="normal")


def rename(key: str) -> str:
    """The inverse of transformers' convert_clap_original_pytorch_to_hf.py."""
    key = re.sub(r"_projection\.linear([12])", lambda found: f"_projection.{2 * int(found[1]) - 2}", key)
    for authors, theirs in (
        ("text_branch", "text_model"),
        ("audio_branch", "audio_model.audio_encoder"),
        ("bn0", "batch_norm"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
    ):
        key = key.replace(theirs, authors)
    if key.startswith("audio_branch"):
        for authors, theirs in (
            ("attn.proj", "attention.output.dense"),
            ("attn", "attention.self"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            key = key.replace(theirs, authors)
    return f"module.{key}"


def to_archive(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {rename(key): tensor for key, tensor in state.items()}
    for key in [key for key in renamed if re.search(r"audio_branch.*attn\.query", key)]:
        parts = [renamed.pop(key.replace("query", name)) for name in ("query", "key", "value")]
        renamed[key.replace("query", "qkv")] = torch.cat(parts)
    # What the authors' models have besides.
    for key in (
        "audio_branch.tscam_conv.weight",
        "audio_branch.head.bias",
        "audio_branch.logmel_extractor.melW",
        "audio_branch.layers.1.blocks.1.attn_mask",
        "audio_transform.sequential.0.weight",
    ):
        renamed[f"module.{key}"] = torch.ones(2)
    return {"epoch": 1, "name": "run", "state_dict": renamed, "optimizer": {}}


@pytest.mark.parametrize("fused", [False, True])
def test_an_archive_holds_the_same_model(build_clap, tmp_path, fused):
    audio = htsat_fusion.HtsatFusionConfig(**SMALL) if fused else htsat.HtsatConfig(**SMALL)
    clip = ClipSpec(clip_sec=10.0)
    frontend = FusionSpec(clip=clip) if fused else ClapSpec(clip=clip)
    config = TwoTowersConfig(frontend=frontend, audio=audio, text=TEXT, embed_dim=32)
    model = build_clap(config)
    torch.save(to_archive(model.state_dict()), tmp_path / "630k.pt")

    found = import_model(tmp_path / "630k.pt")
    assert found.layout is LAION
    assert dataclasses.replace(found.config.audio, drop_path_rate=0.0) == audio
    assert dataclasses.replace(found.config.text, layer_norm_eps=TEXT.layer_norm_eps, max_tokens=None) == TEXT
    assert found.config.text.max_length == 64  # the table's, of which the authors take up to 77
    assert found.config.embed_dim == 32
    if fused:
        assert isinstance(found.config.frontend, FusionSpec)
    else:
        assert isinstance(found.config.frontend, TorchlibrosaSpec)
    assert found.config.frontend.int16_quantize
    assert found.config.frontend.num_frames == 1001
    expected = arrays_to_variables(CLAP, config, {k: v.numpy() for k, v in model.state_dict().items()})
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), found.variables, expected)


def linear(key: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(key))
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return {f"{key}.weight": weight, f"{key}.bias": torch.randn(outputs, generator=generator)}


@pytest.fixture(scope="module")
def pann_and_bert() -> tuple[transformers.BertModel, dict[str, torch.Tensor]]:
    """The state dict of PANNs' CNN14 beside a BERT, as the authors' class names them, and the BERT."""
    text = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=300,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=128,
            max_position_embeddings=128,
        )
    ).eval()
    randomise(text)
    state = {f"text_branch.{key}": tensor for key, tensor in text.state_dict().items()}
    audio = load_oracle("cnn14").build(dataclasses.replace(cnn14.NANO, num_classes=7))
    state |= {f"audio_branch.{key}": tensor for key, tensor in audio.state_dict().items()}
    for tower, width in (("audio", cnn14.NANO.width), ("text", 64)):
        state |= linear(f"{tower}_projection.0", width, 32) | linear(f"{tower}_projection.2", 32, 32)
    return text, state | {name: torch.tensor(2.6) for name in ("logit_scale_a", "logit_scale_t")}


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}]
)
def test_bert_and_cnn14_are_known_by_their_keys(pann_and_bert, tmp_path, wrap):
    """BERT's positions, epsilon and padding: the text embedding is that of the authors' class."""
    text, state = pann_and_bert
    torch.save(wrap(state), tmp_path / "model.pt")
    found = import_model(tmp_path / "model.pt")
    assert (found.layout, type(found.config.audio)) == (LAION, cnn14.Cnn14Config)
    assert dataclasses.replace(found.config.text, vocab_size=30522, max_positions=512) == dataclasses.replace(
        bert.BERT_BASE, width=64, num_layers=2, num_heads=1, mlp_dim=128, max_tokens=77
    )
    ids = torch.arange(5, 45).reshape(2, 20)
    mask = torch.arange(20)[None] < torch.tensor([[20], [7]])
    with torch.no_grad():
        pooled = text(ids, attention_mask=mask.long()).pooler_output
        hidden = torch.relu(pooled @ state["text_projection.0.weight"].T + state["text_projection.0.bias"])
        expected = hidden @ state["text_projection.2.weight"].T + state["text_projection.2.bias"]
    expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
    with jax.default_matmul_precision("highest"):
        ours = encode_text(
            found.config,
            jax.tree.map(jnp.asarray, found.variables),
            jnp.asarray(ids.numpy(), jnp.int32),
            jnp.asarray(mask.numpy()),
        )
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("token_embedding.weight", "the text tower `transformer`"),
        ("text_branch.shared.weight", "the text tower `bart`"),
        ("audio_branch.mel_conv2d.0.weight", "a CNN14 with feature fusion"),
    ],
)
def test_towers_that_are_not_read_are_refused_by_name(pann_and_bert, tmp_path, key, match):
    torch.save(pann_and_bert[1] | {key: torch.ones(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=match):
        import_model(tmp_path / "model.pt")
