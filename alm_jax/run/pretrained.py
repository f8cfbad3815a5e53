"""A trained model in three lines: load it, embed recordings and texts, or call the encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soxr
from jaxtyping import Float
from tokenizers import Tokenizer

from alm_jax import batch as contract
from alm_jax.encoders import family
from alm_jax.encoders.family import Family
from alm_jax.encoders.tower import LONGEST_TEXT, text_limits
from alm_jax.errors import DataError, UserError
from alm_jax.models.catalogue import family_of
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import TwoTowers
from alm_jax.run.load import cast_variables, load_model
from alm_jax.run.workdir import TOKENIZER
from alm_jax.types import PyTree
from data_pipelines.decode import read_audio
from data_pipelines.text import encode


def from_pretrained(
    source: str | Path, *, dtype: str | None = None
) -> "PretrainedTwoTowers | PretrainedEncoder":
    """A model with its weights: two towers of a CLAP, or any one encoder or language model of the zoo.

    >>> model = alm_jax.from_pretrained("exported")  # doctest: +SKIP
    >>> audio = model.embed_audio(["dog.wav"])  # doctest: +SKIP
    >>> similarity = audio @ model.embed_text(["a dog barking", "rain"]).T  # doctest: +SKIP

    Args:
        source: a run folder of two towers (``RUN@STEP`` for one of its steps), a folder of ``alm export``,
            ``alm import`` or transformers' ``save_pretrained``, an archive of ``torch.save``, or an id of the Hugging
            Face Hub.
        dtype: of every float array; None leaves each what the file has. Two towers are always float32.

    Raises UserError where it is not such a model, with what is missing or does not fit.
    """
    model = load_model(source, dtype=dtype)
    if not isinstance(model.config, TwoTowersConfig):
        if model.experiment is not None:
            raise UserError(
                f"{source} is a run of a {type(model.config).__name__}, which is neither two towers nor a model of the "
                "zoo; `alm export --part` writes a part of it that is"
            )
        return PretrainedEncoder(model.config, model.variables, model.tokenizer)
    if model.tokenizer is None:
        raise UserError(
            f"{source} has no {TOKENIZER}, and two towers read texts; put the one that the model was trained with "
            "into the folder (for an archive: into original/ of the folder that `alm import` writes)"
        )
    return PretrainedTwoTowers(model.config, cast_variables(model.variables, "float32"), model.tokenizer)


class PretrainedEncoder:
    """An encoder or language model of the zoo with its weights; a call is a compiled forward pass.

    >>> whisper = alm_jax.from_pretrained("openai/whisper-tiny")  # doctest: +SKIP
    >>> states = whisper(features, method="encode")  # doctest: +SKIP
    """

    config: Any
    """The config of its family."""
    variables: PyTree
    """``{"params": ...}``, and ``"batch_stats"`` where there are any."""
    tokenizer: Tokenizer | None
    """Where one came with the weights."""

    def __init__(self, config: Any, variables: PyTree, tokenizer: Tokenizer | None = None):
        self.config = config
        self.variables = variables
        self.tokenizer = tokenizer
        self._compiled: dict[tuple[str, str], Any] = {}

    @property
    def family(self) -> Family:
        """What the zoo knows of such models: its variants, its front-end, its source."""
        return family_of(self.config)

    def __call__(self, *inputs: Any, dtype: Any = jnp.float32, **options: Any) -> Any:
        """The module's output for its inputs (`Family.example` has their shapes).

        Args:
            dtype: of the matrix products.
            options: the module's own keyword arguments: arrays, or anything else as it is.
        """
        arrays = {name: value for name, value in options.items() if hasattr(value, "shape")}
        fixed = {name: value for name, value in options.items() if name not in arrays}
        key = (str(jnp.dtype(dtype)), repr(sorted(fixed.items())))
        if key not in self._compiled:
            of = self.family
            self._compiled[key] = jax.jit(
                lambda variables, inputs, arrays: family.apply(
                    of, self.config, variables, *inputs, dtype=dtype, **fixed, **arrays
                )
            )
        return self._compiled[key](self.variables, inputs, arrays)


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
        _, longest = text_limits(self.config.text)
        ids, mask = encode(self.tokenizer, list(texts), longest or LONGEST_TEXT)
        # No column that is padding in every text need be computed.
        length = max(int(mask.sum(axis=1).max()), 1)
        return np.asarray(
            TwoTowers(self.config).embed_text(
                self.variables, jnp.asarray(ids[:, :length]), jnp.asarray(mask[:, :length])
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
        return np.asarray(TwoTowers(self.config).embed_audio(self.variables, batch))

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
