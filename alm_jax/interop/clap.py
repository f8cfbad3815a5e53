"""Folders that `transformers.ClapModel` and `ClapProcessor` load, written and read without PyTorch."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tokenizers import Tokenizer

from alm_jax.errors import UserError, as_user_error
from alm_jax.interop.clap_config import (
    clap_to_config,
    config_to_clap,
    frontend_to_preprocessor,
    special_tokens,
    tokenizer_to_transformers,
)
from alm_jax.interop.clap_weights import CLAP
from alm_jax.interop.format import arrays_to_variables, variables_to_arrays
from alm_jax.interop.model_files import PREPROCESSOR, need_file, read_fields
from alm_jax.interop.safetensors_io import cast_floats, read_weights, write_weights
from alm_jax.interop.written_whole import written_whole
from alm_jax.models.two_towers import TwoTowersConfig, Variables, encode_audio, encode_text
from alm_jax.ops.frontends import FusionSpec, compute_features, compute_fusion, fit_clips


def export_clap(
    folder: str | Path,
    config: TwoTowersConfig,
    variables: Variables,
    tokenizer_json: str | Path,
    model_card: str,
) -> None:
    """Writes config.json, model.safetensors, the preprocessor's and tokenizer's files and README.md.

    Args:
        folder: created if missing, and replaced if it is an older export.
        tokenizer_json: the tokenizer that the model was trained with.
        model_card: text of README.md (`model_card.write_model_card`).

    Raises:
      UserError: the front-end, the text tower or the tokenizer has no counterpart in transformers.
    """
    tokenizer = _read_tokenizer(Path(tokenizer_json))
    tokens = special_tokens(tokenizer, config.text)
    ids = {role: tokenizer.get_vocab()[token] for role, token in tokens.items()}
    files = {
        "config.json": config_to_clap(config, ids),
        "preprocessor_config.json": frontend_to_preprocessor(config.frontend),
        "tokenizer_config.json": tokenizer_to_transformers(tokens, config.text),
    }
    arrays = variables_to_arrays(CLAP, config, variables)

    with written_whole(folder) as new:
        for name, content in files.items():
            (new / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(tokenizer_json, new / "tokenizer.json")
        (new / "README.md").write_text(model_card, encoding="utf-8")
        write_weights(new, arrays)


def import_clap(folder: str | Path) -> tuple[TwoTowersConfig, Variables, Path]:
    """Reads a ClapModel's folder: config, variables (NumPy, float32) and path of tokenizer.json.

    Raises:
      UserError: a file is missing or unreadable, or the model is not one that our towers compute.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected an exported model (config.json, ...)")
    fields = read_fields(folder)
    if PREPROCESSOR not in fields:
        raise UserError(
            f"{folder / 'preprocessor_config.json'}: no such file; expected a folder for ClapModel"
        )
    config = clap_to_config(fields, fields.section(PREPROCESSOR))
    tokenizer_path = need_file(folder, "tokenizer.json", "the tokenizer of a ClapModel")
    _read_tokenizer(tokenizer_path)
    variables = arrays_to_variables(CLAP, config, cast_floats(read_weights(folder), np.float32))
    return config, variables, tokenizer_path


def compare_with_transformers(
    folder: str | Path,
    waveforms: Sequence[Float[np.ndarray, "_"]],
    texts: Sequence[str],
    sample_rate_hz: int,
) -> float:
    """Largest absolute difference between the logits of PyTorch's ClapModel and ours, from ``folder``.

    Both start from the waveforms and the texts, each with its own front-end and tokenizer. Waveforms are
    cut to a clip first, where transformers would cut at random, and none is marked longer, while transformers marks a
    random one with feature fusion. Needs PyTorch and transformers.

    Raises:
      UserError: they are not installed, or ``sample_rate_hz`` is not the model's.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"comparing with transformers needs PyTorch ({error}): pip install 'alm_jax[torch]'"
        ) from error
    folder = Path(folder)
    config, variables, tokenizer_path = import_clap(folder)
    if sample_rate_hz != config.frontend.sample_rate_hz:
        raise UserError(
            f"the waveforms are at {sample_rate_hz} Hz, the model takes {config.frontend.sample_rate_hz} Hz; "
            "resample them"
        )
    clips = [np.asarray(waveform[: config.frontend.clip_samples], np.float32) for waveform in waveforms]

    transformers.utils.logging.disable_progress_bar()
    processor = transformers.ClapProcessor.from_pretrained(folder, local_files_only=True)
    model = transformers.ClapModel.from_pretrained(folder, local_files_only=True).eval()
    inputs = processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    inputs |= processor.feature_extractor(clips, sampling_rate=sample_rate_hz, return_tensors="pt")
    if isinstance(config.frontend, FusionSpec):
        inputs["is_longer"] = torch.zeros(len(clips), 1, dtype=torch.bool)
    with torch.no_grad():
        theirs = model(**inputs).logits_per_audio.numpy()
    ours = _compute_logits(config, variables, _read_tokenizer(tokenizer_path), clips, texts)
    return float(np.max(np.abs(ours - theirs)))


def _compute_logits(
    config: TwoTowersConfig,
    variables: Variables,
    tokenizer: Tokenizer,
    clips: Sequence[np.ndarray],
    texts: Sequence[str],
) -> np.ndarray:
    """Scaled cosine similarities of clips (rows) and texts (columns), from scratch."""
    tokenizer.enable_truncation(config.text.max_length)
    tokenizer.enable_padding(pad_id=config.text.pad_id)
    encodings = tokenizer.encode_batch(list(texts))
    text_ids = jnp.asarray([encoding.ids for encoding in encodings], jnp.int32)
    text_mask = jnp.asarray([encoding.attention_mask for encoding in encodings], jnp.bool_)

    spec = config.frontend
    num_samples = jnp.asarray([len(clip) for clip in clips], jnp.int32)
    padded = np.zeros((len(clips), max(len(clip) for clip in clips)), np.float32)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip

    @jax.jit
    def compute(variables: Variables, waveforms: jax.Array) -> jax.Array:
        if isinstance(spec, FusionSpec):
            features, longer = compute_fusion(waveforms, num_samples, spec)
            audio_emb, _ = encode_audio(config, variables, features, longer=longer)
        else:
            fitted, _ = fit_clips(
                waveforms, num_samples, clip_samples=spec.clip_samples, crop="first", pad=spec.clip.pad
            )
            audio_emb, _ = encode_audio(config, variables, compute_features(fitted[:, 0], spec))
        text_emb = encode_text(config, variables, text_ids, text_mask)
        similarity = jnp.matmul(audio_emb, text_emb.T, precision="highest")
        return jnp.exp(variables["params"]["log_logit_scale"]) * similarity

    with jax.default_matmul_precision("highest"):
        return np.asarray(compute(variables, jnp.asarray(padded)))


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a tokenizer.json")
    with as_user_error(f"{path}: not a tokenizer that the tokenizers library reads"):
        return Tokenizer.from_file(str(path))
