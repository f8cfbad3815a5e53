"""Language modelling over words and audio units: speech goes on, becomes text, or is made of text.

SpeechGPT (https://arxiv.org/abs/2305.11000): modality adaptation on speech alone, then both directions between speech
and text, the loss on whole sequences. AudioPaLM (https://arxiv.org/abs/2306.12925): several tasks in one model, the
loss on what the task asks for.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.errors import UserError
from alm_jax.losses.language_modeling import next_token_loss
from alm_jax.models.audio_units import ClusterUnitsConfig, frame_vectors
from alm_jax.models.capabilities import TextTokens
from alm_jax.models.generated import Generated, without_end
from alm_jax.models.unit_language_model import (
    UNIT_LANGUAGE_MODEL,
    UnitLanguageModelConfig,
    encode_units,
    predict,
    write,
)
from alm_jax.nn.language_model import head_kernel
from alm_jax.objectives.k_means import fit_clusters
from alm_jax.objectives.objective import (
    LOSS,
    DataFacts,
    Fitted,
    Inputs,
    Loss,
    Objective,
    ObjectiveConfig,
    TrainingData,
    loss_figure,
)
from alm_jax.objectives.recordings import Clips, WaveformAugmentConfig, one_clip
from alm_jax.ops.unit_sequences import (
    NUM_TAGS,
    SPEECH,
    TEXT_TO_UNITS,
    UNITS_TO_TEXT,
    Sequences,
    Spoken,
    build_sequences,
    unit_budget,
)
from alm_jax.types import Metrics, Params

LossOn: TypeAlias = Literal["all", "answer"]
"""Every token but an example's first, or what its task asks for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitTasksConfig:
    """Relative frequencies of the tasks; the task is chosen at random for every example and step."""

    speech: float = 1.0
    """Units alone (SpeechGPT's first stage)."""
    units_to_text: float = 1.0
    """Units, then their text: recognition, or a caption. The prompt stands around the units where batches have one."""
    text_to_units: float = 1.0
    """Text, then its units: synthesis up to the waveform."""

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or not sum(self.shares):
            raise UserError(f"tasks weighs {self.shares}; expected none below 0, and one above")

    @property
    def shares(self) -> tuple[float, float, float]:
        """In the order of `alm_jax.ops.unit_sequences`."""
        return self.speech, self.units_to_text, self.text_to_units


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitLanguageModelingConfig(ObjectiveConfig):
    """A language model of words and units, trained to go on with both."""

    model: UnitLanguageModelConfig
    """Front-end, units and language model."""
    tasks: UnitTasksConfig = UnitTasksConfig()
    """Frequencies of the tasks."""
    loss_on: LossOn = "all"
    """Tokens that are predicted: "all", every token except an example's first (SpeechGPT), or only the task's target,
    the text after units or the units after <sosp> (AudioPaLM)."""
    row_tokens: int
    """Tokens of a row of the language model. Texts and prompts always fit; units that do not fit are left out at the
    end, of a row's longest example first."""
    examples_per_row: int = 1
    """Neighbouring examples that share a row without seeing each other; divides the rows of a micro-batch. Where a row
    is too short for all units, how many are cut depends on the neighbours, and so on the division into
    micro-batches."""
    augment: WaveformAugmentConfig = WaveformAugmentConfig()
    """Waveform augmentation."""

    def __post_init__(self) -> None:
        if self.examples_per_row < 1:
            raise UserError(f"examples_per_row is {self.examples_per_row}; expected at least 1")
        longest = self.model.language_model.max_positions
        if self.row_tokens // self.examples_per_row > longest:
            raise UserError(
                f"row_tokens {self.row_tokens} over examples_per_row {self.examples_per_row} are more than the "
                f"language model's max_positions {longest}: lower row_tokens"
            )

    @property
    def num_words(self) -> int:
        """Tokens of texts that the model has entries for."""
        return self.model.vocabulary.num_words

    def build(self) -> Objective:
        """The objective as pure functions."""
        return build_unit_language_modeling(self)


class Examples(NamedTuple):
    """Rows of the objective's inputs."""

    clips: Clips
    text_ids: Int[Array, "B L"]
    text_mask: Bool[Array, "B L"]
    prompt_ids: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    audio_position: Int[Array, " B"]
    task: Int[Array, " B"]
    mask: Bool[Array, " B"]


class Terms(NamedTuple):
    """The loss of some examples, [1] each: of their words, and of their units and tags."""

    words: Loss
    units: Loss


