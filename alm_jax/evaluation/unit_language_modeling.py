"""What a language model of words and units makes of recordings: their units, and the text that it writes of these."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alm_jax import batch as contract
from alm_jax.models.generated import Generated
from alm_jax.models.unit_language_model import UnitLanguageModelConfig, listen, write
from alm_jax.objectives.unit_language_modeling import (
    UnitLanguageModelingConfig,
    compute_clips,
    make_examples,
    read_examples,
    sequence_loss,
)
from alm_jax.ops.unit_sequences import NUM_TAGS, UNITS_TO_TEXT, Spoken, build_sequences


class Transcribed(NamedTuple):
    """One batch."""

    units: Int[Array, "B N"]
    said: Bool[Array, "B N"]
    """True where a unit is said."""
    written: Generated
    """Words, and units where the model has not learned better."""


@functools.partial(jax.jit, static_argnums=0)
def answer_loss(
    config: UnitLanguageModelingConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    task: int | Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and weight, nats and tokens, of what one task asks of every recording of a batch."""
    clips = compute_clips(config.model, batch)
    examples = make_examples(batch, clips, jnp.full_like(batch[contract.INDEX], task))
    together = config.examples_per_row
    sequences = read_examples(
        config.model, variables, examples, length=config.row_tokens, num_together=together
    )
    words, units = sequence_loss(config.model, variables, sequences, loss_on="answer")
    return jnp.sum(words.sum + units.sum), jnp.sum(words.weight + units.weight)


@functools.partial(jax.jit, static_argnums=0)
def transcribe(
    config: UnitLanguageModelConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    end_id: int | Int[Array, ""],
) -> Transcribed:
    """Greedily what follows the units of each recording, in its prompt where batches have one; up to ``end_id``.

    Written are at most as many tokens as a text of the batch may have. Units that the language model has no positions
    for are left out, from the end.
    """
    clips = compute_clips(config, batch)
    units, said = listen(config, variables, clips.features, clips.frame_mask)
    everything = jnp.ones_like(batch[contract.MASK])
    examples = make_examples(batch, clips, jnp.full(len(units), UNITS_TO_TEXT, jnp.int32))
    num_text, num_prompt = examples.text_ids.shape[1], examples.prompt_ids.shape[1]
    # Of the text only the token is given that it begins with where there is no prompt.
    given = (jnp.arange(num_text)[None] == 0) & examples.text_mask & (num_prompt == 0)
    around = num_text + num_prompt + NUM_TAGS
    length = around + min(units.shape[1], config.language_model.max_positions - around - num_text)
    _, *rest = examples._replace(text_mask=given, mask=everything)
    prompts = build_sequences(Spoken(units, said, *rest), config.vocabulary, length=length)
    written = write(config, variables, prompts, num_new_tokens=num_text, end_id=end_id)
    return Transcribed(units, said, written)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """A recording of which a report says what was heard and written."""

    id: str
    units: tuple[int, ...]
    written: str
    right: tuple[str, ...]
    """Any of these."""

    @property
    def is_right(self) -> bool:
        """Whether exactly one of the right texts was written."""
        return self.written in self.right
