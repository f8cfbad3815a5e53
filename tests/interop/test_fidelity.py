"""What the authors' code makes of a recording, against what ours does: features at every length, and a few outputs.

docs/fidelity.md has every row; ``python -m tests.fidelity`` makes it.
"""

import numpy as np
import pytest
from fidelity import CASES, GOLDEN, LENGTHS, measure

FAST = ("AudioMAE", "LTU (CAV-MAE)", "BEATs", "LAION CLAP, unfused", "CNN14, 16 kHz")


@pytest.mark.parametrize("length", ["0.3 s", "0.37 clips", "one sample more"])
@pytest.mark.parametrize("name", FAST)
def test_features_are_those_of_the_authors(name, length):
    (case,) = [case for case in CASES if case.name == name]
    assert measure(case, length).errors["features"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_row_is_near_or_explained(case, length):
    row = measure(case, length)
    assert row.errors
    assert max(row.errors.values()) < 1e-4 or row.note


def test_the_golden_arrays_have_every_length():
    with np.load(GOLDEN) as golden:
        found = {key.rpartition("/")[0] for key in golden.files}
    own = {f"{case.name}/{length}" for case in CASES if case.theirs is None for length in LENGTHS}
    assert found == own
