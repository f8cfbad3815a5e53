"""MS-CLAP's own archives, CLAP_weights_2022.pth and CLAP_weights_2023.pth of microsoft/msclap.

Elizalde et al. 2022, https://arxiv.org/abs/2206.04769 (CNN14 and BERT), and 2023, https://arxiv.org/abs/2309.05767
(HTSAT and GPT-2); https://github.com/microsoft/CLAP. Not read: the classifiers that pre-trained the audio towers,
BERT's pooler, and the front-end's tables, which follow from its spec.

Properties of the published code, which the config reproduces:

- a clip is 5 s (2022) or 7 s (2023) at 44.1 kHz, repeated up to the end where a recording is shorter. Of a longer one
  it takes a random part at every call; ours takes the middle.
- the mel bank of 2023 is built for 32 kHz.
- 2023 takes the state at (number of ids other than 0) - 1, `Gpt2Config.compat`.

The archive has no tokenizer. 2022 reads bert-base-uncased's, texts padded to 100 tokens. 2023 reads GPT-2's with
" <|endoftext|>" (a space's token and the end's) after each text, padded with "!" (id 0) to 77 tokens: a
tokenizer.json for it appends these two in its post-processor and names that padding. The published code cuts no text,
and fails on one longer than the position table; ours cuts it there.

Not verified on the published files, only on archives of the same layout: that no key is stored besides those known
here.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax.encoders.audio import cnn14, htsat
from alm_jax.encoders.audio.cnn14 import Cnn14Config
from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.text import bert, gpt2
from alm_jax.encoders.text.gpt2 import Gpt2Config
from alm_jax.interop.bert import bert_entries, infer_bert_config
from alm_jax.interop.cnn14 import CNN14_ARCHIVE, infer_cnn14_config
from alm_jax.interop.entry import Entry, linear, norm
from alm_jax.interop.format import Format
from alm_jax.interop.gpt2 import gpt2_entries, infer_gpt2_config
from alm_jax.interop.laion import ignored_of_htsat, infer_htsat_config, original_htsat_entries
from alm_jax.interop.parity import Parity, RealInputs, load_oracle
from alm_jax.models.two_towers import TWO_TOWERS, TwoTowersConfig, encode_audio, encode_text
from alm_jax.ops.frontends import ClipSpec, TorchlibrosaSpec, compute_features
from alm_jax.types import PyTree

_AUDIO, _TEXT = "audio_encoder.base", "caption_encoder.base"
_HTSAT = f"{_AUDIO}.htsat"

FRONTENDS = {
    "2022": cnn14.FRONTENDS["ms_clap"],
    "2023": TorchlibrosaSpec(
        sample_rate_hz=44100,
        mel_sample_rate_hz=32000,
        hop_samples=320,
        clip=ClipSpec(clip_sec=7.0, pad="repeat"),
    ),
}
"""Front-ends of the released models."""
BERT_BASE = dataclasses.replace(bert.BERT_BASE, pooling="first")
GPT2_SMALL = dataclasses.replace(gpt2.SMALL, compat=True)


def ms_clap_entries(config: TwoTowersConfig) -> Iterator[Entry]:
    """Every key that is read."""
    if isinstance(config.audio, Cnn14Config):
        for entry in CNN14_ARCHIVE.entries(config.audio):
            path = (entry.path[0], "audio", *entry.path[1:])
            yield dataclasses.replace(entry, key=f"{_AUDIO}.{entry.key}", path=path)
    else:
        yield from original_htsat_entries(config.audio, _HTSAT)
    text_entries = gpt2_entries if isinstance(config.text, Gpt2Config) else bert_entries
    yield from text_entries(config.text, prefix=f"{_TEXT}.", path=("params", "text"))
    size = config.embed_dim
    for theirs, ours, width in (
        ("audio_encoder", "audio_projection", config.audio.width),
        ("caption_encoder", "text_projection", config.text.width),
    ):
        key = f"{theirs}.projection"
        yield from linear(f"{key}.linear1", ("params", ours, "linear"), width, size, use_bias=False)
        yield from linear(f"{key}.linear2", ("params", ours, "residual"), size, size, use_bias=False)
        yield from norm(f"{key}.layer_norm", ("params", ours, "norm"), size)
    yield Entry("logit_scale", ("params", "log_logit_scale"), ())


def infer_ms_clap_2022_config(shapes: Mapping[str, tuple[int, ...]]) -> TwoTowersConfig:
    """The config of an archive from its shapes; the front-end and BERT's heads of 64 are the published ones."""
    prefix = f"{_AUDIO}."
    own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    audio = dataclasses.replace(infer_cnn14_config(own), num_classes=None)
    return _towers(shapes, "2022", audio, infer_bert_config(shapes, BERT_BASE, prefix=f"{_TEXT}."))


