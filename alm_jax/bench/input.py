"""The input pipeline alone: clips a second, and the time of each stage, beside PyTorch's DataLoader and Grain.

All candidates read the same ArrayRecord shards of the same prepared data set in a random order, crop or pad to
``data.source_sec``, tokenize one caption a clip, and give NumPy (or torch) batches. They take turns. A peer is
written as its documentation has it: DataLoader with two worker processes, Grain with two reading threads.
"""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from alm_jax.bench.timing import Timing, take_turns
from alm_jax.errors import UserError
from alm_jax.run.experiment import ExperimentConfig
from data_pipelines.config import StorageConfig
from data_pipelines.pipeline import eval_batches, train_batches
from data_pipelines.prepare import prepare
from data_pipelines.prepared import Prepared, Split
from data_pipelines.records import READER_OPTIONS, Encoding, audio_of, decode_audio
from data_pipelines.text import encode

Row = dict[str, Any]
Peer = Literal["dataloader", "grain"]
PEERS: Sequence[str] = ("dataloader", "grain")
OURS = "alm_jax"
_NUM_WORKERS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputCase:
    """What to read."""

    encoding: Encoding
    stored_hz: int
    model_hz: int
    source_sec: float


def run_rows(
    config: ExperimentConfig,
    peers: Sequence[str],
    *,
    encodings: Sequence[str],
    rates_hz: Sequence[int],
    source_secs: Sequence[float],
    repeats: int,
    num_batches: int = 20,
    step_ms: float | None = None,
) -> Iterator[Row]:
    """A row a candidate and a case: every encoding, rate and length, and of the rates one that is resampled.

    Args:
      num_batches: batches of a timed run.
      step_ms: a training step's time, for which the cores that a host needs are counted.
    """
    for peer in peers:
        if peer not in PEERS:
            raise UserError(f"the peer {peer!r} is not known; there are {', '.join(PEERS)}")
    cases = [
        InputCase(encoding=encoding, stored_hz=rate_hz, model_hz=rate_hz, source_sec=seconds)  # type: ignore[arg-type]
        for encoding in encodings
        for rate_hz in rates_hz
        for seconds in source_secs
    ]
    resampled = [
        InputCase(encoding="pcm", stored_hz=max(rates_hz), model_hz=min(rates_hz), source_sec=source_secs[0])
    ]
    for case in cases + (resampled if len(rates_hz) > 1 else []):
        yield from _run_case(config, case, peers, repeats, num_batches, step_ms)


def _run_case(
    config: ExperimentConfig,
    case: InputCase,
    peers: Sequence[str],
    repeats: int,
    num_batches: int,
    step_ms: float | None,
) -> Iterator[Row]:
    data = dataclasses.replace(
        config.data,
        source_sec=case.source_sec,
        storage=StorageConfig(sample_rate_hz=case.stored_hz, encoding=case.encoding),
        num_reads=_NUM_WORKERS,
    )
    prepared = prepare(data, case.model_hz)
    size = config.training.batch_size
    split = prepared.split(data.train_split)
    makers: dict[str, Callable[[], Iterator[Any]]] = {
        OURS: lambda: train_batches(prepared, data.train_split, batch_size=size, seed=0)
    }
    if case.stored_hz == case.model_hz:
        of_peer = {"dataloader": _open_dataloader, "grain": _open_grain}
        for peer in peers:
            makers[peer] = functools.partial(of_peer[peer], prepared, split, size)
    opened = {name: make() for name, make in makers.items()}
    children: dict[str, list[float]] = {name: [] for name in makers}

    def take(name: str) -> None:
        before = _children_cpu_sec()
        for _ in range(num_batches):
            next(opened[name])
        children[name].append(_children_cpu_sec() - before)

    timings = take_turns({name: functools.partial(take, name) for name in makers}, repeats=repeats, warmups=1)
    bytes_a_clip = sum(sum(s.manifest.shard_bytes) for s in split.stretches) / len(split)
    for name, timing in timings.items():
        row = _figures(name, case, timing, children[name][-repeats:], size * num_batches)
        row |= {
            "batch": size,
            "bytes_per_clip": round(bytes_a_clip),
            "seconds_stored": split.seconds / len(split),
        }
        if name == OURS:
            row["stages_us"] = measure_stages(prepared, split, size)
            if step_ms is not None:
                row["step_ms"] = step_ms
                row["cores_needed"] = size / (step_ms / 1e3) / row["clips_per_core_sec"]
        yield row


def _figures(
    name: str, case: InputCase, timing: Timing, children_sec: Sequence[float], num_clips: int
) -> Row:
    cpu = [own + child for own, child in zip(timing.cpu_seconds, children_sec, strict=True)]
    return {
        "impl": name,
        **dataclasses.asdict(case),
        "clips_per_sec": num_clips / timing.min,
        "clips_per_sec_median": num_clips / timing.median,
        "clips_per_core_sec": num_clips / min(cpu),
    }


def _children_cpu_sec() -> float:
    """CPU time of this process's children."""
    total, tick = 0.0, os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


