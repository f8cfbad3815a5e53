"""How near what is imported comes to the authors' own code, by family, layout and length of the recording.

    python -m tests.fidelity --out docs/fidelity.md

Each row has the largest difference of features and of outputs for one recording, relative to the largest value of the
reference. A reference is an array that the authors' code made (tests/interop/fidelity.npz, a part of the frames), or
the processor and the class of transformers, run here. Weights are random, of small models with the layout of the
published ones; features are at their published size.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alm_jax import batch as contract
from alm_jax.encoders import family
from alm_jax.encoders.audio.ast import Ast, AstConfig
from alm_jax.encoders.audio.cav_mae import FAMILY as CAV_MAE_FAMILY
from alm_jax.encoders.audio.ced import Ced, CedConfig
from alm_jax.encoders.audio.cnn14 import FRONTENDS
from alm_jax.encoders.audio.encodec import STEREO, EncodecConfig
from alm_jax.encoders.audio.htsat import HtsatConfig
from alm_jax.encoders.audio.wav2vec2 import NANO as WAV2VEC2_NANO
from alm_jax.encoders.text.bert import NANO as BERT_NANO
from alm_jax.interop.format import arrays_to_variables
from alm_jax.interop.formats import FORMATS
from alm_jax.models.catalogue import family_of
from alm_jax.models.two_towers import TwoTowersConfig, encode_audio
from alm_jax.objectives.recordings import one_clip
from alm_jax.ops.frontends import (
    AstSpec,
    BeatsSpec,
    CedSpec,
    ClapSpec,
    ClipSpec,
    FusionSpec,
    TorchlibrosaSpec,
    WaveformSpec,
    WhisperSpec,
    compute_features,
)
from alm_jax.ops.frontends.kaldi import published_clip

GOLDEN = Path(__file__).with_name("interop") / "fidelity.npz"
LENGTHS: Mapping[str, Callable[[int, int], int]] = {
    "one clip": lambda rate, clip: clip,
    "0.3 s": lambda rate, clip: round(0.3 * rate),
    "0.37 clips": lambda rate, clip: round(0.37 * clip),
    "1.7 clips": lambda rate, clip: round(1.7 * clip),
    "2 clips": lambda rate, clip: 2 * clip,
    "one sample more": lambda rate, clip: clip + 1,
}
"""By name: sample rate and samples of a clip to the samples of the recording."""
NUM_ROWS = 12
"""Frames of a feature map that a golden array keeps."""


def recording(num_samples: int, sample_rate_hz: int, num_channels: int = 1) -> np.ndarray:
    """A chirp whose level rises and falls, in noise, in 16 bits: float32 [channels S]."""
    seconds = np.arange(num_samples) / sample_rate_hz
    noise = np.random.default_rng(0).standard_normal((num_channels, num_samples))
    level = 0.3 + 0.2 * np.sin(2 * np.pi * 0.7 * seconds)
    chirp = np.stack(
        [np.sin(2 * np.pi * (200 + 150 * (1 + i) * seconds) * seconds) for i in range(num_channels)]
    )
    sound = np.clip(level * chirp + 0.02 * noise, -1, 1)
    return (np.round(sound * 32767) / 32768).astype(np.float32)


def draw_arrays(layout: str, config: Any) -> dict[str, np.ndarray]:
    """Random weights of a model, under the names of a layout: the same ones wherever they are drawn."""
    kind, rng = FORMATS[layout], np.random.default_rng(1)
    shapes = {entry.key: entry.shape for entry in kind.entries(config)}
    arrays = {}
    for key in sorted(shapes):
        array = rng.standard_normal(shapes[key]).astype(np.float32)
        is_scale = key.endswith(("weight", "running_var", "weight_g")) and np.squeeze(array).ndim <= 1
        arrays[key] = np.asarray(1 + 0.1 * np.abs(array) if is_scale else 0.05 * array)
        if "_codebook.embed" in key or "codebook.embed" in key:
            arrays[key] = 0.5 * array
    copies = {key: arrays[source] for key, source in kind.copies(config).items()}
    return arrays | {key: np.asarray(value) for key, value in kind.buffers(config).items()} | copies


def pick(features: np.ndarray) -> np.ndarray:
    """A few frames of a map [... T F], the first and the last among them."""
    rows = np.unique(np.linspace(0, features.shape[-2] - 1, NUM_ROWS).round().astype(int))
    return features[..., rows, :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One family in one layout."""

    name: str
    """Name of the family."""
    layout: str
    """Layout of the weights, by the name that `alm import` gives it."""
    against: str
    """What the reference is."""
    sample_rate_hz: int
    clip_samples: int
    num_channels: int = 1
    ours: Callable[[np.ndarray], dict[str, np.ndarray]]
    """A recording [channels S] to "features" and "outputs", each where there is one."""
    theirs: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    """The same of transformers; None where the golden arrays have it."""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By length, or "" for all: why a row differs, or what was chosen."""

    def samples(self, length: str) -> np.ndarray:
        """The recording of a length's name."""
        count = LENGTHS[length](self.sample_rate_hz, self.clip_samples)
        return recording(count, self.sample_rate_hz, self.num_channels)


