"""Statistics of a built data set's clips: length, loudness, faults, tokens, classes."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from alm_jax import batch as contract
from data_pipelines.pipeline import Batch, eval_batches, train_batches
from data_pipelines.prepared import Prepared

MAX_CLIPS = 2000
"""Maximum number of clips that are examined; of a larger split a random sample of this size, from a seed."""
SILENT_DBFS = -60.0
"""Level below which a clip is silent."""
CLIPPED_SAMPLES = 3
"""Number of consecutive samples at full scale that make a clip clipped."""
DC_SHARE = 0.02
"""Mean of the waveform, as a fraction of full scale, from which on a clip has a DC offset."""
_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip to show and play."""

    index: int
    """Index in the split."""
    pcm: Int[np.ndarray, " S"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of one split."""

    num_clips: int
    """Number of clips that were examined."""
    seconds: Float[np.ndarray, " N"]
    """Length of each clip as the model sees it, seconds."""
    loudness_dbfs: Float[np.ndarray, " N"]
    """Root mean square of each clip, decibels relative to full scale."""
    num_tokens: Int[np.ndarray, " N"]
    """Number of tokens of one caption of each clip, special tokens included, cut where the model cuts."""
    labels: Int[np.ndarray, " N"]
    """Class of each clip, -1 where it has none or several."""
    num_silent: int
    num_clipped: int
    num_offset: int
    """Number of clips with a DC offset."""
    clips: tuple[Clip, ...]
    """The first clips of the sample."""


def measure(prepared: Prepared, split: str, *, num_clips: int) -> Statistics:
    """Examines a split, and keeps ``num_clips`` clips to show."""
    seconds, loudness, tokens, labels = [], [], [], []
    kept: list[Clip] = []
    counts = np.zeros(3, np.int64)
    for batch in _batches(prepared, split):
        for row in np.flatnonzero(batch[contract.MASK]):
            pcm = batch[contract.AUDIO][row, : batch[contract.AUDIO_NUM_SAMPLES][row]]
            waveform = pcm / np.float64(32768)
            seconds.append(len(pcm) / prepared.sample_rate_hz)
            loudness.append(_decibels(np.sqrt(np.mean(waveform**2))))
            tokens.append(int(batch[contract.TEXT_MASK][row].sum()))
            labels.append(int(batch[contract.LABEL][row]))
            counts += [
                _decibels(np.abs(waveform).max()) < SILENT_DBFS,
                _longest_run(np.abs(pcm.astype(np.int32)) >= 32767) >= CLIPPED_SAMPLES,
                abs(waveform.mean()) > DC_SHARE,
            ]
            if len(kept) < num_clips:
                kept.append(Clip(index=int(batch[contract.INDEX][row]), pcm=pcm.copy()))
    return Statistics(
        num_clips=len(seconds),
        seconds=np.array(seconds),
        loudness_dbfs=np.array(loudness),
        num_tokens=np.array(tokens),
        labels=np.array(labels),
        num_silent=int(counts[0]),
        num_clipped=int(counts[1]),
        num_offset=int(counts[2]),
        clips=tuple(kept),
    )


def _batches(prepared: Prepared, split: str) -> Iterator[Batch]:
    size = len(prepared.split(split))
    if size <= MAX_CLIPS:
        return eval_batches(prepared, split, batch_size=min(_BATCH, size))
    drawn = train_batches(prepared, split, batch_size=_BATCH, seed=0)
    return itertools.islice(drawn, MAX_CLIPS // _BATCH)


def _decibels(amplitude: float) -> float:
    """Level relative to full scale; -120 for silence."""
    return float(20 * np.log10(max(amplitude, 1e-6)))


def _longest_run(marked: np.ndarray) -> int:
    """Returns the length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