@dataclasses.dataclass
class SameRecords:
    """Data set of the peers: they read the same shards, with captions in memory."""

    paths: Sequence[str]
    ends: Sequence[int]
    encoding: Encoding
    num_samples: int
    captions: Sequence[str]
    readers: dict[int, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captions)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"readers": {}}

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
        from array_record.python.array_record_module import ArrayRecordReader

        shard = next(number for number, end in enumerate(self.ends) if index < end)
        if shard not in self.readers:
            self.readers[shard] = ArrayRecordReader(self.paths[shard], READER_OPTIONS)
        (record,) = self.readers[shard].read([int(index) - (self.ends[shard - 1] if shard else 0)])
        pcm = decode_audio(audio_of(record), self.encoding, 0, self.num_samples)
        audio = np.zeros(self.num_samples, np.int16)
        audio[: len(pcm)] = pcm
        return audio, len(pcm), self.captions[index]


def _same_records(prepared: Prepared, split: Split) -> SameRecords:
    records = [stretch.audio.records for stretch in split.stretches]
    if any(sum(r.shard_lengths) != len(s) for r, s in zip(records, split.stretches, strict=True)):
        raise UserError("peers read one record a clip: the data set has recordings longer than 30 s")
    lengths = [length for own in records for length in own.shard_lengths]
    return SameRecords(
        paths=[path for own in records for path in own.paths],
        ends=list(itertools.accumulate(lengths)),
        encoding=records[0].encoding,
        num_samples=prepared.num_source_samples,
        captions=[captions[0] for captions in split.all_captions],
    )


def _open_dataloader(prepared: Prepared, split: Split, batch_size: int) -> Iterator[Any]:
    import torch
    from torch.utils.data import DataLoader

    tokenizer, length = prepared.tokenizer, prepared.config.tokenizer.max_length

    def collate(rows: list[tuple[np.ndarray, int, str]]) -> tuple[Any, ...]:
        audio, sizes, captions = zip(*rows, strict=True)
        ids, mask = encode(tokenizer, captions, length)
        return (
            torch.from_numpy(np.stack(audio)),
            torch.tensor(sizes),
            torch.from_numpy(ids),
            torch.from_numpy(mask),
        )

    loader: Any = DataLoader(
        _same_records(prepared, split),  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=_NUM_WORKERS,
        persistent_workers=True,
        collate_fn=collate,
    )
    while True:
        yield from loader


def _open_grain(prepared: Prepared, split: Split, batch_size: int) -> Iterator[Any]:
    import grain

    tokenizer, length = prepared.tokenizer, prepared.config.tokenizer.max_length

    def collate(rows: Sequence[tuple[np.ndarray, int, str]]) -> tuple[np.ndarray, ...]:
        audio, sizes, captions = zip(*rows, strict=True)
        ids, mask = encode(tokenizer, captions, length)
        return np.stack(audio), np.array(sizes, np.int32), ids, mask

    dataset = grain.MapDataset.source(_same_records(prepared, split)).seed(0).shuffle().repeat()
    batches = dataset.batch(batch_size, drop_remainder=True, batch_fn=collate)
    options = grain.ReadOptions(num_threads=_NUM_WORKERS, prefetch_buffer_size=2 * _NUM_WORKERS)
    return iter(batches.to_iter_dataset(options))


def measure_stages(prepared: Prepared, split: Split, batch_size: int) -> dict[str, float]:
    """Microseconds of one thread for each clip in each stage, the fastest of three passes over one batch."""
    rng = np.random.default_rng(0)
    indices = rng.integers(len(split), size=batch_size)
    size = prepared.num_source_samples
    found = split.find_rows(indices)
    texts = [stretch.captions(row)[0] for stretch, row in found]
    where = [(s, s.index.value("record", row), s.index.value("num_samples", row)) for s, row in found]
    records = where[0][0].audio.records
    read = [records.read_record(record) for _, record, _ in where]
    data = [audio_of(record) for record in read]
    stored = [decode_audio(own, records.encoding, 0, 1 << 40) for own in data]
    batch = next(iter(eval_batches(prepared, split.name, batch_size=batch_size)))
    audio = np.zeros((batch_size, size), np.int16)

    def collate() -> None:
        for row, pcm in enumerate(stored):
            audio[row, : min(size, len(pcm))] = pcm[:size]

    stages: dict[str, Callable[[], Any]] = {
        "index": lambda: [stretch.captions(row) for stretch, row in split.find_rows(indices)],
        "read": lambda: [records.read_record(record) for _, record, _ in where],
        "decode": lambda: [decode_audio(own, records.encoding, 0, size) for own in data],
        "crop and collate": collate,
        "tokenise": lambda: encode(prepared.tokenizer, texts, prepared.config.tokenizer.max_length),
        "transfer": lambda: jax.block_until_ready(jax.device_put(batch)),
    }
    row = {name: _fastest(run) / batch_size * 1e6 for name, run in stages.items()}
    if records.sample_rate_hz != prepared.sample_rate_hz:
        whole = _fastest(lambda: [s.audio.read(record, n, 0, size) for s, record, n in where])
        row["resample"] = whole / batch_size * 1e6 - row["read"] - row["decode"]
    return row


def _fastest(run: Callable[[], Any]) -> float:
    run()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
