"""What a trained model writes about recordings: a run of two heads, or an imported Qwen2-Audio.

A run's config says how prompts are put together, and its tokenizer lies beside it. No training data is read. All
recordings
are one batch, so that one compilation serves them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from alm_jax import batch as contract
from alm_jax.encoders import family
from alm_jax.errors import DataError, UserError
from alm_jax.models import qwen2_audio
from alm_jax.models.generated import Generated
from alm_jax.models.generation import Beam, Greedy, Sample, Strategy, generate
from alm_jax.models.qwen2_audio import Qwen2AudioConfig, expand_audio_tokens
from alm_jax.objectives import build_objective
from alm_jax.objectives.language_modeling import LanguageModelingConfig, write_answers
from alm_jax.ops.frontends import ClipSpec, WhisperSpec, compute_features
from alm_jax.run.load import Model, load_model
from alm_jax.run.session import enable_compilation_cache
from alm_jax.run.workdir import TOKENIZER
from alm_jax.training import sharding
from alm_jax.training.mesh import MeshConfig, build_mesh
from data_pipelines.decode import float_to_pcm, read_audio
from data_pipelines.prompts import answer_end_id, encode_prompts
from data_pipelines.text import pad_id

MAX_NEW_TOKENS = 256
"""Longest answer of an imported model in tokens, where --max-new-tokens is not given."""
MAX_PROMPT = 1024
"""Tokens of the longest question to an imported model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked."""

    audio: tuple[Path, ...]
    prompt: str | None
    """The question; None for the one that the run's config asks."""
    strategy: Strategy
    seed: int
    """Seed of the draws of a sampling strategy."""
    max_new_tokens: int | None
    """None for as many as the run's answers have at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What was written of one recording."""

    audio: str
    prompt: str
    text: str
    num_tokens: int
    """Tokens that were written, an end token included."""
    score: float
    """Log-probability of the text, as `alm_jax.models.generated.Generated` defines it."""


def choose_strategy(
    beams: int | None, temperature: float | None, top_k: int | None, top_p: float | None
) -> Strategy:
    """Greedy decoding, beam search, or draws where anything is said of them. Raises UserError for both."""
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in drawn.items() if value is not None}
    if beams is None:
        return Sample(**given) if given else Greedy()  # type: ignore[arg-type]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UserError(
            f"--beams searches for the likeliest text and {options} draw one: leave one of them out"
        )
    return Beam(num_beams=beams)


def answer(checkpoint: str | Path, request: Request) -> list[Answer]:
    """What the model writes of each recording.

    Raises:
        UserError: the checkpoint is none, or of a model that does not write; the prompt or what is to be written is
            too long for it.
        DataError: a recording cannot be read.
    """
    model = load_model(checkpoint)
    return _answer_imported(model, request) if model.experiment is None else _answer_run(model, request)


def _answer_run(loaded: Model, request: Request) -> list[Answer]:
    config, source = loaded.experiment, loaded.provenance.source
    assert config is not None
    objective, prompt = config.objective, config.data.prompt
    if not isinstance(objective, LanguageModelingConfig) or prompt is None:
        raise UserError(
            f"{source} trained a {type(objective).__name__}, which writes no text; `alm generate` takes a run of a "
            "LanguageModelingConfig"
        )
    model, tokenizer = objective.model, loaded.tokenizer
    if tokenizer is None:
        raise UserError(f"{source} has no {TOKENIZER}; copy it from where the run trained")
    rate_hz = model.frontend.sample_rate_hz
    question = prompt.questions[0] if request.prompt is None else request.prompt
    count = len(request.audio)
    ids, mask, position = encode_prompts(tokenizer, prompt.template, [question] * count, prompt.max_length)
    waveforms = read_recordings(request.audio, rate_hz, round(config.data.window_sec * rate_hz))
    audio, num_samples = pad_recordings(waveforms, round(config.data.window_sec * rate_hz))
    batch = {
        contract.AUDIO: float_to_pcm(audio),
        contract.AUDIO_NUM_SAMPLES: num_samples,
        contract.PROMPT_IDS: ids,
        contract.PROMPT_MASK: mask,
        contract.AUDIO_POSITION: position,
    }
    enable_compilation_cache()
    variables = cut(loaded.variables, build_objective(objective).axes())
    end_id = answer_end_id(tokenizer, prompt.template)
    written = write_answers(
        model,
        variables,
        {key: jnp.asarray(value) for key, value in batch.items()},
        num_new_tokens=request.max_new_tokens or config.data.tokenizer.max_length,
        end_id=end_id,
        pad_id=pad_id(tokenizer),
        strategy=request.strategy,
        key=jax.random.key(request.seed),
    )
    return decode(tokenizer, written, end_id, request.audio, question)


