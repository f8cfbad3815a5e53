"""LAION-CLAP's own archives (630k-best.pt and its siblings), without and with feature fusion.

Wu et al. 2022, https://arxiv.org/abs/2211.06687; https://github.com/LAION-AI/CLAP. The model is ClapModel's, under the
names of its authors, with query, key and value of the audio tower in one product. The audio tower is HTSAT or PANNs'
CNN14 (without feature fusion), the text tower RoBERTa or BERT, known by its two types of tokens; texts are cut at 77
tokens, as the authors cut them. Their text towers `transformer` (CLIP's) and `bart` are refused. Not read: the
classifiers that pre-trained the audio tower, the `transform` MLPs, which only another loss uses, and the front-end's
tables, which follow from its spec.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from alm_jax.encoders.audio.cnn14 import Cnn14Config
from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.audio.htsat_fusion import HtsatFusionConfig
from alm_jax.encoders.text.bert import BERT_BASE, ROBERTA_BASE
from alm_jax.errors import UserError
from alm_jax.interop.bert import infer_bert_config
from alm_jax.interop.clap_weights import TOWER, htsat_entries, joint_entries
from alm_jax.interop.cnn14 import CNN14_ARCHIVE, infer_cnn14_config
from alm_jax.interop.entry import Entry
from alm_jax.interop.format import Format
from alm_jax.models.two_towers import TWO_TOWERS, TwoTowersConfig
from alm_jax.ops.frontends import ClipSpec, FusionSpec, TorchlibrosaSpec

_BRANCH = "audio_branch"
_MAX_TOKENS = 77
_REFUSED = {
    "token_embedding.weight": "the text tower `transformer`",
    "text_branch.shared.weight": "the text tower `bart`",
    f"{_BRANCH}.mel_conv1d.0.weight": "a CNN14 with feature fusion",
    f"{_BRANCH}.mel_conv2d.0.weight": "a CNN14 with feature fusion",
}
"""Keys that occur only in a tower that cannot be read, and the tower's name."""
# In this order: the shorter names are parts of the longer.
_AUDIO_NAMES = (
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
    """Every key that is read, except ``logit_scale_t``."""
    if isinstance(config.audio, Cnn14Config):
        for entry in CNN14_ARCHIVE.entries(config.audio):
            path = (entry.path[0], "audio", *entry.path[1:])
            yield dataclasses.replace(entry, key=f"{_BRANCH}.{entry.key}", path=path)
    else:
        yield from original_htsat_entries(config.audio, _BRANCH)
    for entry in joint_entries(config):
        yield dataclasses.replace(entry, key=_rename(entry.key, _OTHER_NAMES))


def original_htsat_entries(audio: HtsatConfig, branch: str) -> Iterator[Entry]:
    """Every float key of an HTSAT, ``audio`` of our two towers, as its authors name them under ``branch``."""
    for entry in htsat_entries(audio):
        key = branch + _rename(entry.key.removeprefix(TOWER), _AUDIO_NAMES)
        part = re.fullmatch(r"(.*\.attn)\.(query|key|value)\.(weight|bias)", key)
        if part is None:
            yield dataclasses.replace(entry, key=key)
        elif part[2] == "query":
            shape = (3 * entry.shape[0], *entry.shape[1:])
            yield Entry(f"{part[1]}.qkv.{part[3]}", entry.path, shape, entry.layout)


def ignored_of_htsat(branch: str) -> tuple[str, ...]:
    """`Format.ignored` of the authors' HTSAT under ``branch``: front-end, classifiers, buffers."""
    branch = re.escape(branch)
    return (
        rf"{branch}\..*\.(num_batches_tracked|relative_position_index|attn_mask)",
        rf"{branch}\.(tscam_conv|head)\..*",
        rf"{branch}\.(spectrogram|logmel)_extractor\..*",
    )


def infer_htsat_config(shapes: Mapping[str, tuple[int, ...]], branch: str) -> HtsatConfig:
    """The config of the authors' HTSAT under ``branch`` from its shapes; its image has the published 256 pixels."""
    embed, _, patch, _ = shapes[f"{branch}.patch_embed.proj.weight"]
    stages = re.compile(rf"{re.escape(branch)}\.layers\.(\d+)\.blocks\.(\d+)\.")
    blocks = {(int(found[1]), int(found[2])) for key in shapes if (found := stages.match(key))}
    depths = tuple(
        sum(stage == at for at, _ in blocks) for stage in range(1 + max(stage for stage, _ in blocks))
    )
    tables = [
        shapes[f"{branch}.layers.{stage}.blocks.0.attn.relative_position_bias_table"]
        for stage in range(len(depths))
    ]
    is_fused = f"{branch}.patch_embed.mel_conv2d.weight" in shapes
    return (HtsatFusionConfig if is_fused else HtsatConfig)(
        patch_size=patch,
        num_mels=shapes[f"{branch}.bn0.weight"][0],
        embed_dim=embed,
        depths=depths,
        num_heads=tuple(heads for _, heads in tables),
        window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
        mlp_ratio=shapes[f"{branch}.layers.0.blocks.0.mlp.fc1.weight"][0] / embed,
    )


def infer_laion_config(shapes: Mapping[str, tuple[int, ...]]) -> TwoTowersConfig:
    """The config of an archive from its shapes; the front-end and text heads of 64 are the published ones.

    Raises:
        UserError: a tower is one of those that the authors' code has and ours does not read.
    """
    for key, tower in _REFUSED.items():
        if key in shapes:
            raise UserError(f"it has {tower} ({key}), which alm_jax does not compute")
    audio: HtsatConfig | Cnn14Config
    if f"{_BRANCH}.conv_block1.conv1.weight" in shapes:
        prefix = f"{_BRANCH}."
        own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        audio = dataclasses.replace(infer_cnn14_config(own), num_classes=None)
    else:
        audio = infer_htsat_config(shapes, _BRANCH)
    clip = ClipSpec(clip_sec=10.0, pad="repeat_pad")
    num_types = shapes["text_branch.embeddings.token_type_embeddings.weight"][0]
    like = dataclasses.replace(ROBERTA_BASE if num_types == 1 else BERT_BASE, max_tokens=_MAX_TOKENS)
    return TwoTowersConfig(
        frontend=FusionSpec(num_mels=audio.num_mels, int16_quantize=True, clip=clip)
        if isinstance(audio, HtsatFusionConfig)
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
        text=infer_bert_config(shapes, like, prefix="text_branch."),
        embed_dim=shapes["audio_projection.0.weight"][0],
    )


def _rename(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for theirs, authors in names:
        key = key.replace(theirs, authors)
    return key


LAION = Format(
    name="laion-clap-archive",
    config_type=TwoTowersConfig,
    audio_towers=(HtsatConfig, HtsatFusionConfig, Cnn14Config),
    abstract=TWO_TOWERS.abstract,
    entries=laion_entries,
    copies=lambda _: {"logit_scale_t": "logit_scale_a"},
    infer_config=infer_laion_config,
    archive_entry=("state_dict",),
    key_prefix="module.",
    signature=f"{_BRANCH}.bn0.weight",
    ignored=(
        *ignored_of_htsat(_BRANCH),
        rf"{_BRANCH}\.fc_audioset\..*",
        r"(audio|text)_transform\..*",
        r"text_branch\.embeddings\.(position|token_type)_ids",
    ),
)
FORMATS = (LAION,)
