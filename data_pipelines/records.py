"""The recordings of a split: ArrayRecord shards of int16 PCM, or of FLAC, read by window.

A record is a ``tf.train.Example`` as TFDS writes it, so any TFDS program reads the folder. A recording of up to
`PIECE_SEC` is one record; a longer one is several records in a row, its pieces, so that a window of an 18-hour
recording is read without the rest of it. Records are not compressed (``group_size:1,uncompressed``): audio hardly
shrinks, and inflating it would take three quarters of the reading time.

Data stored at one sampling rate serves models of any rate: a window is resampled when it is read, from a start that
both rates share and with a margin on both sides, so that it equals the same window of the whole resampled recording.
"""

import bisect
import collections
import dataclasses
import functools
import io
import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from jaxtyping import Int

from alm_jax.errors import DataError
from data_pipelines import buckets
from data_pipelines.decode import float_to_pcm

Encoding = Literal["pcm", "flac"]

PIECE_SEC = 30
"""Longest stretch of a recording in one record, seconds."""
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_MAX_OPEN_SHARDS = 256
_MARGIN_SEC = 0.05  # what soxr's HQ filter reads beside a window, with a margin


def encode_audio(pcm: Int[np.ndarray, " S"], encoding: Encoding, sample_rate_hz: int) -> bytes:
    """One piece as stored in its record; the same samples give the same bytes."""
    if encoding == "pcm":
        return pcm.astype("<i2", copy=False).tobytes()
    file = io.BytesIO()
    soundfile.write(file, pcm, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def decode_audio(data: memoryview, encoding: Encoding, start: int, length: int) -> Int[np.ndarray, " S"]:
    """Returns ``length`` samples of a piece from ``start`` on, fewer where it ends earlier."""
    if encoding == "pcm":
        return np.frombuffer(data, "<i2")[start : start + length]
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        if start:
            file.seek(start)
        pcm: Int[np.ndarray, " S"] = file.read(length, dtype="int16")
        return pcm


def audio_of(record: bytes) -> memoryview:
    """Returns the bytes of the feature ``audio`` in a serialised ``tf.train.Example`` whose features are in order of
    name.

    ``audio`` is first by name, so this reads a few bytes and copies none. Raises ValueError where it is missing.
    """
    view = memoryview(record)
    # Example.features, one entry of Features.feature, its key.
    position = _enter(view, _enter(view, 0)[0])[0]
    start, length = _enter(view, position)
    if bytes(view[start : start + length]) != b"audio":
        raise ValueError("its first feature is not the audio")
    # The entry's value, Feature.bytes_list, BytesList.value.
    position = _enter(view, _enter(view, start + length)[0])[0]
    start, length = _enter(view, position)
    if start + length > len(view):
        raise ValueError("it ends inside its audio")
    return view[start : start + length]


def _enter(view: memoryview, position: int) -> tuple[int, int]:
    """Returns start and length of the content of the length-delimited protobuf field at ``position``."""
    if view[position] & 7 != 2:
        raise ValueError("it is no tf.train.Example")
    length, shift = 0, 0
    while True:
        position += 1
        byte = view[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return position + 1, length
        shift += 7


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """The records of one split on disk; threads may share it."""

    paths: Sequence[str]
    """The shards, in order."""
    shard_lengths: Sequence[int]
    """Number of records of each shard."""
    encoding: Encoding
    sample_rate_hz: int
    """Sampling rate of the stored recordings, Hz."""
    where: Path
    """The folder, for messages."""
    url: str = ""
    """Address of the shards in a bucket, from which each is downloaded when it is first read; '' where all are
    local."""

    def __getstate__(self) -> dict[str, Any]:  # another process opens the shards itself
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}

    @property
    def piece_samples(self) -> int:
        """Samples of every piece of a recording, except the last piece."""
        return PIECE_SEC * self.sample_rate_hz

    def read(self, record: int, num_samples: int, start: int, length: int) -> Int[np.ndarray, " S"]:
        """Reads samples ``start`` to ``start + length`` of a recording, fewer where it ends earlier, as stored.

        Args:
          record: number of the recording's first record.
          num_samples: length of the whole recording.

        Raises:
          DataError: a record is damaged or missing.
        """
        length = min(length, num_samples - start)
        if length <= 0:
            return np.zeros(0, np.int16)
        first, last = start // self.piece_samples, (start + length - 1) // self.piece_samples
        found = []
        for piece in range(first, last + 1):
            offset = piece * self.piece_samples
            begin = max(start - offset, 0)
            found.append(self._read_piece(record + piece, begin, start + length - offset - begin))
        pcm = found[0] if len(found) == 1 else np.concatenate(found)
        if len(pcm) != length:
            raise self._damaged(record, f"it has {len(pcm)} samples of {length}")
        return pcm

    def _read_piece(self, record: int, start: int, length: int) -> Int[np.ndarray, " S"]:
        try:
            return decode_audio(
                audio_of(self.read_record(record)),
                self.encoding,
                start,
                min(length, self.piece_samples - start),
            )
        except (RuntimeError, ValueError, IndexError, OSError, soundfile.SoundFileError) as error:
            raise self._damaged(record, str(error)) from error

    def read_record(self, record: int) -> bytes:
        """Returns one record as stored."""
        shard = bisect.bisect_right(self._ends, record)
        if shard == len(self._ends):
            raise IndexError(f"there are {self._ends[-1] if self._ends else 0} records")
        place = record - (self._ends[shard] - self.shard_lengths[shard])
        data: bytes = self._open(shard).read([place])[0]
        return data

    def _damaged(self, record: int, found: str) -> DataError:
        return DataError(
            f"record {record} in {self.where} is damaged ({found}); delete that folder, and it is built again"
        )

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(self.shard_lengths))

    @functools.cached_property
    def _opened(self) -> tuple[threading.Lock, collections.OrderedDict[int, Any]]:
        return threading.Lock(), collections.OrderedDict()

    def _open(self, shard: int) -> Any:
        """Returns the reader of a shard; the least recently used open reader is closed first."""
        from array_record.python.array_record_module import ArrayRecordReader

        lock, opened = self._opened
        if self.url and shard not in opened:
            path = Path(self.paths[shard])
            buckets.fetch(f"{self.url}/{path.name}", path)
        with lock:
            if shard not in opened:
                opened[shard] = ArrayRecordReader(self.paths[shard], READER_OPTIONS)
                if len(opened) > _MAX_OPEN_SHARDS:
                    opened.popitem(last=False)
            opened.move_to_end(shard)
            return opened[shard]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """Records at another sampling rate, for a model of that rate; with the same rate they are read unchanged."""

    records: Records
    sample_rate_hz: int

    @functools.cached_property
    def _up_down(self) -> tuple[int, int]:
        """Ratio of the new rate to the stored one, in lowest terms."""
        stored = self.records.sample_rate_hz
        common = math.gcd(self.sample_rate_hz, stored)
        return self.sample_rate_hz // common, stored // common

    def length_of(self, num_samples: Any) -> Any:
        """Returns the length at this rate of one or several recordings; the rounding is soxr's."""
        up, down = self._up_down
        return (2 * num_samples * up + down) // (2 * down)

    def read(self, record: int, num_samples: int, start: int, length: int) -> Int[np.ndarray, " S"]:
        """Reads like `Records.read`, with ``start`` and ``length`` at this rate and ``num_samples`` at the stored
        one."""
        up, down = self._up_down
        if up == down:
            return self.records.read(record, num_samples, start, length)
        length = min(length, self.length_of(num_samples) - start)
        if length <= 0:
            return np.zeros(0, np.int16)
        margin = math.ceil(_MARGIN_SEC * self.records.sample_rate_hz / down)
        first = max(start // up - margin, 0)  # in steps of ``down`` stored samples, ``up`` of this rate
        end = -(-(start + length) // up) + margin
        stored = self.records.read(record, num_samples, first * down, (end - first) * down)
        waveform = soxr.resample(
            stored.astype(np.float32) / 32768, self.records.sample_rate_hz, self.sample_rate_hz, "HQ"
        )
        return float_to_pcm(waveform)[start - first * up :][:length]


def split_pieces(
    blocks: Iterable[Int[np.ndarray, " S"]], sample_rate_hz: int
) -> Iterator[Int[np.ndarray, " S"]]:
    """Cuts a recording that arrives in blocks of any length into the pieces of its records."""
    size = PIECE_SEC * sample_rate_hz
    waiting: list[Int[np.ndarray, " S"]] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) > size:
            joined = np.concatenate(waiting)
            last = (len(joined) - 1) // size * size  # the last piece may continue in the next block
            yield from (joined[start : start + size] for start in range(0, last, size))
            waiting = [joined[last:]]
    yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