def clip_features(spec: Any, waveform: np.ndarray) -> np.ndarray:
    """The features of a recording [S] as evaluation makes them of it."""
    batch = {
        contract.AUDIO: jnp.asarray(waveform[None]),
        contract.AUDIO_NUM_SAMPLES: jnp.asarray([len(waveform)], jnp.int32),
    }
    return np.asarray(one_clip(spec, batch, padding="unmasked").features)


def whole_features(spec: Any, waveform: np.ndarray) -> np.ndarray:
    """The features of a whole recording [S], neither cut nor filled."""
    return np.asarray(compute_features(jnp.asarray(waveform[None]), spec))


def _features_alone(spec: Any, make: Callable[[Any, np.ndarray], np.ndarray] = clip_features) -> Any:
    return lambda waveform: {"features": make(spec, waveform[0])}


@functools.cache
def _variables(layout: str, config: Any) -> Any:
    return jax.tree.map(
        jnp.asarray, arrays_to_variables(FORMATS[layout], config, draw_arrays(layout, config))
    )


def _ast(waveform: np.ndarray) -> dict[str, np.ndarray]:
    features = clip_features(AST_SPEC, waveform[0])
    given = _variables("ast-archive", AST)
    logits = Ast(AST, jnp.dtype("float32"), "logits").apply(given, jnp.asarray(features))
    return {"features": features, "outputs": np.asarray(logits)}


def _laion(waveform: np.ndarray) -> dict[str, np.ndarray]:
    features = clip_features(LAION.frontend, waveform[0])
    given = _variables("laion-clap-archive", LAION)
    return {"features": features, "outputs": np.asarray(encode_audio(LAION, given, jnp.asarray(features))[0])}


def _ced(waveform: np.ndarray) -> dict[str, np.ndarray]:
    features = whole_features(CED_SPEC, waveform[0])
    logits = Ced(CED, jnp.dtype("float32"), "logits").apply(
        _variables("ced-archive", CED), jnp.asarray(features)
    )
    return {"features": features, "outputs": 1 / (1 + np.exp(-np.asarray(logits)))}