def evaluation_clips(model: UnitLanguageModelConfig, batch: dict[str, Any]) -> Clips:
    """The clip of each recording that evaluation makes units of; padding makes none."""
    return one_clip(model.frontend, batch, padding="masked")


def make_examples(batch: dict[str, Any], clips: Clips, task: Int[Array, " B"]) -> Examples:
    """Clips with what a batch says of them."""
    num_rows = len(batch[contract.MASK])
    nothing = {
        contract.PROMPT_IDS: jnp.zeros((num_rows, 0), jnp.int32),
        contract.PROMPT_MASK: jnp.zeros((num_rows, 0), bool),
        contract.AUDIO_POSITION: jnp.zeros(num_rows, jnp.int32),
    }
    read = nothing | batch
    return Examples(
        clips,
        text_ids=read[contract.TEXT_IDS],
        text_mask=read[contract.TEXT_MASK],
        prompt_ids=read[contract.PROMPT_IDS],
        prompt_mask=read[contract.PROMPT_MASK],
        audio_position=read[contract.AUDIO_POSITION],
        task=task,
        mask=read[contract.MASK],
    )


def read_examples(
    model: UnitLanguageModelConfig,
    variables: dict[str, Any],
    examples: Examples,
    *,
    length: int,
    num_together: int = 1,
) -> Sequences:
    """Examples as rows of ``length`` tokens, their recordings as units."""
    clips, *rest = examples
    units, unit_mask = encode_units(model, variables, clips.features, clips.frame_mask)
    return build_sequences(
        Spoken(units, unit_mask, *rest),
        model.vocabulary,
        length=length,
        num_together=num_together,
        has_start=examples.prompt_ids.shape[1] == 0,
    )


def sequence_loss(
    model: UnitLanguageModelConfig,
    variables: dict[str, Any],
    sequences: Sequences,
    *,
    loss_on: LossOn,
    train: bool = False,
    key: Any = None,
) -> Terms:
    """The loss of rows of tokens, each predicted from those before it in its example."""
    states = predict(model, variables, sequences, train=train, key=key)
    kernel, tied = head_kernel(model.language_model, variables["params"]["language_model"])
    counts = sequences.mask & ~sequences.is_first
    if loss_on == "answer":
        counts &= sequences.is_answer

    def loss(mask: Array) -> Loss:
        found = next_token_loss(states, kernel, sequences.ids, mask=mask, tied=tied)
        return Loss(*(x[None] for x in found))

    return Terms(loss(counts & ~sequences.is_unit), loss(counts & sequences.is_unit))


def check_row_tokens(config: UnitLanguageModelingConfig, num_text: int, num_prompt: int) -> None:
    """Raises UserError where texts and prompts of so many tokens leave no room for units."""
    budget = unit_budget(config.row_tokens, config.examples_per_row, num_text, num_prompt)
    if budget < config.examples_per_row:
        raise UserError(
            f"row_tokens is {config.row_tokens}; {config.examples_per_row} texts of {num_text} tokens, with prompts of "
            f"{num_prompt} and two tags each, leave {budget} units: raise it, or lower examples_per_row"
        )


FIGURES = (
    LOSS,
    loss_figure("word_loss", "loss of words"),
    loss_figure("unit_loss", "loss of units and tags"),
    loss_figure("bits_per_unit", "bits a unit"),
)
"""What training records, and what `measure_tasks` measures: its ``word_loss`` is of texts given their units alone."""
CLUSTERS = "units/clusters"
"""Path of what k-means finds."""


def is_fitted_here(config: UnitLanguageModelingConfig, facts: DataFacts) -> bool:
    """Whether a run fits its clusters: there are some, and ``init_from`` does not bring them."""
    return isinstance(config.model.units, ClusterUnitsConfig) and not facts.is_given(CLUSTERS)


