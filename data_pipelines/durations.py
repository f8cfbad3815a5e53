"""Which recordings of a split are of which length: their places in files that are mapped into memory.

The files are made once for a split, a filter and a list of lengths, as those of a filter are (`selection`). Places stay
in their order, and nothing in Python grows with them.
"""

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from data_pipelines.index import ROWS_PER_BATCH
from data_pipelines.selection import make_once, map_numbers, number_type

if TYPE_CHECKING:
    from data_pipelines.prepared import Stretch


def split_by_length(
    stretch: "Stretch", longest_samples: Sequence[int], content: object, cache_dir: Path
) -> tuple[Int[np.ndarray, " N"], ...]:
    """Places in ``stretch`` of the recordings of each bucket, rising; every recording is in one.

    Args:
      longest_samples: of each bucket but the last, at the model's rate, rising; the last has what is longer than all.
      content: what the files depend on beside that.
    """

    def write(folder: Path, name: str) -> None:
        own = f"{os.getpid()}.{threading.get_ident()}.partial"
        counts = np.zeros(len(longest_samples) + 1, np.int64)
        paths = [folder / f"{name}.{bucket}.rows" for bucket in range(len(counts))]
        partial = [path.with_name(f"{path.name}.{own}") for path in paths]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(path, "wb")) for path in partial]
            for start in range(0, len(stretch), ROWS_PER_BATCH):
                places = np.arange(start, min(start + ROWS_PER_BATCH, len(stretch)))
                num_samples = stretch.index.numbers("num_samples", stretch.rows(places))
                bucket = np.searchsorted(longest_samples, stretch.audio.length_of(num_samples), side="left")
                for number, file in enumerate(files):
                    places[bucket == number].astype(number_type(len(stretch))).tofile(file)
                counts += np.bincount(bucket, minlength=len(counts))
        for path, target in zip(partial, paths, strict=True):
            path.replace(target)
        about = folder / f"{name}.json.{own}"
        about.write_text(json.dumps(counts.tolist()), "utf-8")
        about.replace(folder / f"{name}.json")

    folder, name = make_once(cache_dir, [content, list(longest_samples)], write)
    counts = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return tuple(
        map_numbers(folder / f"{name}.{bucket}.rows", count, len(stretch))
        for bucket, count in enumerate(counts)
    )