def _encodec(config: EncodecConfig, waveform: np.ndarray) -> dict[str, np.ndarray]:
    given, kind = _variables("encodec-archive", config), family_of(config)
    samples = jnp.asarray(waveform if config.num_channels == 1 else waveform.T[None])
    codes = family.apply(kind, config, given, samples, method="encode")
    decoded = np.asarray(family.apply(kind, config, given, samples))
    decoded = decoded[0] if config.num_channels == 1 else decoded[0].ravel()
    # Codes are whole numbers: where one differs, the figure is large.
    return {"features": np.asarray(codes)[0], "outputs": decoded[:: len(decoded) // 997][None]}


AST = AstConfig(
    width=192,
    num_layers=12,
    num_heads=3,
    mlp_dim=768,
    num_classes=10,
    layer_norm_eps=1e-6,
    head_norm_eps=1e-5,
)
AST_SPEC = AstSpec(clip=published_clip(1024))
LTU_SPEC = CAV_MAE_FAMILY.frontend
CED = CedConfig(width=128, num_layers=2, num_heads=2, mlp_dim=512, num_classes=10, compat=True)
CED_SPEC = CedSpec(clip=ClipSpec(clip_sec=10.0))
BEATS_SPEC = BeatsSpec(clip=ClipSpec(clip_sec=10.0))
LAION_SPEC = TorchlibrosaSpec(int16_quantize=True, clip=ClipSpec(clip_sec=10.0))
LAION = TwoTowersConfig(
    frontend=LAION_SPEC,
    audio=HtsatConfig(embed_dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), drop_path_rate=0.0),
    text=BERT_NANO,
    embed_dim=16,
)
LAION_FUSION_SPEC = FusionSpec(int16_quantize=True, clip=ClipSpec(clip_sec=10.0))
_SMALL = {"num_filters": 4, "width": 8, "codebook_size": 16}
ENCODEC_24 = dataclasses.replace(EncodecConfig(), bandwidths_kbps=(0.6,), **_SMALL)
ENCODEC_48 = dataclasses.replace(STEREO, bandwidths_kbps=(1.2,), **_SMALL)
_RANDOM_CROP = "their crop is random, and taken at the centre here as our evaluation does"
_RANDOM_PARTS = (
    "their three parts are random, and taken in the middle of each third here as our evaluation does"
)
_LONGER = ("1.7 clips", "2 clips")


def _longer(note: str) -> dict[str, str]:
    return dict.fromkeys((*_LONGER, "one sample more"), note)


def _their_clap(spec: ClapSpec, waveform: np.ndarray) -> dict[str, np.ndarray]:
    """transformers' ClapFeatureExtractor with the values of the published checkpoints, its crop at the centre."""
    import transformers

    extractor = transformers.ClapFeatureExtractor(
        frequency_min=50, frequency_max=14000, truncation="rand_trunc", padding="repeatpad"
    )
    excess = max(0, waveform.shape[1] - spec.clip_samples)
    waveform = waveform[0][excess // 2 :][: spec.clip_samples]
    return {"features": extractor(waveform, sampling_rate=48000, return_tensors="np")["input_features"][:, 0]}


WHISPER_SPEC = WhisperSpec(clip=ClipSpec(clip_sec=30.0, pad="zero", eval_crop="first"))


@functools.cache
def _oracle(case: str, config: Any) -> Any:
    """The PyTorch module of a comparison of `alm zoo --parity`, and our variables of its weights."""
    from alm_jax.interop.formats import PARITY

    parity = next(parity for parity in PARITY if parity.name == case)
    module = parity.oracle(config)
    arrays = {key: value.numpy() for key, value in module.state_dict().items()}
    return parity, module, arrays_to_variables(parity.layout, config, arrays)


def _wav2vec2(waveform: np.ndarray) -> dict[str, np.ndarray]:
    import jax

    spec = WaveformSpec(normalise=True, clip=ClipSpec(clip_sec=waveform.shape[1] / 16000))
    features = clip_features(spec, waveform[0])
    _, _, given = _oracle("wav2vec2, nano", WAV2VEC2_NANO)
    given = jax.tree.map(jnp.asarray, given)
    states = family.apply(family_of(WAV2VEC2_NANO), WAV2VEC2_NANO, given, jnp.asarray(features))
    return {"features": features[:, None], "outputs": pick(np.asarray(states))}


def _their_wav2vec2(waveform: np.ndarray) -> dict[str, np.ndarray]:
    import torch
    import transformers

    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    found = extractor(waveform[0], sampling_rate=16000, return_tensors="pt").input_values
    _, module, _ = _oracle("wav2vec2, nano", WAV2VEC2_NANO)
    with torch.no_grad():
        states = module(found).last_hidden_state
    return {"features": found.numpy()[:, None], "outputs": pick(states.numpy())}


def _their_whisper(waveform: np.ndarray) -> dict[str, np.ndarray]:
    import transformers

    found = transformers.WhisperFeatureExtractor()(waveform[0], sampling_rate=16000, return_tensors="np")
    return {"features": found["input_features"].swapaxes(1, 2)}


AUTHORS = "the authors' code"
TORCHLIBROSA = "torchlibrosa, as the authors call it"
_FIRST_MEAN = "the authors subtract the mean of the whole file, and we that of the clip"
CASES = (
    Case(
        name="AST",
        layout="ast-archive",
        against=AUTHORS,
        sample_rate_hz=16000,
        clip_samples=AST_SPEC.clip_samples,
        ours=_ast,
        notes=_longer(_FIRST_MEAN),
    ),
    Case(
        name="AudioMAE",
        layout="audio_mae",
        against=AUTHORS,
        sample_rate_hz=16000,
        clip_samples=AST_SPEC.clip_samples,
        ours=_features_alone(AST_SPEC),
        notes=_longer(_FIRST_MEAN),
    ),
    Case(
        name="LTU (CAV-MAE)",
        layout="ltu-audio",
        against=AUTHORS,
        sample_rate_hz=16000,
        clip_samples=LTU_SPEC.clip_samples,
        ours=_features_alone(LTU_SPEC),
        notes=_longer(_FIRST_MEAN),
    ),
    Case(
        name="BEATs",
        layout="beats-archive",
        against="torchaudio's Kaldi, as the authors call it",
        sample_rate_hz=16000,
        clip_samples=BEATS_SPEC.clip_samples,
        ours=_features_alone(BEATS_SPEC, whole_features),
        notes={"": "whole recordings: the authors neither cut nor fill"},
    ),
    Case(
        name="CED",
        layout="ced-archive",
        against=AUTHORS,
        sample_rate_hz=16000,
        clip_samples=CED_SPEC.clip_samples,
        ours=_ced,
        notes={"": "whole recordings, in chunks of 1,012 frames, with `compat`"},
    ),
    Case(
        name="LAION CLAP, unfused",
        layout="laion-clap-archive",
        against=AUTHORS,
        sample_rate_hz=48000,
        clip_samples=LAION_SPEC.clip_samples,
        ours=_laion,
        notes=_longer(_RANDOM_CROP),
    ),
    Case(
        name="LAION CLAP, fused",
        layout="laion-clap-archive",
        against=AUTHORS,
        sample_rate_hz=48000,
        clip_samples=LAION_SPEC.clip_samples,
        ours=_features_alone(LAION_FUSION_SPEC),
        notes=_longer(_RANDOM_PARTS),
    ),
    Case(
        name="CLAP, unfused",
        layout="clap",
        against="transformers.ClapFeatureExtractor",
        sample_rate_hz=48000,
        clip_samples=480000,
        ours=_features_alone(CLAP_SPEC := ClapSpec(clip=ClipSpec(clip_sec=10.0))),
        theirs=functools.partial(_their_clap, CLAP_SPEC),
        notes=_longer(_RANDOM_CROP),
    ),
    *(
        Case(
            name=f"CNN14, {name}",
            layout="cnn14-archive",
            against=TORCHLIBROSA,
            sample_rate_hz=spec.sample_rate_hz,
            clip_samples=spec.clip_samples,
            ours=_features_alone(spec, whole_features),
            notes={"": "whole recordings: the authors neither cut nor fill"},
        )
        for name, spec in (("32 kHz", FRONTENDS["32k"]), ("16 kHz", FRONTENDS["16k"]))
    ),
    Case(
        name="Whisper",
        layout="whisper",
        against="transformers.WhisperFeatureExtractor",
        sample_rate_hz=16000,
        clip_samples=WHISPER_SPEC.clip_samples,
        ours=_features_alone(WHISPER_SPEC),
        theirs=_their_whisper,
    ),
    Case(
        name="wav2vec 2.0",
        layout="wav2vec2",
        against="transformers.Wav2Vec2FeatureExtractor, Wav2Vec2Model",
        sample_rate_hz=16000,
        clip_samples=16000,
        ours=_wav2vec2,
        theirs=_their_wav2vec2,
        notes={"": "a clip of one second; whole recordings"},
    ),
    *(
        Case(
            name=f"EnCodec, {config.sample_rate_hz // 1000} kHz",
            layout="encodec-archive",
            against=AUTHORS,
            sample_rate_hz=config.sample_rate_hz,
            clip_samples=config.sample_rate_hz,
            num_channels=config.num_channels,
            ours=functools.partial(_encodec, config),
            notes={"": "features are the codes, outputs the waveform of them; a clip of one second"},
        )
        for config in (ENCODEC_24, ENCODEC_48)
    ),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one family at one length."""

    case: Case
    length: str
    num_samples: int
    errors: Mapping[str, float]
    """By "features" and "outputs"."""

    @property
    def note(self) -> str:
        """Why it differs, or what was chosen."""
        notes = (self.case.notes.get(""), self.case.notes.get(self.length))
        return "; ".join(note for note in notes if note)


def measure(case: Case, length: str) -> Row:
    """Runs ours, and the reference where it is none of the golden arrays."""
    waveform = case.samples(length)
    ours = case.ours(waveform)
    if case.theirs is None:
        with np.load(GOLDEN) as golden:
            prefix = f"{case.name}/{length}/"
            theirs = {key.removeprefix(prefix): golden[key] for key in golden.files if key.startswith(prefix)}
        if ours["features"].ndim > 2:
            ours = ours | {"features": pick(ours["features"])}
    else:
        theirs = case.theirs(waveform)
    errors = {}
    for name, expected in theirs.items():
        found = ours[name]
        assert found.shape == expected.shape, (case.name, length, name, found.shape, expected.shape)
        largest = float(np.abs(expected.astype(np.float64)).max()) or 1.0
        errors[name] = float(np.abs(found.astype(np.float64) - expected).max()) / largest
    return Row(case, length, waveform.shape[1], errors)


def write_table(rows: list[Row]) -> str:
    """docs/fidelity.md."""
    lines = [
        "# Fidelity",
        "",
        "    python -m tests.fidelity --out docs/fidelity.md",
        "",
        "What is imported beside the code of its authors, by family, layout and length of the recording. Figures are",
        "the largest difference, relative to the largest value of the reference, for one recording in 16 bits: a chirp",
        "in noise. The authors' code was run once, outside of this project, and its arrays are in",
        "tests/interop/fidelity.npz (12 frames of a feature map); where a row names transformers, its processor and",
        "class run beside ours. Weights are random. `alm zoo --parity` (docs/parity.md) compares the outputs of every",
        "other family.",
        "",
        "| family | layout | recording | samples | features | outputs | reference | remark |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        figures = [
            f"{row.errors[name]:.1e}" if name in row.errors else "" for name in ("features", "outputs")
        ]
        lines.append(
            f"| {row.case.name} | `{row.case.layout}` | {row.length} | {row.num_samples:,} | {figures[0]} "
            f"| {figures[1]} | {row.case.against} | {row.note} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/fidelity.md"))
    parser.add_argument("--only", default="", help="families whose name holds this")
    own = parser.parse_args()
    rows = []
    for case in CASES:
        for length in LENGTHS:
            if own.only in case.name:
                rows.append(measure(case, length))
                print(case.name, length, rows[-1].errors, flush=True)
    own.out.write_text(write_table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
