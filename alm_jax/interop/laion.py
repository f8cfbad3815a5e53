"""LAION-CLAP's own archives (630k-best.pt and its siblings), without and with feature fusion.

Wu et al. 2022, https://arxiv.org/abs/2211.06687; https://github.com/LAION-AI/CLAP. The model is ClapModel's, under the
names of its authors, with query, key and value of the audio tower in one product. Not read: the classifiers that
pre-trained the audio tower, the `transform` MLPs, which only another loss uses, and the front-end's tables, which
follow from its spec.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.audio.htsat_fusion import HtsatFusionConfig
from alm_jax.encoders.text.bert import BertConfig
from alm_jax.interop.clap_weights import TOWER, clap_entries
from alm_jax.interop.entry import Entry
from alm_jax.interop.format import Format
from alm_jax.models.two_towers import TwoTowersConfig, abstract_two_towers
from alm_jax.ops.frontends import ClipSpec, FusionSpec, TorchlibrosaSpec

_BRANCH = "audio_branch"
_FUSED = f"{_BRANCH}.patch_embed.mel_conv2d.weight"
# In this order: the shorter names are parts of the longer.
_AUDIO_NAMES = (
    (f"{TOWER}.", f"{_BRANCH}."),
    (".batch_norm.", ".bn0."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.self.", ".attn."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
_OTHER_NAMES = (
    ("text_model.", "text_branch."),
    ("_projection.linear1.", "_projection.0."),
    ("_projection.linear2.", "_projection.2."),
)


def laion_entries(config: TwoTowersConfig) -> Iterator[Entry]:
    """Every key that is read but ``logit_scale_t``."""
    for entry in clap_entries(config):
        names = _AUDIO_NAMES if entry.key.startswith(TOWER) else _OTHER_NAMES
        key = entry.key
        for theirs, authors in names:
            key = key.replace(theirs, authors)
        part = re.fullmatch(rf"({_BRANCH}\..*\.attn)\.(query|key|value)\.(weight|bias)", key)
        if part is None:
            yield dataclasses.replace(entry, key=key)
        elif part[2] == "query":
            shape = (3 * entry.shape[0], *entry.shape[1:])
            yield Entry(f"{part[1]}.qkv.{part[3]}", entry.path, shape, entry.layout)


def infer_laion_config(shapes: Mapping[str, tuple[int, ...]]) -> TwoTowersConfig:
    """The config of an archive from its shapes; the front-end and RoBERTa's heads of 64 are the published ones."""
    embed, _, patch, _ = shapes[f"{_BRANCH}.patch_embed.proj.weight"]
    num_stages = 1 + max(_numbers(shapes, rf"{_BRANCH}\.layers\.(\d+)\."))
    depths = tuple(
        1 + max(_numbers(shapes, rf"{_BRANCH}\.layers\.{stage}\.blocks\.(\d+)\."))
        for stage in range(num_stages)
    )
    tables = [
        shapes[f"{_BRANCH}.layers.{stage}.blocks.0.attn.relative_position_bias_table"]
        for stage in range(num_stages)
    ]
    kind = HtsatFusionConfig if _FUSED in shapes else HtsatConfig
    audio = kind(
        patch_size=patch,
        num_mels=shapes[f"{_BRANCH}.bn0.weight"][0],
        embed_dim=embed,
        depths=depths,
        num_heads=tuple(heads for _, heads in tables),
        window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
        mlp_ratio=shapes[f"{_BRANCH}.layers.0.blocks.0.mlp.fc1.weight"][0] / embed,
    )
    vocab_size, width = shapes["text_branch.embeddings.word_embeddings.weight"]
    text = BertConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=1 + max(_numbers(shapes, r"text_branch\.encoder\.layer\.(\d+)\.")),
        num_heads=max(width // 64, 1),
        mlp_dim=shapes["text_branch.encoder.layer.0.intermediate.dense.weight"][0],
        max_positions=shapes["text_branch.embeddings.position_embeddings.weight"][0],
        num_token_types=shapes["text_branch.embeddings.token_type_embeddings.weight"][0],
        layer_norm_eps=1e-5,
    )
    clip = ClipSpec(clip_sec=10.0, pad="repeat_pad")
    return TwoTowersConfig(
        frontend=FusionSpec(num_mels=audio.num_mels, int16_quantize=True, clip=clip)
        if _FUSED in shapes
        else TorchlibrosaSpec(
            sample_rate_hz=48000,
            n_fft=1024,
            hop_samples=480,
            num_mels=audio.num_mels,
            fmin_hz=50.0,
            fmax_hz=14000.0,
            int16_quantize=True,
            clip=clip,
        ),
        audio=audio,
        text=text,
        embed_dim=shapes["audio_projection.0.weight"][0],
    )


def _numbers(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> list[int]:
    """What the group of ``pattern`` is in every key that begins with it."""
    return [int(found[1]) for key in shapes if (found := re.match(pattern, key))]


LAION = Format(
    name="laion-clap-archive",
    config_type=TwoTowersConfig,
    abstract=abstract_two_towers,
    entries=laion_entries,
    copies=lambda _: {"logit_scale_t": "logit_scale_a"},
    infer_config=infer_laion_config,
    archive_entry=("state_dict",),
    key_prefix="module.",
    signature=f"{_BRANCH}.bn0.weight",
    ignored=(
        r".*\.num_batches_tracked",
        r".*\.relative_position_index",
        rf"{_BRANCH}\..*\.attn_mask",
        rf"{_BRANCH}\.(tscam_conv|head)\..*",
        rf"{_BRANCH}\.(spectrogram|logmel)_extractor\..*",
        r"(audio|text)_transform\..*",
        r"text_branch\.embeddings\.(position|token_type)_ids",
    ),
)
FORMATS = (LAION,)
