"""From a config to a data set on disk, built once: records, their index, counted rejects.

Layout, below ``cache_dir``::

    esc50/esc10-class-48000hz-0a1b2c3d4e5f/     settings and state of the source, in the name
        rejects.jsonl                           what was left out: {"path", "reason"}, a line each
        1.2.0/                                  a TFDS data set; appears when it is complete
            examples.jsonl                      what is in the records but the audio

The digest in the name covers every setting that decides the content and the state of the source (the
tables, and name, size and time of every recording), so other settings, or a source that has changed,
are another data set, never a stale one.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tokenizers import Tokenizer

from alm_jax.errors import DataError, UserError
from data_pipelines.builder import CaptionedAudioBuilder, CaptionedAudioConfig, builder_class, config_name
from data_pipelines.config import DataConfig, MixtureConfig
from data_pipelines.dataset import DatasetConfig
from data_pipelines.prepared import INDEX_FILE, Prepared, Split, join_splits, read_index, write_index
from data_pipelines.prompts import prompt_texts
from data_pipelines.templates import TEMPLATES
from data_pipelines.tensorflow_cpu import load_tensorflow
from data_pipelines.text import framing_tokens, load_tokenizer, token_lengths, train_tokenizer

__all__ = ["Prepared", "prepare"]

logger = logging.getLogger(__name__)


def prepare(config: DataConfig, sample_rate_hz: int) -> Prepared:
    """Builds the data set (of a mixture, each) where it is not there yet, opens it, and trains or loads the tokenizer.

    Processes that prepare the same data set take turns. A build that is interrupted leaves nothing that
    looks complete, and is begun again.

    Raises:
      UserError: a folder, a split or a setting that cannot be.
      DataError: metadata that cannot be read, too many recordings rejected, or none usable.
    """
    datasets = _datasets(config)
    for dataset in datasets.values():
        dataset.check(sample_rate_hz)
    built = {name: _find_or_build(dataset, config, sample_rate_hz) for name, dataset in datasets.items()}
    return _open(config, sample_rate_hz, built)


def _datasets(config: DataConfig) -> dict[str, DatasetConfig]:
    """The data sets by the name of their part, '' where there is one alone."""
    if isinstance(config.dataset, MixtureConfig):
        return {part.name: part.dataset for part in config.dataset.parts}
    return {"": config.dataset}


def _find_or_build(dataset: DatasetConfig, config: DataConfig, sample_rate_hz: int) -> Path:
    """The folder of a data set."""
    source = dataset.read()
    builder = builder_class(type(dataset))
    name = config_name(dataset, source.signature, sample_rate_hz)
    home = Path(config.cache_dir).expanduser().absolute() / builder.name / name
    folder = home / str(builder.VERSION)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home / "lock"):
            if not (folder / INDEX_FILE).is_file():
                builder_config = CaptionedAudioConfig(
                    name=name,
                    settings=dataset,
                    source=source,
                    sample_rate_hz=sample_rate_hz,
                    max_bad_fraction=config.max_bad_fraction,
                )
                for line in source.found:
                    logger.info("%s", line)
                _build(builder, builder_config, folder)
    except OSError as error:
        raise UserError(f"cannot prepare data in {home}: {error}; choose another cache_dir") from error
    return folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the system lets go of in whatever way a process ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("waiting for another process that prepares %s", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(kind: type[CaptionedAudioBuilder], builder_config: CaptionedAudioConfig, folder: Path) -> None:
    """Builds in a scratch folder, then gives the result its name: nothing partial is ever found."""
    load_tensorflow()
    scratch = folder.parent / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)  # a killed build's: whoever holds the lock owns it
    logger.info("building %s in %s", kind.name, folder)
    with _quiet_tfds():
        builder = kind(data_dir=scratch, config=builder_config)
        try:
            builder.download_and_prepare()
            write_index(builder, Path(builder.data_path) / INDEX_FILE)
        finally:
            _report(builder, folder.parent / "rejects.jsonl")
    Path(builder.data_path).rename(folder)
    shutil.rmtree(scratch)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from printing to the standard output, and from warning that a config is one's own."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logger.setLevel(level)


def _report(builder: CaptionedAudioBuilder, path: Path) -> None:
    """Writes the rejects, and says how many there are and what else was changed."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in builder.rejects), "utf-8")
    if builder.rejects:
        message = "%s: %d of %d recordings rejected; %s says which, and why"
        logger.warning(message, builder.name, len(builder.rejects), builder.num_planned, path)
    for note, count in sorted(builder.counts.items()):
        logger.warning("%s: %d %s", builder.name, count, note)


