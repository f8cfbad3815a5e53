"""The batch contract: every key that travels from ``data_pipelines`` to an objective.

=================  =======  ======  =============================================================
key                dtype    shape   meaning
=================  =======  ======  =============================================================
audio              int16    [B S]   mono PCM at the model's sample rate; value / 32768 is the
                                    waveform; zeros after ``audio_num_samples``
audio_num_samples  int32    [B]     samples of the recording that are real, 1..S (0 in a padding row)
text_ids           int32    [B L]   token ids of one caption, special tokens included
text_mask          bool     [B L]   True where ``text_ids`` holds a token, False where it is padding
mask               bool     [B]     True where the row is a real pair; padding rows fill up the last
                                    batch of an evaluation and never count in a loss or a metric
index              int32    [B]     position of the example in its split, -1 in a padding row
label              int32    [B]     class of the example, -1 where it has none
=================  =======  ======  =============================================================

and, where ``data.num_negatives`` is K > 0, both or neither:

=================  =======  =======  ============================================================
negative_ids       int32    [B K L]  token ids of captions that are wrong for the recording
negative_mask      bool     [B K L]  as ``text_mask``; no token at all where a recording has fewer than K
=================  =======  =======  ============================================================

and, where ``data.prompt`` is set, all three or none; ``text_ids`` is then the answer alone and its end token,
with no start token, and the first answer token is predicted from whatever stands last before it:

=================  =======  =======  ============================================================
prompt_ids         int32    [B P]    token ids of the text that comes before the answer, without a
                                     token for the audio; padded on the right
prompt_mask        bool     [B P]    True where ``prompt_ids`` holds a token; an empty prompt has none
audio_position     int32    [B]      the audio's vectors stand before the prompt token of this number;
                                     0 is before everything (and in a padding row)
=================  =======  =======  ============================================================

and, where ``data.dataset`` is a mixture:

=================  =======  =======  ============================================================
source             int32    [B]      which part of the mixture the row is from, -1 in a padding row
=================  =======  =======  ============================================================

All shapes are static for a run, so one compilation serves every step; but L is one of a few lengths where
`data.tokenizer.length_buckets` names them, and each is compiled once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from alm_jax.errors import DataError

AUDIO = "audio"
AUDIO_NUM_SAMPLES = "audio_num_samples"
TEXT_IDS = "text_ids"
TEXT_MASK = "text_mask"
MASK = "mask"
INDEX = "index"
LABEL = "label"
NEGATIVE_IDS = "negative_ids"
NEGATIVE_MASK = "negative_mask"
PROMPT_IDS = "prompt_ids"
PROMPT_MASK = "prompt_mask"
AUDIO_POSITION = "audio_position"
SOURCE = "source"

BATCH_AXES = ("data", "fsdp")
"""The axes of the device mesh over which the rows of a batch are cut, where a mesh has them."""

SPEC: Mapping[str, tuple[str, str]] = {
    AUDIO: ("int16", "B S"),
    AUDIO_NUM_SAMPLES: ("int32", "B"),
    TEXT_IDS: ("int32", "B L"),
    TEXT_MASK: ("bool", "B L"),
    MASK: ("bool", "B"),
    INDEX: ("int32", "B"),
    LABEL: ("int32", "B"),
}
NEGATIVES_SPEC: Mapping[str, tuple[str, str]] = {
    NEGATIVE_IDS: ("int32", "B K L"),
    NEGATIVE_MASK: ("bool", "B K L"),
}
PROMPT_SPEC: Mapping[str, tuple[str, str]] = {
    PROMPT_IDS: ("int32", "B P"),
    PROMPT_MASK: ("bool", "B P"),
    AUDIO_POSITION: ("int32", "B"),
}
SOURCE_SPEC: Mapping[str, tuple[str, str]] = {SOURCE: ("int32", "B")}


def spec_of(*, negatives: bool, prompt: bool, source: bool) -> Mapping[str, tuple[str, str]]:
    """Dtype and dimensions of every key of a batch with these optional groups of keys, in order."""
    return {
        **SPEC,
        **(NEGATIVES_SPEC if negatives else {}),
        **(PROMPT_SPEC if prompt else {}),
        **(SOURCE_SPEC if source else {}),
    }


def validate(batch: Mapping[str, Any]) -> None:
    """Raises DataError unless ``batch`` has exactly the contract's keys, dtypes and consistent shapes."""
    spec = spec_of(
        negatives=any(key in batch for key in NEGATIVES_SPEC),
        prompt=any(key in batch for key in PROMPT_SPEC),
        source=any(key in batch for key in SOURCE_SPEC),
    )
    if set(batch) != set(spec):
        missing, extra = sorted(set(spec) - set(batch)), sorted(set(batch) - set(spec))
        raise DataError(f"a batch has missing keys {missing} and unknown keys {extra}; see alm_jax/batch.py")
    sizes: dict[str, int] = {}
    for key, (dtype, dims) in spec.items():
        array = batch[key]
        if np.dtype(array.dtype) != np.dtype(dtype):
            raise DataError(f"batch[{key!r}] has dtype {array.dtype}, the contract says {dtype}")
        names = dims.split()
        if array.ndim != len(names):
            raise DataError(f"batch[{key!r}] has shape {array.shape}, the contract says [{dims}]")
        for name, size in zip(names, array.shape, strict=True):
            if sizes.setdefault(name, size) != size:
                raise DataError(f"batch[{key!r}] has {name}={size}, another key has {name}={sizes[name]}")
