"""Batches of noise for the tests of training."""

import numpy as np


def make_batch(rows: int, *, num_padding: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of noise as the contract says, its last ``num_padding`` rows padding."""
    rng = np.random.default_rng(seed)
    samples, tokens = 4096, 8
    mask = np.arange(rows) < rows - num_padding
    lengths = np.where(mask, rng.integers(2000, samples + 1, rows), 0).astype(np.int32)
    audio = rng.normal(0, 3000, (rows, samples)).astype(np.int16) * (np.arange(samples) < lengths[:, None])
    num_tokens = rng.integers(3, tokens + 1, rows)
    text_mask = (np.arange(tokens) < num_tokens[:, None]) & mask[:, None]
    text_ids = np.where(text_mask, rng.integers(5, 64, (rows, tokens)), 1).astype(np.int32)
    return {
        "audio": audio.astype(np.int16),
        "audio_num_samples": lengths,
        "text_ids": text_ids,
        "text_mask": text_mask,
        "mask": mask,
        "index": np.where(mask, np.arange(rows), -1).astype(np.int32),
        "label": np.full(rows, -1, np.int32),
    }
