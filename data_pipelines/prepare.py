"""From a config to an open data set on disk, built once: records, their index, a manifest.

Layout, below ``cache_dir``::

    esc50/esc10-class-48000hz-0a1b2c3d4e5f/     what was asked for: a digest of every setting
        9f8e7d6c5b4a/                           the state of the source that it was built from
            manifest.json                       what was found (`data_pipelines.manifest`); written last
            rejects.jsonl                       what was left out: {"path", "reason"}, a line each
            index/train.arrow                   what is in the records but the audio (`data_pipelines.index`)
            esc50-train.array_record-...        the records, which any TFDS program reads
    selections/                                 rows that a filter keeps
    tokenizers/                                 tokenizers that were trained here

Other settings, or a source that has changed, are another folder, never a stale one. A folder that is complete is all
that training, evaluation, export and resuming need: it may be moved with its parents or read-only, and the source may
be gone.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from alm_jax.errors import DataError, UserError
from data_pipelines import buckets
from data_pipelines.captions import name_all
from data_pipelines.config import DataConfig, FilterConfig, MixtureConfig
from data_pipelines.dataset import DatasetConfig
from data_pipelines.durations import split_by_length
from data_pipelines.index import Index
from data_pipelines.manifest import (
    MANIFEST_FILE,
    REJECTS_FILE,
    Manifest,
    index_path,
    is_complete,
    read_manifest,
)
from data_pipelines.prepared import Prepared, Split, Stretch, join_splits
from data_pipelines.prompts import prompt_texts
from data_pipelines.records import Records, Resampled
from data_pipelines.selection import select
from data_pipelines.source import Source
from data_pipelines.templates import TEMPLATES
from data_pipelines.text import framing_tokens, load_tokenizer, token_lengths, train_tokenizer

__all__ = ["Prepared", "prepare"]

logger = logging.getLogger(__name__)

MAX_TOKENIZER_CAPTIONS = 100_000
"""Maximum number of captions that a tokenizer is trained on; of a larger split this many, evenly spaced."""
_RUN_ROWS = 50
MAX_CHECKED_CAPTIONS = 500
"""Maximum number of captions whose length is checked when a data set is opened, evenly spaced."""


def prepare(
    config: DataConfig, sample_rate_hz: int, *, beam: str | None = None, tokenizer: Tokenizer | None = None
) -> Prepared:
    """Builds the data set (each one of a mixture) where it is missing, opens it, and trains or loads the tokenizer.

    Processes that build the same data set take turns. An interrupted build is never taken for complete, and continues
    at the next call.

    Args:
      sample_rate_hz: sampling rate of the model.
      beam: options of the Apache Beam pipeline that builds; None: threads of this process.
      tokenizer: replaces the config's tokenizer, for a model that has its own.

    Raises:
      UserError: an invalid folder, split or setting.
      DataError: metadata that cannot be read, too many recordings rejected, none usable, or a damaged folder.
    """
    config.duration_buckets.shapes(config.window_sec, 1)  # a wrong length is found before anything is built
    datasets = _datasets(config)
    stored_hz = config.storage.sample_rate_hz or sample_rate_hz
    for dataset in datasets.values():
        dataset.check(stored_hz)
    built = {name: _find_or_build(dataset, config, stored_hz, beam) for name, dataset in datasets.items()}
    return _open(config, sample_rate_hz, built, tokenizer)


def _datasets(config: DataConfig) -> dict[str, DatasetConfig]:
    """The data sets by the name of their part; '' for a single data set."""
    if isinstance(config.dataset, MixtureConfig):
        return {part.name: part.dataset for part in config.dataset.parts}
    return {"": config.dataset}


@dataclasses.dataclass(frozen=True)
class Place:
    """Location of a prepared data set."""

    folder: Path
    """Folder on this machine."""
    url: str = ""
    """Address in a bucket; the folder then holds what was downloaded so far. '' where there is no bucket."""

    def __truediv__(self, name: str) -> "Place":
        return Place(self.folder / name, f"{self.url}/{name}" if self.url else "")

    def fetch(self) -> None:
        """Downloads what is needed to open the data set; shards are downloaded when they are read."""
        if not self.url or is_complete(self.folder):
            return
        fetched = self.folder / f"{MANIFEST_FILE}.fetched"
        buckets.fetch(f"{self.url}/{MANIFEST_FILE}", fetched)
        names = json.loads(fetched.read_text("utf-8"))["splits"]
        indexes = [f"index/{name}.arrow" for name in names]
        for name in (*indexes, "dataset_info.json", "features.json", "metadata.json", REJECTS_FILE):
            buckets.fetch(f"{self.url}/{name}", self.folder / name)
        # The manifest comes last, as in a build: it marks the folder as complete.
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            fetched.replace(self.folder / MANIFEST_FILE)


def _root(config: DataConfig) -> Place:
    """``cache_dir`` on this machine, and its bucket where it is one."""
    if buckets.is_remote(config.cache_dir):
        url = config.cache_dir.rstrip("/")
        return Place(buckets.local_folder(url, config.local_dir), url)
    return Place(Path(config.cache_dir).expanduser().absolute())


def _find_or_build(dataset: DatasetConfig, config: DataConfig, stored_hz: int, beam: str | None) -> Place:
    """Returns a complete data set, built if necessary."""
    from data_pipelines.builder import settings_name

    name = settings_name(dataset, stored_hz, config.storage.encoding)
    home = _root(config) / _snake_case(dataset.title()) / name
    try:
        source = _on_this_machine(dataset, config).read()
    except (UserError, DataError) as error:
        if isinstance(error, DataError) or not (place := _newest(home)):
            raise
        logger.warning("%s; using the prepared data set: %s", error, place.url or place.folder)
        return place
    place = home / hashlib.sha256(source.signature.encode()).hexdigest()[:12]
    try:
        if not _is_there(place):
            _check_splits(config, dataset, source)  # before a build that may take hours
            home.folder.mkdir(parents=True, exist_ok=True)
            with _lock(home.folder / "lock"):
                if not _is_there(place):
                    for line in source.found:
                        logger.info("%s", line)
                    _build(dataset, source, config, stored_hz, place.folder, beam)
                    if place.url:
                        buckets.upload(place.folder, place.url, last=MANIFEST_FILE)
    except OSError as error:
        raise UserError(f"cannot prepare data in {home.folder}: {error}; choose another cache_dir") from error
    return place


def _is_there(place: Place) -> bool:
    """Whether the data set is complete; one in a bucket, built by any machine, is downloaded."""
    if not place.url:
        return is_complete(place.folder)
    if not buckets.exists(f"{place.url}/{MANIFEST_FILE}"):
        return False
    place.fetch()
    return True


def _on_this_machine(dataset: DatasetConfig, config: DataConfig) -> DatasetConfig:
    """Returns the data set with what it reads from buckets downloaded."""
    remote = {
        field.name: str(buckets.mirror(value, config.local_dir))
        for field in dataclasses.fields(dataset)
        if isinstance(value := getattr(dataset, field.name), str) and buckets.is_remote(value)
    }
    return dataclasses.replace(dataset, **remote) if remote else dataset


def _check_splits(config: DataConfig, dataset: DatasetConfig, source: Source) -> None:
    """Raises UserError where the config names a split that the data set does not have."""
    known = {row.split for row in source.rows}
    users = (
        [part for part in config.dataset.parts if part.dataset == dataset]
        if isinstance(config.dataset, MixtureConfig)
        else [config]
    )
    for user in users:
        for name in f"{user.train_split}+{user.eval_split}".split("+"):
            if name.strip() not in known:
                raise UserError(
                    f"there is no split {name.strip()!r}; the data set has {', '.join(sorted(known))}"
                )


def _snake_case(title: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", title).lower()


def _newest(home: Place) -> Place | None:
    """Returns the most recently built complete data set below a folder."""
    if home.url:
        found = buckets.newest(home.url, MANIFEST_FILE)
        place = home / found.rpartition("/")[2] if found else None
        if place:
            place.fetch()
        return place
    complete = [path for path in home.folder.iterdir() if is_complete(path)] if home.folder.is_dir() else []
    newest = max(complete, key=lambda path: path.stat().st_mtime, default=None)
    return Place(newest) if newest else None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the system releases however a process ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("waiting for another process that prepares %s", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(
    dataset: DatasetConfig, source: Source, config: DataConfig, stored_hz: int, folder: Path, beam: str | None
) -> None:
    """Builds the data set, or continues a build that was killed; the caller holds the lock."""
    from data_pipelines.builder import build_folder

    logger.info("building %s in %s", dataset.title(), folder)
    manifest = build_folder(
        dataset,
        source,
        folder,
        sample_rate_hz=stored_hz,
        encoding=config.storage.encoding,
        max_bad_fraction=config.max_bad_fraction,
        beam=beam,
    )
    if manifest.num_rejected:
        message = "%s: %d of %d recordings rejected; %s says which, and why"
        logger.warning(
            message, manifest.name, manifest.num_rejected, manifest.num_planned, folder / "rejects.jsonl"
        )
    for note, count in manifest.notes.items():
        logger.warning("%s: %d %s", manifest.name, count, note)


def _open(
    config: DataConfig, sample_rate_hz: int, places: Mapping[str, Place], tokenizer: Tokenizer | None
) -> Prepared:
    joined = _joined_names(config)
    numbers: dict[str, int] = {}  # for each class of any part; classes of the same name are one
    splits: dict[str, Split] = {}
    num_rejected = 0
    for part, (name, place) in enumerate(places.items()):
        manifest = read_manifest(place.folder)
        num_rejected += _count_rejected(config, place.folder, manifest)
        label_of = np.array([numbers.setdefault(own, len(numbers)) for own in manifest.class_names], np.int64)
        for split in manifest.splits:
            stretch = _open_split(place, manifest, split, sample_rate_hz)
            full_name = f"{name}/{split}" if name else split
            stretch = dataclasses.replace(stretch, name=full_name, label_of=label_of, part=part)
            splits[full_name] = Split(full_name, (stretch,))
    join_splits(splits, config.eval_split, joined)  # a wrong name is found before anything is trained
    for stretch in join_splits(splits, config.train_split, joined).stretches:
        splits[stretch.name] = Split(stretch.name, (_sort(_filter(stretch, config), config),))
    train = join_splits(splits, config.train_split, joined)
    made = config.made_captions
    if made.templates and not any(stretch.manifest.num_labels for stretch in train.stretches):
        raise UserError(
            f"data.made_captions makes captions from classes, and no example of split {config.train_split!r} has one; "
            "leave its templates out"
        )
    with_negatives = made.negatives or any(stretch.manifest.num_negatives for stretch in train.stretches)
    if config.num_negatives and not with_negatives:
        raise UserError(
            f"data.num_negatives is {config.num_negatives}, and no example of split {config.train_split!r} has a "
            "negative caption; set it to 0, take a data set that has them, such as SyntheticCaptionsConfig, or have "
            "them made from classes by data.made_captions"
        )
    prepared = Prepared(
        config=config,
        sample_rate_hz=sample_rate_hz,
        class_names=tuple(numbers),
        num_rejected=num_rejected,
        tokenizer=tokenizer or _make_tokenizer(config, train, tuple(numbers)),
        splits=splits,
        folders=tuple(place.folder for place in places.values()),
        joined=joined,
    )
    _check_texts(prepared, train)
    return prepared


def open_folder(folder: Path, sample_rate_hz: int) -> dict[str, Split]:
    """Opens the splits of a prepared data set for a model of this sampling rate. DataError where the folder is
    damaged."""
    manifest = read_manifest(folder)
    return {
        name: Split(name, (_open_split(Place(folder), manifest, name, sample_rate_hz),))
        for name in manifest.splits
    }


def _open_split(place: Place, manifest: Manifest, name: str, sample_rate_hz: int) -> Stretch:
    own = manifest.splits[name]
    index = Index(index_path(place.folder, name), own.num_rows)
    index.check()
    records = Records(
        paths=[str(place.folder / shard) for shard in own.shards],
        url=place.url,
        shard_lengths=own.shard_lengths,
        encoding=manifest.encoding,
        sample_rate_hz=manifest.sample_rate_hz,
        where=place.folder,
    )
    return Stretch(
        name=name,
        index=index,
        audio=Resampled(records=records, sample_rate_hz=sample_rate_hz),
        manifest=own,
        label_of=np.arange(len(manifest.class_names)),
    )


def _filter(stretch: Stretch, config: DataConfig) -> Stretch:
    """Applies a filter to a training split. Raises UserError where nothing is left."""
    kept = _filter_of(config, stretch.part)
    if kept.keeps_all:
        return stretch
    records = stretch.audio.records
    selection = select(
        stretch.index,
        kept,
        sample_rate_hz=records.sample_rate_hz,
        licences=list(stretch.manifest.licences),
        fingerprint=stretch.manifest.fingerprint,
        cache_dir=_root(config).folder,
    )
    if not len(selection.rows):
        raise UserError(
            f"the filter leaves none of the {len(stretch):,} recordings of split {stretch.name!r} ({kept}); its "
            f"licences are {', '.join(map(repr, stretch.manifest.licences))}, its recordings last "
            f"{stretch.manifest.shortest_sec:.2f} to {stretch.manifest.longest_sec:.2f} s"
        )
    found = dataclasses.replace(stretch, kept=kept, selection=selection)
    logger.info("split %s: the filter keeps %d of %d recordings", stretch.name, len(found), len(stretch))
    return found


def _sort(stretch: Stretch, config: DataConfig) -> Stretch:
    """A training split with its recordings sorted into the buckets of the config, if it has any."""
    shapes = config.duration_buckets.shapes(config.window_sec, 1)
    if len(shapes) == 1:
        return stretch
    rate_hz = stretch.audio.sample_rate_hz
    found = split_by_length(
        stretch,
        [round(seconds * rate_hz) for seconds, _ in shapes[:-1]],
        [stretch.manifest.fingerprint, dataclasses.asdict(stretch.kept), rate_hz],
        _root(config).folder,
    )
    counts = [f"{len(own):,} in {seconds:g} s" for own, (seconds, _) in zip(found, shapes, strict=True)]
    logger.info("split %s: recordings by length: %s", stretch.name, ", ".join(counts))
    return dataclasses.replace(stretch, by_length=found)


def _filter_of(config: DataConfig, part: int) -> FilterConfig:
    if isinstance(config.dataset, MixtureConfig):
        return config.dataset.parts[part].filter or config.filter
    return config.filter


def _count_rejected(config: DataConfig, folder: Path, manifest: Manifest) -> int:
    """Counts the recordings that were left out; DataError where they are too many."""
    if manifest.num_rejected > config.max_bad_fraction * manifest.num_planned:
        raise DataError(
            f"{manifest.num_rejected} of {manifest.num_planned} recordings were rejected, more than max_bad_fraction="
            f"{config.max_bad_fraction} allows; {folder / 'rejects.jsonl'} says which, and why"
        )
    return manifest.num_rejected


def _joined_names(config: DataConfig) -> dict[str, str]:
    """Returns the splits that a mixture's ``train`` and ``test`` consist of."""
    if not isinstance(config.dataset, MixtureConfig):
        return {}
    of_kind: dict[str, list[str]] = {"train": [], "test": []}
    for part in config.dataset.parts:
        for kind, names in (("train", part.train_split), ("test", part.eval_split)):
            of_kind[kind] += [f"{part.name}/{name.strip()}" for name in names.split("+")]
    return {kind: "+".join(names) for kind, names in of_kind.items()}