def _open(config: DataConfig, sample_rate_hz: int, folders: Mapping[str, Path]) -> Prepared:
    splits: dict[str, Split] = {}
    numbers: dict[str, int] = {}  # of each class of any part: one of the same name is the same
    num_rejected = 0
    for number, (part, folder) in enumerate(folders.items()):
        metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
        own = read_index(folder)
        num_rejected += _count_rejected(config, folder, metadata["num_planned"], own)
        of_class = [numbers.setdefault(name, len(numbers)) for name in metadata["class_names"]]
        for name, split in own.items():
            full_name = f"{part}/{name}" if part else name
            splits[full_name] = dataclasses.replace(
                split,
                name=full_name,
                source=np.full(len(split), number, np.int32),
                labels=np.array([of_class[label] if label >= 0 else -1 for label in split.labels], np.int32),
                all_labels=tuple(tuple(of_class[label] for label in labels) for labels in split.all_labels),
            )
    joined = _joined_names(config)
    join_splits(splits, config.eval_split, joined)  # a wrong name is found before anything is trained
    train = join_splits(splits, config.train_split, joined)
    if config.num_negatives and not any(train.all_negatives):
        raise UserError(
            f"data.num_negatives is {config.num_negatives}, and no example of split {config.train_split!r} has a "
            "negative caption; set it to 0, or take a data set that has them, such as SyntheticCaptionsConfig"
        )
    captions = [caption for captions in train.all_captions for caption in captions]
    prepared = Prepared(
        config=config,
        sample_rate_hz=sample_rate_hz,
        class_names=tuple(numbers),
        num_rejected=num_rejected,
        tokenizer=_make_tokenizer(config, captions),
        splits=splits,
        joined=joined,
    )
    _check_texts(prepared, captions)
    return prepared


def _count_rejected(config: DataConfig, folder: Path, num_planned: int, splits: Mapping[str, Split]) -> int:
    """Recordings that were left out; DataError where they are too many."""
    num_rejected = num_planned - sum(map(len, splits.values()))
    if num_rejected > config.max_bad_fraction * num_planned:
        raise DataError(
            f"{num_rejected} of {num_planned} recordings were rejected, more than max_bad_fraction="
            f"{config.max_bad_fraction} allows; {folder.parent / 'rejects.jsonl'} says which, and why"
        )
    return num_rejected


def _joined_names(config: DataConfig) -> dict[str, str]:
    """What ``train`` and ``test`` of a mixture stand for."""
    if not isinstance(config.dataset, MixtureConfig):
        return {}
    of_kind: dict[str, list[str]] = {"train": [], "test": []}
    for part in config.dataset.parts:
        for kind, names in (("train", part.train_split), ("test", part.eval_split)):
            of_kind[kind] += [f"{part.name}/{name.strip()}" for name in names.split("+")]
    return {kind: "+".join(names) for kind, names in of_kind.items()}


def _make_tokenizer(config: DataConfig, captions: list[str]) -> Tokenizer:
    """Loads it, or trains it on the captions and what is asked."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    special_tokens = dict.fromkeys(
        token for prompt in config.prompts for token in TEMPLATES[prompt.template].special_tokens
    )
    asked = [text for prompt in config.prompts for text in prompt_texts(prompt)]
    return train_tokenizer([*captions, *asked], config.tokenizer, list(special_tokens))


def _check_texts(prepared: Prepared, captions: list[str]) -> None:
    """Raises UserError where a prompt cannot be (`Prepared.prompts`); says how many captions are too long."""
    max_length = prepared.config.tokenizer.max_length
    lengths = token_lengths(prepared.tokenizer, captions)
    if prepared.prompts:
        start, end = framing_tokens(prepared.tokenizer)
        lengths += 1 - len(start) - len(end)  # of an answer: it has one end token, and no start token
    num_cut = int((lengths > max_length).sum())
    if num_cut:
        message = (
            "%d of %d captions are longer than tokenizer.max_length=%d and are cut (99 %% have at most %d)"
        )
        logger.warning(message, num_cut, len(captions), max_length, int(np.percentile(lengths, 99)))
