"""A trained model in three lines: load it, embed recordings and texts, or call the encoder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tokenizers import Tokenizer

from alm_jax import batch as contract
from alm_jax.encoders import family
from alm_jax.encoders.family import Family
from alm_jax.encoders.tower import LONGEST_TEXT, text_limits
from alm_jax.errors import UserError
from alm_jax.evaluation.metrics.zero_shot import LAION_TEMPLATE, build_prompts, class_embeddings
from alm_jax.models.catalogue import family_of
from alm_jax.models.two_towers import TwoTowersConfig
from alm_jax.objectives.contrastive import TwoTowers
from alm_jax.run.load import cast_variables, load_model
from alm_jax.run.recordings import Recording, is_one, padded_batches
from alm_jax.run.workdir import TOKENIZER
from alm_jax.types import PyTree
from data_pipelines.decode import Channels
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
    """The tokenizer that came with the weights; None where none did."""

    def __init__(self, config: Any, variables: PyTree, tokenizer: Tokenizer | None = None):
        self.config = config
        self.variables = variables
        self.tokenizer = tokenizer
        self._compiled: dict[tuple[str, str], Any] = {}

    def __repr__(self) -> str:
        count = count_parameters(self.variables) / 1e6
        return f"PretrainedEncoder({self.family.name}, {count:.1f} M parameters)"

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
    """A two-tower model with its tokenizer; the same input always gives the same embedding.

    Every method takes one recording or text, or a sequence of them: one gives one row, a sequence one row each, an
    empty sequence no rows. A recording is a path, a waveform (float samples of full scale 1.0, mono ``[S]`` or
    ``[channels S]``, whose channels are averaged) with ``sample_rate_hz``, or a pair ``(waveform, rate)``. It is
    brought to the model's rate, and cut as the front-end's ``eval_crop`` says where it is longer than a clip.
    """

    def __init__(self, config: TwoTowersConfig, variables: dict[str, Any], tokenizer: Tokenizer):
        self.config = config
        self.variables = variables
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        audio, text = family_of(self.config.audio).name, family_of(self.config.text).name
        frontend = self.config.frontend
        return (
            f"PretrainedTwoTowers({audio} + {text}, {count_parameters(self.variables) / 1e6:.1f} M parameters, "
            f"{self.config.embed_dim} dimensions, clips of {frontend.clip_samples / frontend.sample_rate_hz:g} s at "
            f"{frontend.sample_rate_hz} Hz)"
        )

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities that training learned."""
        return float(np.exp(self.variables["params"]["log_logit_scale"]))

    def embed_audio(
        self,
        recordings: Recording | Sequence[Recording],
        *,
        sample_rate_hz: int | None = None,
        batch_size: int = 32,
        num_threads: int = 4,
        channels: Channels = "mean",
    ) -> Float[np.ndarray, "*N E"]:
        """L2-normalised embeddings: [N E] of a sequence, [E] of one recording.

        Args:
            sample_rate_hz: Rate of waveforms that come without one.
            batch_size: Clips that are computed at once; more take more memory.
            num_threads: Threads that decode files.
            channels: Average the channels of a recording, or take the first one, as the loaders of AST, AudioMAE and
                LTU do.

        Raises:
            DataError: A recording cannot be read, is empty, or holds NaN or infinite samples.
            UserError: Something is no recording, or a waveform comes without its sample rate.
        """
        if batch_size < 1 or num_threads < 1:
            raise UserError(
                f"batch_size is {batch_size} and num_threads {num_threads}; both must be at least 1"
            )
        if is_one(recordings):
            one: Any = [recordings]
            return self.embed_audio(one, sample_rate_hz=sample_rate_hz, channels=channels)[0]
        many = _as_list(recordings, "recordings")
        embeddings = np.zeros((len(many), self.config.embed_dim), np.float32)
        frontend = self.config.frontend
        for padded in padded_batches(
            many,
            frontend.sample_rate_hz,
            frontend.clip_samples,
            sample_rate_hz=sample_rate_hz,
            batch_size=batch_size,
            num_threads=num_threads,
            channels=channels,
        ):
            batch = {
                contract.AUDIO: jnp.asarray(padded.waveforms),
                contract.AUDIO_NUM_SAMPLES: jnp.asarray(padded.num_samples),
            }
            embeddings[padded.places] = TwoTowers(self.config).embed_audio(self.variables, batch)
        return embeddings

    def embed_text(self, texts: str | Sequence[str], *, batch_size: int = 256) -> Float[np.ndarray, "*N E"]:
        """L2-normalised embeddings: [N E] of a sequence of texts, [E] of one text.

        Texts longer than the text tower takes are cut. Raises UserError for what is no text.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        if isinstance(texts, str):
            return self.embed_text([texts])[0]
        many = _as_list(texts, "texts")
        for text in many:
            if not isinstance(text, str):
                raise UserError(f"a text is a {type(text).__name__}: {text!r:.60}; expected a str")
        embeddings = np.zeros((len(many), self.config.embed_dim), np.float32)
        _, longest = text_limits(self.config.text)
        for start in range(0, len(many), batch_size):
            ids, mask = encode(self.tokenizer, many[start : start + batch_size], longest or LONGEST_TEXT)
            # No column that is padding in every text need be computed.
            length = max(int(mask.sum(axis=1).max()), 1)
            embeddings[start : start + batch_size] = TwoTowers(self.config).embed_text(
                self.variables, jnp.asarray(ids[:, :length]), jnp.asarray(mask[:, :length])
            )
        return embeddings

    def similarity(
        self,
        recordings: Recording | Sequence[Recording],
        texts: str | Sequence[str],
        *,
        sample_rate_hz: int | None = None,
    ) -> Float[np.ndarray, "*N M"]:
        """Cosine similarities of recordings (rows) and texts (columns)."""
        return self.embed_audio(recordings, sample_rate_hz=sample_rate_hz) @ self.embed_text(texts).T

    def classify(
        self,
        recordings: Recording | Sequence[Recording],
        labels: Sequence[str],
        *,
        templates: Sequence[str] = (LAION_TEMPLATE,),
        sample_rate_hz: int | None = None,
    ) -> Float[np.ndarray, "*N C"]:
        """Zero-shot probabilities of the labels: [N C] of a sequence, [C] of one recording.

        A label's embedding is the normalised mean of those of its prompts, one a template, in which ``{}`` stands for
        the label. The probabilities are the softmax of the cosines times `logit_scale`.
        """
        names = _as_list(labels, "labels")
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"labels are {names!r:.80}; expected at least one str")
        if isinstance(templates, str):
            templates = (templates,)
        classes = class_embeddings(self.embed_text(build_prompts(names, templates)), len(names))
        logits = self.logit_scale * self.embed_audio(recordings, sample_rate_hz=sample_rate_hz) @ classes.T
        likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return likely / likely.sum(axis=-1, keepdims=True)


def count_parameters(variables: PyTree) -> int:
    """The number of parameters, statistics of batches left out."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _as_list(many: Any, name: str) -> list[Any]:
    """A sequence as a list. Raises UserError for anything else, such as one text where labels are expected."""
    if isinstance(many, str | bytes | dict) or not isinstance(many, Iterable):
        raise UserError(f"{name} are a {type(many).__name__}; expected a list")
    return list(many)
