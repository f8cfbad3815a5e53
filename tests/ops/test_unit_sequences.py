"""Sequences of words and units against lists put together in Python."""

import functools

import jax
import numpy as np
import pytest

from alm_jax.ops.unit_sequences import (
    SPEECH,
    TEXT_TO_UNITS,
    UNITS_TO_TEXT,
    Spoken,
    Vocabulary,
    build_sequences,
    unit_budget,
)

VOCABULARY = Vocabulary(num_words=50, num_units=9)
ROWS, NUM_TEXT, NUM_PROMPT = 12, 5, 4


def draw(num_prompt: int) -> Spoken:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, NUM_TEXT + 1, ROWS)
    prompt_lengths = rng.integers(0, num_prompt + 1, ROWS)
    return Spoken(
        units=rng.integers(0, 9, (ROWS, 11)).astype(np.int32),
        unit_mask=rng.random((ROWS, 11)) < 0.6,
        text_ids=rng.integers(0, 50, (ROWS, NUM_TEXT)).astype(np.int32),
        text_mask=np.arange(NUM_TEXT) < lengths[:, None],
        prompt_ids=rng.integers(0, 50, (ROWS, num_prompt)).astype(np.int32),
        prompt_mask=np.arange(num_prompt) < prompt_lengths[:, None],
        audio_position=rng.integers(0, prompt_lengths + 1).astype(np.int32),
        task=(np.arange(ROWS) % 3).astype(np.int32),
        mask=np.arange(ROWS) != 7,
    )


def expect(spoken: Spoken, row: int, num_units: int) -> list[tuple[int, bool, bool]]:
    """(id, is it a unit or tag, is it asked for) of one example; ``num_units``: those there is room for."""
    if not spoken.mask[row]:
        return []
    task, has_start = spoken.task[row], spoken.prompt_ids.shape[1] == 0
    units = spoken.units[row][spoken.unit_mask[row]][:num_units]
    text = spoken.text_ids[row][spoken.text_mask[row]].tolist()
    prompt = spoken.prompt_ids[row][spoken.prompt_mask[row]].tolist()
    asks = task != UNITS_TO_TEXT
    said = [(59, True, False), *((50 + int(u), True, asks) for u in units), (60, True, asks)]
    if task == SPEECH:
        return said
    if task == TEXT_TO_UNITS:
        return [(i, False, False) for i in text] + said
    at = spoken.audio_position[row]
    before, after = ([(i, False, False) for i in part] for part in (prompt[:at], prompt[at:]))
    answer = [(i, False, not (has_start and place == 0)) for place, i in enumerate(text)]
    return before + said + after + answer


@pytest.mark.parametrize("num_prompt", [0, NUM_PROMPT])
@pytest.mark.parametrize("num_together", [1, 3])
def test_examples_lie_one_after_another(num_prompt, num_together):
    spoken = draw(num_prompt)
    length = num_together * (NUM_TEXT + num_prompt + 2) + 7 * num_together - 1
    budget = unit_budget(length, num_together, NUM_TEXT, num_prompt)
    assert budget == 7 * num_together - 1
    build = functools.partial(
        build_sequences, length=length, num_together=num_together, has_start=not num_prompt
    )
    sequences = jax.jit(lambda spoken: build(spoken, VOCABULARY))(spoken)
    found = [np.asarray(x) for x in sequences]
    shortened = 0
    for row in range(ROWS // num_together):
        own = range(row * num_together, (row + 1) * num_together)
        counts = [int(np.sum(spoken.unit_mask[i] & spoken.mask[i])) for i in own]
        cap = max(c for c in range(1, budget + 1) if sum(min(n, c) for n in counts) <= budget)
        shortened += sum(counts) > budget
        expected = [
            (*token, place, k == 0)
            for place, i in enumerate(own)
            for k, token in enumerate(expect(spoken, i, cap))
        ]
        columns = zip(*expected, strict=True) if expected else ((),) * 5
        ids, is_unit, is_answer, segments, is_first = map(list, columns)
        size = len(expected)
        for name, values in (
            ("ids", ids),
            ("segments", segments),
            ("is_unit", is_unit),
            ("is_answer", is_answer),
            ("is_first", is_first),
        ):
            row_found = found[sequences._fields.index(name)][row]
            assert row_found[:size].tolist() == values, name
            assert not row_found[size:].any(), name
        assert found[sequences._fields.index("mask")][row].tolist() == [i < size for i in range(length)]
    assert shortened
