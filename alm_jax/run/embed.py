"""Many files through two towers: their embeddings into one file, or the likeliest labels of each."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from alm_jax.errors import DataError, UserError
from alm_jax.evaluation.metrics.zero_shot import LAION_TEMPLATE
from alm_jax.run.pretrained import PretrainedTwoTowers, from_pretrained
from alm_jax.run.session import enable_compilation_cache
from data_pipelines.tars import AUDIO_SUFFIXES

FORMATS = (".npz", ".parquet")
FILES_AT_ONCE = 256
"""Files between two lines of progress."""


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files among ``paths`` and all recordings below its folders, in the order of their names.

    Raises UserError where a path does not exist, or a folder holds no recording.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = [
                Path(place, name)
                for place, _, names in sorted(os.walk(path))
                for name in sorted(names)
                if Path(name).suffix.lower() in AUDIO_SUFFIXES
            ]
            if not below:
                raise UserError(
                    f"{path} holds no recording; expected files ending in {', '.join(AUDIO_SUFFIXES)}"
                )
            found += below
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"there is no {path}")
    return found


def load_towers(source: str) -> PretrainedTwoTowers:
    """Two towers. Raises UserError for another model."""
    enable_compilation_cache()
    model = from_pretrained(source)
    if not isinstance(model, PretrainedTwoTowers):
        raise UserError(
            f"{source} is a {model.family.name}; expected two towers, which embed recordings and texts"
        )
    return model


def embed_files(
    source: str, paths: Sequence[Path], out: Path, batch_size: int, num_threads: int
) -> tuple[int, int]:
    """Writes ``path`` and ``embedding`` of every recording to ``out``; returns how many and how wide they are.

    A ``.npz`` holds an array of names [N] and one of float32 [N E]; a ``.parquet`` two columns of N rows. The file
    appears whole or not at all.

    Raises:
        UserError: ``out`` has another ending or no folder, or ``source`` is not two towers.
        DataError: A recording cannot be read; nothing is written.
    """
    if out.suffix not in FORMATS:
        raise UserError(f"--out is {out}; expected a name ending in {' or '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise UserError(f"--out is {out}, and there is no folder {out.parent}")
    files, model = find_files(paths), load_towers(source)
    parts = [
        model.embed_audio(
            files[start : start + FILES_AT_ONCE], batch_size=batch_size, num_threads=num_threads
        )
        for start in track(
            range(0, len(files), FILES_AT_ONCE), "embedding", console=Console(stderr=True), transient=True
        )
    ]
    embeddings = np.concatenate(parts)
    partial = out.with_name(f".{out.name}.partial{out.suffix}")
    try:
        if out.suffix == ".npz":
            np.savez(partial, path=np.asarray([str(file) for file in files]), embedding=embeddings)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.table({"path": [str(file) for file in files], "embedding": list(embeddings)})
            pq.write_table(table, partial)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{out} cannot be written: {error}") from error
    return embeddings.shape


def classify_files(
    source: str, paths: Sequence[Path], labels: Sequence[str], templates: Sequence[str] | None
) -> Iterator[tuple[Path, dict[str, float]]]:
    """Yields each recording with the probabilities of the labels, the likeliest first."""
    files, model = find_files(paths), load_towers(source)
    for start in range(0, len(files), FILES_AT_ONCE):
        some = files[start : start + FILES_AT_ONCE]
        for file, shares in zip(
            some, model.classify(some, labels, templates=templates or (LAION_TEMPLATE,)), strict=True
        ):
            order = np.argsort(-shares, kind="stable")
            yield file, {labels[index]: float(shares[index]) for index in order}
