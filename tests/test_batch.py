"""The batch contract: its optional groups of keys come whole or not at all."""

import itertools

import numpy as np
import pytest

from alm_jax import batch as contract
from alm_jax.errors import DataError

SIZES = {"B": 4, "S": 16, "L": 5, "K": 2, "P": 3}
GROUPS = ("negatives", "prompt", "source")


def make(**groups: bool) -> dict[str, np.ndarray]:
    spec = contract.spec_of(**groups)
    return {
        key: np.zeros([SIZES[name] for name in dims.split()], dtype) for key, (dtype, dims) in spec.items()
    }


@pytest.mark.parametrize("chosen", [*itertools.product([False, True], repeat=3)])
def test_any_groups_of_optional_keys_may_be_there(chosen):
    contract.validate(make(**dict(zip(GROUPS, chosen, strict=True))))


@pytest.mark.parametrize("key", ["prompt_ids", "prompt_mask", "audio_position", "negative_ids", "text_ids"])
def test_a_part_of_a_group_is_named(key):
    batch = make(negatives=True, prompt=True, source=True)
    del batch[key]
    with pytest.raises(DataError, match=rf"missing keys \['{key}'\]"):
        contract.validate(batch)


def test_a_wrong_dtype_or_size_is_named():
    batch = make(negatives=False, prompt=True, source=True)
    with pytest.raises(DataError, match=r"batch\['source'\] has dtype int64, the contract says int32"):
        contract.validate(batch | {"source": np.zeros(4, np.int64)})
    with pytest.raises(DataError, match=r"batch\['prompt_mask'\] has P=2, another key has P=3"):
        contract.validate(batch | {"prompt_mask": np.zeros((4, 2), bool)})