def infer_ms_clap_2023_config(shapes: Mapping[str, tuple[int, ...]]) -> TwoTowersConfig:
    """The config of an archive from its shapes; the front-end and GPT-2's heads of 64 are the published ones."""
    audio = infer_htsat_config(shapes, _HTSAT)
    return _towers(shapes, "2023", audio, infer_gpt2_config(shapes, GPT2_SMALL, prefix=f"{_TEXT}."))


def _towers(shapes: Mapping[str, tuple[int, ...]], year: str, audio: Any, text: Any) -> TwoTowersConfig:
    return TwoTowersConfig(
        frontend=dataclasses.replace(FRONTENDS[year], num_mels=audio.num_mels),
        audio=audio,
        text=text,
        embed_dim=shapes["audio_encoder.projection.linear1.weight"][0],
        projection="residual",
    )


MS_CLAP_2022 = Format(
    name="ms-clap-2022-archive",
    config_type=TwoTowersConfig,
    audio_towers=(Cnn14Config,),
    abstract=TWO_TOWERS.abstract,
    entries=ms_clap_entries,
    infer_config=infer_ms_clap_2022_config,
    archive_entry=("model",),
    signature=f"{_AUDIO}.conv_block1.conv1.weight",
    ignored=(
        r"audio_encoder\.base\..*\.num_batches_tracked",
        r"audio_encoder\.base\.(spectrogram|logmel)_extractor\..*",
        r"audio_encoder\.base\.fc_audioset\..*",
        r"caption_encoder\.base\.embeddings\.(position|token_type)_ids",
        r"caption_encoder\.base\.pooler\..*",
    ),
)
MS_CLAP_2023 = dataclasses.replace(
    MS_CLAP_2022,
    name="ms-clap-2023-archive",
    audio_towers=(HtsatConfig,),
    infer_config=infer_ms_clap_2023_config,
    signature=f"{_HTSAT}.bn0.weight",
    ignored=(
        *ignored_of_htsat(_HTSAT),
        # The causal mask, and the number that marked masked positions.
        r"caption_encoder\.base\.h\.\d+\.attn\.(masked_)?bias",
    ),
)
FORMATS = (MS_CLAP_2022, MS_CLAP_2023)

_NANO_2022 = TwoTowersConfig(
    frontend=FRONTENDS["2022"],
    audio=cnn14.NANO,
    text=dataclasses.replace(
        bert.NANO, positions="bert", num_token_types=2, pad_id=0, layer_norm_eps=1e-12, pooling="first"
    ),
    embed_dim=64,
    projection="residual",
)
_NANO_2023 = TwoTowersConfig(
    # As long as the nano HTSAT's longest input.
    frontend=dataclasses.replace(FRONTENDS["2023"], clip=ClipSpec(clip_sec=1.8)),
    audio=htsat.NANO,
    text=dataclasses.replace(gpt2.NANO, compat=True),
    embed_dim=64,
    projection="residual",
)


def _inputs(config: TwoTowersConfig, real: RealInputs) -> dict[str, np.ndarray]:
    """Two clips and two captions, padded with id 0."""
    spec = config.frontend
    waveforms = jnp.asarray(real.waveforms(spec.sample_rate_hz, spec.clip.clip_sec))
    ids, mask = real.token_ids(config.text.vocab_size, 48)
    ids = np.where(mask, ids, 0)
    return {"features": np.asarray(compute_features(waveforms, spec)), "ids": ids, "mask": mask}


def _ours(config: TwoTowersConfig, variables: PyTree, given: dict[str, jax.Array], dtype: Any) -> Any:
    config = dataclasses.replace(config, compute_dtype=dtype)
    audio_emb, _ = encode_audio(config, variables, given["features"])
    return jnp.concatenate([audio_emb, encode_text(config, variables, given["ids"], given["mask"])])


def _parity(layout: Format, config: TwoTowersConfig) -> Parity:
    return Parity(
        name=f"{layout.name.removesuffix('-archive')}, embeddings, nano",
        layout=layout,
        config=config,
        oracle=lambda config: load_oracle("ms_clap").build(config),
        oracle_name="tests/oracles/ms_clap.py",
        inputs=_inputs,
        ours=_ours,
        theirs=lambda module, given: module(given["features"], given["ids"], given["mask"]),
    )


PARITY = (_parity(MS_CLAP_2022, _NANO_2022), _parity(MS_CLAP_2023, _NANO_2023))
