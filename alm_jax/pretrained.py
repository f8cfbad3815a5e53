"""A trained model in three lines: load a folder, embed recordings, embed texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import soxr
from jaxtyping import Float
from tokenizers import Tokenizer

from alm_jax import batch as contract
from alm_jax.errors import DataError, UserError
from alm_jax.evaluation.encoders import embed_captions, embed_recordings
from alm_jax.interop.clap import import_clap
from alm_jax.models.two_towers import TwoTowersConfig
from data_pipelines.decode import read_audio
from data_pipelines.text import encode, load_tokenizer


def from_pretrained(folder: str | Path) -> "PretrainedTwoTowers":
    """The model of a folder that ``alm export`` or transformers' ``save_pretrained`` wrote.

    >>> model = alm_jax.from_pretrained("exported")  # doctest: +SKIP
    >>> audio = model.embed_audio(["dog.wav"])  # doctest: +SKIP
    >>> similarity = audio @ model.embed_text(["a dog barking", "rain"]).T  # doctest: +SKIP

    Raises UserError where the folder is not such a model, with what is missing or does not fit.
    """
    config, variables, tokenizer_path = import_clap(folder)
    return PretrainedTwoTowers(config, variables, load_tokenizer(tokenizer_path))


class PretrainedTwoTowers:
    """A two-tower model with its tokenizer; the same input always gives the same embedding."""

    def __init__(self, config: TwoTowersConfig, variables: dict[str, Any], tokenizer: Tokenizer):
        self.config = config
        self.variables = variables
        self.tokenizer = tokenizer

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities that training learned."""
        return float(np.exp(self.variables["params"]["log_logit_scale"]))

    def embed_audio(
        self, recordings: Sequence[str | Path | np.ndarray], *, sample_rate_hz: int | None = None
    ) -> Float[np.ndarray, "B E"]:
        """L2-normalised embeddings of files, or of mono waveforms [S] at ``sample_rate_hz``.

        Files are decoded and brought to the model's rate. A recording longer than the model's clip is cut as
        the front-end's ``eval_crop`` says.

        Raises:
            DataError: a recording cannot be read, is empty, or holds NaN or infinite samples.
            UserError: a waveform is not mono float, or comes without its sample rate.
        """
        return np.concatenate([self._embed_one(recording, sample_rate_hz) for recording in recordings])

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "B E"]:
        """L2-normalised embeddings of texts; those longer than the text tower takes are cut."""
        ids, mask = encode(self.tokenizer, list(texts), self.config.text.max_length)
        # No column that is padding in every text need be computed.
        length = max(int(mask.sum(axis=1).max()), 1)
        return np.asarray(
            embed_captions(
                self.config, self.variables, jnp.asarray(ids[:, :length]), jnp.asarray(mask[:, :length])
            )
        )

    def _embed_one(self, recording: str | Path | np.ndarray, sample_rate_hz: int | None) -> np.ndarray:
        waveform = self._load(recording, sample_rate_hz)
        # Whole clips, so that recordings of similar length share a compilation.
        clip = self.config.frontend.clip_samples
        padded = np.zeros((1, -(-len(waveform) // clip) * clip), np.float32)
        padded[0, : len(waveform)] = waveform
        batch = {
            contract.AUDIO: jnp.asarray(padded),
            contract.AUDIO_NUM_SAMPLES: jnp.asarray([len(waveform)], jnp.int32),
        }
        return np.asarray(embed_recordings(self.config, self.variables, batch))

    def _load(self, recording: str | Path | np.ndarray, sample_rate_hz: int | None) -> np.ndarray:
        rate_hz = self.config.frontend.sample_rate_hz
        if isinstance(recording, str | Path):
            try:
                return read_audio(recording, rate_hz)
            except DataError as error:
                raise DataError(f"{recording} cannot be used: {error}") from error
        if recording.ndim != 1 or recording.dtype.kind != "f":
            raise UserError(
                f"a waveform has shape {recording.shape} and dtype {recording.dtype}; expected mono samples [S] as "
                "floats of full scale 1.0 (average the channels of a stereo recording first)"
            )
        if sample_rate_hz is None:
            raise UserError(f"a waveform came without sample_rate_hz; say it (the model's own is {rate_hz})")
        if len(recording) == 0 or not np.isfinite(recording).all():
            raise DataError("a waveform is empty or holds NaN or infinite samples")
        waveform = recording.astype(np.float32)
        return (
            waveform if sample_rate_hz == rate_hz else soxr.resample(waveform, sample_rate_hz, rate_hz, "HQ")
        )
