"""Texts over one vocabulary of words and audio units, built on the device and packed several to a row.

    speech         <sosp> units <eosp>                                         SpeechGPT's modality adaptation
    units to text  prompt until the audio <sosp> units <eosp> rest of the prompt text
    text to units  text <sosp> units <eosp>

SpeechGPT (Zhang et al. 2023, https://arxiv.org/abs/2305.11000, section 4), AudioPaLM (Rubenstein et al. 2023,
https://arxiv.org/abs/2306.12925, section 3). Units follow the words in the vocabulary, and the two tags follow them.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from alm_jax.ops.compaction import compact, plan_compaction
from alm_jax.ops.packing import cut_to_budget

SPEECH, UNITS_TO_TEXT, TEXT_TO_UNITS = range(3)
"""The tasks, numbered by `Spoken.task`."""
NUM_TAGS = 2
"""Number of tags: <sosp> and <eosp>."""


class Vocabulary(NamedTuple):
    """Where the units are in the vocabulary: words are 0 to ``num_words`` - 1."""

    num_words: int
    num_units: int

    @property
    def start(self) -> int:
        """Id of <sosp>, the tag before units."""
        return self.num_words + self.num_units

    @property
    def end(self) -> int:
        """Id of <eosp>, the tag after units."""
        return self.start + 1

    @property
    def size(self) -> int:
        """Number of words, units and tags."""
        return self.num_words + self.num_units + NUM_TAGS


class Spoken(NamedTuple):
    """B examples, each a recording with its text, before they become sequences."""

    units: Int[Array, "B N"]
    """Unit numbers from 0 on."""
    unit_mask: Bool[Array, "B N"]
    """True where a unit is kept; False for repetitions and padding."""
    text_ids: Int[Array, "B L"]
    text_mask: Bool[Array, "B L"]
    prompt_ids: Int[Array, "B P"]
    """Token ids of the prompts, of length 0 without prompts; used by the task units to text only."""
    prompt_mask: Bool[Array, "B P"]
    audio_position: Int[Array, " B"]
    """Index of the prompt's token before which the units are inserted."""
    task: Int[Array, " B"]
    mask: Bool[Array, " B"]
    """False for padding rows, which take no place."""


class Sequences(NamedTuple):
    """R rows of C tokens; a row holds B / R examples, one after another."""

    ids: Int[Array, "R C"]
    segments: Int[Array, "R C"]
    """Number of the row's example that a token is of, from 0 on; 0 for padding too."""
    mask: Bool[Array, "R C"]
    """True for tokens; padding is at the end."""
    is_unit: Bool[Array, "R C"]
    """True for units and tags."""
    is_answer: Bool[Array, "R C"]
    """True for the target of the task: the units after <sosp>, or the text."""
    is_first: Bool[Array, "R C"]
    """True for the first token of an example, which is not predicted."""


def unit_budget(length: int, num_together: int, num_text: int, num_prompt: int) -> int:
    """Number of units that fit ``num_together`` examples of a row of ``length`` tokens, whatever their texts."""
    return length - num_together * (num_text + num_prompt + NUM_TAGS)


def build_sequences(
    spoken: Spoken, vocabulary: Vocabulary, *, length: int, num_together: int = 1, has_start: bool = True
) -> Sequences:
    """Builds the sequence of every example, ``num_together`` neighbours to a row.

    Where their units exceed the row's `unit_budget`, the longest of them are shortened at their end to one length.

    Args:
        length: C.
        num_together: divides B.
        has_start: the text begins with a start token, which is not predicted.
    """
    units, keep = spoken.units, spoken.unit_mask & spoken.mask[:, None]
    num_rows, num_text = spoken.text_ids.shape
    num_prompt = spoken.prompt_ids.shape[1]
    packed = num_rows // num_together

    # --- units that fit
    counts = jnp.sum(keep, axis=1, dtype=jnp.int32).reshape(packed, num_together)
    allowed = cut_to_budget(counts, unit_budget(length, num_together, num_text, num_prompt)).reshape(-1)
    keep &= jnp.cumsum(keep, axis=1) <= allowed[:, None]

    # --- every part that a sequence may have, in order; masks choose among them
    def when(task: int) -> Array:
        return (spoken.mask & (spoken.task == task))[:, None]

    text_first, text_last = (spoken.text_mask & when(task) for task in (TEXT_TO_UNITS, UNITS_TO_TEXT))
    prompt = spoken.prompt_mask & when(UNITS_TO_TEXT)
    is_before = jnp.arange(num_prompt)[None] < spoken.audio_position[:, None]
    tag = spoken.mask[:, None]
    is_start = jnp.arange(num_text)[None] == 0
    asks_units = ~when(UNITS_TO_TEXT)
    nothing = jnp.zeros_like

    def constant(token: int) -> Array:
        return jnp.full_like(spoken.task, token)[:, None]

    # ids, mask, is_unit, is_answer
    parts = (
        (spoken.text_ids, text_first, nothing(text_first), nothing(text_first)),
        (spoken.prompt_ids, prompt & is_before, nothing(prompt), nothing(prompt)),
        (constant(vocabulary.start), tag, tag, nothing(tag)),
        (vocabulary.num_words + units, keep, keep, keep & asks_units),
        (constant(vocabulary.end), tag, tag, tag & asks_units),
        (spoken.prompt_ids, prompt & ~is_before, nothing(prompt), nothing(prompt)),
        (spoken.text_ids, text_last, nothing(text_last), text_last & ~(is_start & has_start)),
    )
    ids, mask, is_unit, is_answer = (jnp.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))

    # --- packed
    segments = jnp.broadcast_to(jnp.arange(num_rows)[:, None] % num_together, ids.shape)

    def join(x: Array) -> Array:
        return x.reshape(packed, -1)

    plan = plan_compaction(join(mask), length)
    ids, segments, is_unit, is_answer = (
        compact(join(x), plan)
        for x in (ids, segments, is_unit.astype(jnp.int32), is_answer.astype(jnp.int32))
    )
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return Sequences(
        ids=ids,
        segments=segments,
        mask=plan.mask,
        is_unit=is_unit.astype(bool),
        is_answer=is_answer.astype(bool),
        is_first=plan.mask & (segments != before),
    )