def check_units_and_rows(config: UnitLanguageModelingConfig, facts: DataFacts) -> None:
    """Raises UserError where words, lengths or rows do not fit, or scikit-learn is missing."""
    if is_fitted_here(config, facts):
        import sklearn.cluster  # noqa: F401
    vocabulary, num_words = config.model.vocabulary, facts.vocab_size
    if num_words > vocabulary.num_words:
        raise UserError(
            f"the tokenizer has {num_words} tokens, and language_model.vocab_size "
            f"{config.model.language_model.vocab_size} less {vocabulary.num_units} units and two tags leaves "
            f"{vocabulary.num_words}: make it at least {num_words + vocabulary.size - vocabulary.num_words}"
        )
    if not facts.tokens.end:
        raise UserError(
            "the tokenizer puts no token after a text, so that no text would ever end; take another"
        )
    check_row_tokens(config, facts.max_length, facts.prompt_length or 0)
    together = config.examples_per_row
    for name, rows in (
        ("training.batch_size in a micro-batch", facts.batch_size // facts.num_microbatches),
        ("eval_batch_size", facts.eval_batch_size),
    ):
        if rows % together:
            raise UserError(
                f"objective.examples_per_row is {together}, and {name} is {rows}, no multiple of it: change one of them"
            )


@functools.partial(jax.jit, static_argnums=0)
def cluster_frames(
    config: UnitLanguageModelConfig, params: Any, batch: dict[str, Array]
) -> tuple[Float[Array, "B N D"], Bool[Array, "B N"]]:
    """What k-means is fitted to, and which of it is of real audio; ``params`` are those of the units."""
    units = config.units
    assert isinstance(units, ClusterUnitsConfig)
    clips = evaluation_clips(config, batch)
    dtype = jnp.dtype(config.compute_dtype)
    return frame_vectors(units, params, clips.features, clips.frame_mask, dtype=dtype)


def fit_units(
    config: UnitLanguageModelingConfig, variables: dict[str, Any], facts: DataFacts, data: TrainingData
) -> Fitted | None:
    """The clusters of the first frames in the order of training; None where the run fits none."""
    units = config.model.units
    if not is_fitted_here(config, facts):
        return None
    assert isinstance(units, ClusterUnitsConfig)
    num_clips = min(units.num_fit_clips, data.num_clips)
    found, num_rows = [], 0
    while num_rows < num_clips:
        batch = {name: np.array(value) for name, value in next(data.batches).items()}
        placed = data.place(batch)
        frames, is_real = map(data.fetch, cluster_frames(config.model, variables["params"]["units"], placed))
        rows = min(len(frames), num_clips - num_rows)
        found.append(frames[:rows][is_real[:rows]])
        num_rows += rows
    frames = np.concatenate(found)
    clusters = fit_clusters(frames, units.num_units, seed=data.seed)
    message = f"{units.num_units} units from {len(frames):,} frames of {num_clips:,} clips, by k-means"
    return Fitted(CLUSTERS, clusters, message)


def measured_tasks(config: UnitLanguageModelingConfig) -> dict[str, int]:
    """The tasks whose losses are of words given units, and of units, where they are trained."""
    tasks, measured = config.tasks, {}
    if tasks.units_to_text:
        measured["word_loss"] = UNITS_TO_TEXT
    if tasks.speech or tasks.text_to_units:
        measured["bits_per_unit"] = SPEECH if tasks.speech else TEXT_TO_UNITS
    return measured


@functools.partial(jax.jit, static_argnums=0)
def answer_loss(
    config: UnitLanguageModelingConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    task: int | Int[Array, ""],
) -> Loss:
    """The loss, in nats, of what one task asks of every recording of a batch."""
    clips = evaluation_clips(config.model, batch)
    examples = make_examples(batch, clips, jnp.full_like(batch[contract.INDEX], task))
    together = config.examples_per_row
    sequences = read_examples(
        config.model, variables, examples, length=config.row_tokens, num_together=together
    )
    words, units = sequence_loss(config.model, variables, sequences, loss_on="answer")
    return Loss(jnp.sum(words.sum + units.sum), jnp.sum(words.weight + units.weight))


def measure_tasks(
    config: UnitLanguageModelingConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> dict[str, Loss]:
    """``word_loss``, nats a token of the text given the units, and ``bits_per_unit``, each of one task alone."""
    found = {
        name: answer_loss(config, variables, batch, task) for name, task in measured_tasks(config).items()
    }
    if "bits_per_unit" in found:
        nats = found["bits_per_unit"]
        found["bits_per_unit"] = Loss(nats.sum / math.log(2), nats.weight)
    return found


@dataclasses.dataclass(frozen=True)
class UnitLanguageModel:
    """What a language model of words and units can do: make units of recordings, and write the text of these."""

    config: UnitLanguageModelConfig

    @property
    def num_units(self) -> int:
        """How many different units there are."""
        return self.config.units.num_units

    @functools.partial(jax.jit, static_argnums=0)
    def encode_units(
        self, variables: dict[str, Any], batch: dict[str, Array]
    ) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
        """The units of each recording, and which of them are real and not the one before them again."""
        clips = evaluation_clips(self.config, batch)
        return encode_units(self.config, variables, clips.features, clips.frame_mask)

    @functools.partial(jax.jit, static_argnums=(0, 3), static_argnames=("tokens", "num_new_tokens"))
    def generate_text(
        self, variables: dict[str, Any], batch: dict[str, Array], tokens: TextTokens, *, num_new_tokens: int
    ) -> Generated:
        """What follows the units of each recording, in its prompt where batches have one.

        Units that the language model has no positions for are left out, from the end. Unit u has the id of the last
        word plus 1 + u.
        """
        config = self.config
        clips = evaluation_clips(config, batch)
        units, unit_mask = encode_units(config, variables, clips.features, clips.frame_mask)
        everything = jnp.ones_like(batch[contract.MASK])
        examples = make_examples(batch, clips, jnp.full(len(units), UNITS_TO_TEXT, jnp.int32))
        num_text, num_prompt = examples.text_ids.shape[1], examples.prompt_ids.shape[1]
        # Of the text only the token is given that it begins with where there is no prompt.
        given = (jnp.arange(num_text)[None] == 0) & examples.text_mask & (num_prompt == 0)
        around = num_text + num_prompt + NUM_TAGS
        room = config.language_model.max_positions - around - max(num_text, num_new_tokens)
        length = around + min(units.shape[1], room)
        _, *rest = examples._replace(text_mask=given, mask=everything)
        prompts = build_sequences(Spoken(units, unit_mask, *rest), config.vocabulary, length=length)
        written = write(config, variables, prompts, num_new_tokens=num_new_tokens, end_id=tokens.end[0])
        return without_end(written, tokens.end[0])


def build_unit_language_modeling(config: UnitLanguageModelingConfig) -> Objective:
    """The objective as pure functions."""
    model = config.model

    def draw_tasks(keys: Any) -> Int[Array, " B"]:
        shares = jnp.log(jnp.asarray(config.tasks.shares, jnp.float32))
        return jax.vmap(lambda key: jax.random.categorical(key, shares))(keys).astype(jnp.int32)

    def prepare(batch: dict[str, Any], key: Any, *, train: bool) -> Inputs:
        num_prompt = batch[contract.PROMPT_IDS].shape[1] if contract.PROMPT_IDS in batch else 0
        check_row_tokens(config, batch[contract.TEXT_IDS].shape[1], num_prompt)
        if train:
            key_task, key_audio = jax.random.split(key)
            clips = one_clip(
                model.frontend, batch, padding="masked", train=True, key=key_audio, augment=config.augment
            )
            tasks = draw_tasks(jax.random.split(key_task, len(clips.features)))
        else:
            # In evaluation an example's task goes by its place in the split, and never changes.
            clips = evaluation_clips(model, batch)
            tasks = draw_tasks(
                jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(batch[contract.INDEX])
            )
        return Inputs(make_examples(batch, clips, tasks), None)

    def encode(variables: dict[str, Any], inputs: Inputs, key: Any, *, train: bool) -> tuple[Terms, Params]:
        """The loss of these rows, a sum: which is all that is kept of sequences that do not line up with rows."""
        sequences = read_examples(
            model, variables, inputs.rows, length=config.row_tokens, num_together=config.examples_per_row
        )
        key = key if train else None
        terms = sequence_loss(model, variables, sequences, loss_on=config.loss_on, train=train, key=key)
        return terms, variables["batch_stats"]

    def combine(params: Params, outputs: Terms, batch: dict[str, Any], key: Any) -> tuple[Loss, Metrics]:
        """Adds up, and tells words and units apart."""
        words, units = jax.tree.map(jnp.sum, outputs)
        total = Loss(words.sum + units.sum, words.weight + units.weight)
        return total, {"word_loss": words, "unit_loss": units}

    return Objective(
        init=lambda key: UNIT_LANGUAGE_MODEL.init(model, key),
        axes=lambda: UNIT_LANGUAGE_MODEL.axes(model),
        prepare=prepare,
        encode=encode,
        combine=combine,
        project=lambda params: params,
        trained=lambda params: {name: tree for name, tree in params.items() if name != "units"},
        check=functools.partial(check_units_and_rows, config),
        fit=functools.partial(fit_units, config),
        figures=FIGURES,
        capabilities=lambda tokens: UnitLanguageModel(model),
        measure=functools.partial(measure_tasks, config),
    )