def _answer_imported(model: Model, request: Request) -> list[Answer]:
    config, tokenizer, source = model.config, model.tokenizer, model.provenance.source
    if not isinstance(config, Qwen2AudioConfig):
        raise UserError(
            f"{source} is a {type(config).__name__}, which does not write of recordings; `alm generate` takes "
            "Qwen2-Audio, or a run folder of two heads"
        )
    if tokenizer is None:
        raise UserError(f"{source} has no {TOKENIZER}; put the one that came with the model there")
    if request.prompt is None:
        raise UserError("an imported model has no question of its own; give one by --prompt")
    spec = WhisperSpec(
        num_mels=config.encoder.num_mels,
        clip=ClipSpec(clip_sec=config.encoder.max_positions / 50, pad="zero"),
    )
    waveforms = read_recordings(request.audio, spec.sample_rate_hz, spec.clip_samples)
    audio, num_samples = pad_recordings(waveforms, spec.clip_samples)
    num_frames = -(-num_samples // spec.hop_samples)
    count = len(request.audio)
    asked = encode_prompts(tokenizer, "chatml", [request.prompt] * count, MAX_PROMPT)
    texts = []
    for row, real, place, frames in zip(*asked, num_frames, strict=True):
        tokens = row[real].tolist()
        named = [*tokens[:place], config.audio_token_id, *tokens[place:]]
        texts.append(expand_audio_tokens(config, named, [int(frames)]))
    length = max(map(len, texts))
    ids = np.stack([np.pad(text, (length - len(text), 0)) for text in texts])
    mask = np.stack([np.arange(length) >= length - len(text) for text in texts])
    frame_mask = np.arange(spec.num_frames)[None, :] < num_frames[:, None]
    enable_compilation_cache()
    end_id = answer_end_id(tokenizer, "chatml")
    written = _write_imported(
        config,
        spec,
        cut(model.variables, family.axes(qwen2_audio.FAMILY, config)),
        jnp.asarray(ids),
        jnp.asarray(mask),
        jnp.asarray(audio),
        jnp.asarray(frame_mask),
        num_new_tokens=request.max_new_tokens or MAX_NEW_TOKENS,
        end_id=end_id,
        pad_id=pad_id(tokenizer),
        strategy=request.strategy,
        key=jax.random.key(request.seed),
    )
    return decode(tokenizer, written, end_id, request.audio, request.prompt)


@functools.partial(
    jax.jit, static_argnums=(0, 1), static_argnames=("num_new_tokens", "end_id", "pad_id", "strategy")
)
def _write_imported(
    config: Qwen2AudioConfig,
    spec: WhisperSpec,
    variables: Any,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    waveforms: Float[Array, "B W"],
    frame_mask: Bool[Array, "B T"],
    **options: Any,
) -> Generated:
    features = compute_features(waveforms, spec)
    encoded = features[:, None], frame_mask[:, None]
    # In the precision that the weights are stored in.
    dtype = variables["params"]["projector"]["kernel"].dtype
    return generate(qwen2_audio.FAMILY, config, variables, ids, mask, *encoded, dtype=dtype, **options)


def read_recordings(
    paths: Sequence[Path], sample_rate_hz: int, num_samples: int
) -> list[Float[np.ndarray, "..."]]:
    """Mono waveforms [S] of files, of longer ones ``num_samples`` in their midst. DataError where one is unusable."""
    waveforms = []
    for path in paths:
        try:
            waveform = read_audio(path, sample_rate_hz)
        except DataError as error:
            raise DataError(f"{path} cannot be used: {error}") from error
        start = max(len(waveform) - num_samples, 0) // 2
        waveforms.append(waveform[start : start + num_samples])
    return waveforms


def pad_recordings(
    waveforms: Sequence[Float[np.ndarray, "..."]], num_samples: int
) -> tuple[Float[np.ndarray, "B W"], Int[np.ndarray, " B"]]:
    """Waveforms [S] with zeros behind them, and how many samples of each are real."""
    padded = np.zeros((len(waveforms), num_samples), np.float32)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return padded, np.array([len(waveform) for waveform in waveforms], np.int32)


def cut(variables: dict[str, Any], axes: Any) -> dict[str, Any]:
    """Variables on the devices that are here, the inner widths of layers cut over all of them."""
    mesh = build_mesh(MeshConfig(data=1, tensor=-1))
    params = variables["params"]
    placed = {
        name: jax.device_put(tree, sharding.replicated(mesh))
        for name, tree in variables.items()
        if name != "params"
    }
    return {**placed, "params": jax.device_put(params, sharding.parameter_shardings(axes, params, mesh))}


def decode(
    tokenizer: Tokenizer, written: Generated, end_id: int, paths: Sequence[Path], question: str
) -> list[Answer]:
    """Texts of what was written, without special tokens."""
    ids, mask, scores = (np.asarray(x) for x in (written.ids, written.mask, written.score))
    texts = tokenizer.decode_batch(
        [row[real & (row != end_id)].tolist() for row, real in zip(ids, mask, strict=True)]
    )
    return [
        Answer(
            audio=str(path),
            prompt=question,
            text=text.strip(),
            num_tokens=int(real.sum()),
            score=round(float(score), 6),
        )
        for path, text, real, score in zip(paths, texts, mask, scores, strict=True)
    ]
