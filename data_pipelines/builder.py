"""The TFDS builder of every data set: runs `data_pipelines.build` from ``tfds build`` and
``download_and_prepare``."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_pipelines.build import BuildSpec, build, complete, features
from data_pipelines.dataset import DatasetConfig
from data_pipelines.manifest import FORMAT, Manifest
from data_pipelines.records import Encoding
from data_pipelines.source import Source


@dataclasses.dataclass(kw_only=True)
class CaptionedAudioConfig(tfds.core.BuilderConfig):
    """A TFDS config that holds the settings of the data set as this project writes them."""

    settings: Any = None
    sample_rate_hz: int = 16_000
    encoding: Encoding = "pcm"
    max_bad_fraction: float = 0.0
    source: Source | None = None
    """Result of ``settings.read()``, where it was called already."""


def settings_name(settings: DatasetConfig, sample_rate_hz: int, encoding: Encoding) -> str:
    """Name that differs where the content differs: readable words, and a digest of settings and format."""
    content = [dataclasses.asdict(settings), sample_rate_hz, encoding, FORMAT]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    stored = f"{sample_rate_hz}hz" if encoding == "pcm" else f"{sample_rate_hz}hz-{encoding}"
    return f"{settings.short_name()}-{stored}-{digest}"


@functools.cache
def builder_class(kind: type[DatasetConfig]) -> type["CaptionedAudioBuilder"]:
    """Makes the TFDS builder class of a data set, with its name and documentation."""
    doc = (kind.__doc__ or "").strip()
    named = {"__doc__": kind.__doc__, "__module__": kind.__module__, "KIND": kind}
    return type(kind.title(), (CaptionedAudioBuilder,), named | {"MANUAL_DOWNLOAD_INSTRUCTIONS": doc})


class CaptionedAudioBuilder(tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Splits of ``{id, audio (int16 PCM, mono, or FLAC), captions, negatives, labels, licence, piece,
    source_sha256}``.

    ``info.metadata`` has the class names, the sampling rate and the encoding; ``manifest.json`` beside the records
    has all counts, and ``index/`` everything in the records except the audio.
    """

    VERSION = tfds.core.Version(f"{FORMAT}.0.0")
    BUILDER_CONFIGS: ClassVar = [CaptionedAudioConfig(name="manual_dir")]
    """Default settings, for the files in TFDS's ``manual_dir``."""
    KIND: ClassVar[type[DatasetConfig]]
    """The data set that is built."""
    url_infos = None  # nothing is downloaded: TFDS need not look for checksums beside this file

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features(config.encoding),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(sample_rate_hz=config.sample_rate_hz, encoding=config.encoding),
        )

    def spec(self, source: Source, folder: Path) -> BuildSpec:
        """Makes the build's specification for these rows and this folder."""
        config = self.builder_config
        return BuildSpec(
            name=self.name,
            folder=folder,
            sample_rate_hz=config.sample_rate_hz,
            encoding=config.encoding,
            class_names=source.class_names,
            max_bad_fraction=config.max_bad_fraction,
            signature=source.signature,
        )

    def state_splits(self, manifest: Manifest, folder: Path) -> None:
        """Fills ``info`` with the sizes and shards of the splits."""
        self.info.metadata["class_names"] = list(manifest.class_names)
        self.info.metadata["num_planned"] = manifest.num_planned
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=self.name, filetype_suffix="array_record"
        )
        splits = [
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=list(split.shard_lengths),
                num_bytes=sum(split.shard_bytes),
                filename_template=template,
            )
            for name, split in manifest.splits.items()
        ]
        self.info.set_splits(tfds.core.splits.SplitDict(splits))

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        config = self.builder_config
        source = config.source
        if source is None:
            source = (config.settings or self.KIND.at(dl_manager.manual_dir)).read()
        folder = Path(self.data_path)
        spec = self.spec(source, folder)
        options = download_config and download_config.beam_options
        beam = (
            " ".join(f"--{k}={v}" for k, v in options.get_all_options(drop_default=True).items())
            if options
            else None
        )
        manifest = build(spec, source, beam=beam)
        self.state_splits(manifest, folder)
        complete(spec, manifest)


def build_folder(
    settings: DatasetConfig,
    source: Source,
    folder: Path,
    *,
    sample_rate_hz: int,
    encoding: Encoding,
    max_bad_fraction: float,
    beam: str | None = None,
) -> Manifest:
    """Builds a data set in ``folder``, readable with and without TFDS; continues a build that was killed."""
    with _quiet_tfds(), tempfile.TemporaryDirectory() as nowhere:
        config = CaptionedAudioConfig(
            name=settings.short_name(),
            settings=settings,
            source=source,
            sample_rate_hz=sample_rate_hz,
            encoding=encoding,
            max_bad_fraction=max_bad_fraction,
        )
        builder = builder_class(type(settings))(data_dir=nowhere, config=config)
    spec = builder.spec(source, folder)
    manifest = build(spec, source, beam=beam)
    with _quiet_tfds():
        builder.state_splits(manifest, folder)
        builder.info.write_to_directory(folder)
    complete(spec, manifest)
    return manifest


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from printing to the standard output, and from warning about custom configs."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logger.setLevel(level)