def _sample_captions(split: Split, most: int) -> list[str]:
    """Yields the captions of a split in order: all, or of a large split those of evenly spaced recordings, about
    ``most``."""
    per_recording = max(1.0, split.num_captions / max(1, sum(len(s.index) for s in split.stretches)))
    num_rows = min(len(split), max(1, int(most / per_recording)))
    # Neighbouring rows lie on the same pages of the index: a few long runs map less of it than many single rows.
    num_runs = -(-num_rows // _RUN_ROWS)
    first = np.arange(num_runs) * len(split) // num_runs
    rows = np.unique((first[:, None] + np.arange(_RUN_ROWS)).ravel())
    rows = rows[rows < len(split)]
    return [caption for stretch, row in split.find_rows(rows) for caption in stretch.captions(row)]


def _make_tokenizer(config: DataConfig, train: Split, class_names: Sequence[str]) -> Tokenizer:
    """Loads the tokenizer, or trains it on captions, those made of classes, and questions.

    A trained one is stored below ``cache_dir``.
    """
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    special_tokens = dict.fromkeys(
        token for prompt in config.prompts for token in TEMPLATES[prompt.template].special_tokens
    )
    asked = [text for prompt in config.prompts for text in prompt_texts(prompt)]
    asked += [name_all(own, [name]) for own in config.made_captions.templates for name in class_names]
    rows = [[s.manifest.fingerprint, dataclasses.asdict(s.kept)] for s in train.stretches]
    settings = [config.tokenizer.kind, config.tokenizer.num_tokens, list(special_tokens), asked]
    content = json.dumps([*settings, rows, MAX_TOKENIZER_CAPTIONS, tokenizers.__version__])
    name = hashlib.sha256(content.encode()).hexdigest()[:24]
    path = _root(config).folder / "tokenizers" / f"{name}.json"
    with contextlib.suppress(UserError):  # none is stored yet, or it is damaged: it is trained again
        return load_tokenizer(path)
    captions = _sample_captions(train, MAX_TOKENIZER_CAPTIONS)
    found = train_tokenizer([*captions, *asked], config.tokenizer, list(special_tokens))
    with contextlib.suppress(OSError):  # a read-only cache: it is trained again the next time
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(found.to_str(), "utf-8")
        partial.replace(path)
    return found


def _check_texts(prepared: Prepared, train: Split) -> None:
    """Raises UserError where a prompt is invalid (`Prepared.prompts`); warns how many captions are too long."""
    max_length = prepared.config.tokenizer.max_length
    captions = _sample_captions(train, MAX_CHECKED_CAPTIONS)
    lengths = token_lengths(prepared.tokenizer, captions)
    if prepared.prompts:
        start, end = framing_tokens(prepared.tokenizer)
        lengths += 1 - len(start) - len(end)  # an answer has one end token and no start token
    num_cut = int((lengths > max_length).sum())
    if num_cut:
        message = (
            "%d of %d captions are longer than tokenizer.max_length=%d and are cut (99 %% have at most %d)"
        )
        logger.warning(message, num_cut, len(captions), max_length, int(np.percentile(lengths, 99)))
