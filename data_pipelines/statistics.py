"""Figures of a built data set's clips: how long, how loud, what is wrong with them, how many tokens, which classes."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from alm_jax import batch as contract
from data_pipelines.pipeline import Batch, eval_batches, train_batches
from data_pipelines.prepared import Prepared

MAX_CLIPS = 2000
"""Clips that are looked at; of a larger split, that many drawn by a seed."""
SILENT_DBFS = -60.0
"""A clip that is softer everywhere is silent."""
CLIPPED_SAMPLES = 3
"""Samples at full scale, one after the other, that make a clip clipped."""
DC_SHARE = 0.02
"""Mean of the waveform, of full scale, from which on it has an offset."""
_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip to look at and to listen to."""

    index: int
    """Its place in the split."""
    pcm: Int[np.ndarray, " S"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Figures of one split."""

    num_clips: int
    """That were looked at."""
    seconds: Float[np.ndarray, " N"]
    """Of each, as long as the model sees."""
    loudness_dbfs: Float[np.ndarray, " N"]
    """Root mean square of each, decibels below full scale."""
    num_tokens: Int[np.ndarray, " N"]
    """Of a caption of each, special tokens included, cut where the model cuts."""
    labels: Int[np.ndarray, " N"]
    """-1 where a clip has no class, or several."""
    num_silent: int
    num_clipped: int
    num_offset: int
    """Clips with a DC offset."""
    clips: tuple[Clip, ...]
    """The first of them."""


def measure(prepared: Prepared, split: str, *, num_clips: int) -> Statistics:
    """Looks at a split, and keeps ``num_clips`` clips for people."""
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
    """Below full scale; -120 for nothing."""
    return float(20 * np.log10(max(amplitude, 1e-6)))


def _longest_run(marked: np.ndarray) -> int:
    """Most neighbours that are True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
