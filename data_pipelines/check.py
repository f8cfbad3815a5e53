"""Report of what a data set would contain: every recording is decoded once, nothing is written."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import soundfile

from alm_jax.errors import DataError
from data_pipelines.build import map_in_order
from data_pipelines.captions import normalise_caption
from data_pipelines.decode import MAX_RATE_HZ, MIN_RATE_HZ, as_file, read_blocks
from data_pipelines.source import Source, SourceRow, hash_file

NUM_PROBLEMS = 10
"""Maximum number of problems that are listed in full."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """One recording that was decoded to its end."""

    seconds: float
    rate_hz: int
    num_channels: int
    sha256: str


@dataclasses.dataclass(kw_only=True)
class Report:
    """Result of the check."""

    found: tuple[str, ...] = ()
    """Notes of the data set on its layout and columns."""
    num_rows: int = 0
    num_missing: int = 0
    """Number of clips whose file does not exist."""
    num_undecodable: int = 0
    """Number of clips whose file exists and is no usable audio."""
    num_without_caption: int = 0
    num_bad_rows: int = 0
    """Number of table rows that cannot be used."""
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Length of each decoded clip."""
    rates: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Number of clips by sampling rate and channels."""
    splits: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    licences: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    classes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    words: list[int] = dataclasses.field(default_factory=list)
    """Number of words of each caption."""
    captions: list[int] = dataclasses.field(default_factory=list)
    """Number of captions of each clip."""
    duplicates: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Pairs of clips with the same recording."""
    num_repeated_captions: int = 0
    """Number of captions that another clip has too."""
    problems: list[str] = dataclasses.field(default_factory=list)
    """The first problems, with file and line."""

    @property
    def num_problems(self) -> int:
        """Number of clips and rows that would be left out."""
        return self.num_missing + self.num_undecodable + self.num_without_caption + self.num_bad_rows

    def lines(self) -> list[tuple[str, str]]:
        """The report as lines of text: names and values."""
        num_found = self.num_rows - self.num_missing
        lines = [
            ("rows", f"{self.num_rows:,} ({_counts(self.splits)})"),
            (
                "recordings",
                f"{num_found:,} found, {self.num_missing:,} missing, {self.num_undecodable:,} undecodable",
            ),
        ]
        if self.seconds:
            shares = np.percentile(self.seconds, [0, 50, 99, 100])
            lines.append(
                ("length", f"{sum(self.seconds):,.1f} s together; {_spread(shares, 's')}"),
            )
            lines.append(("rates", _counts(self.rates)))
        if self.words:
            lines.append(
                ("captions", f"{len(self.words):,}; {min(self.captions)} to {max(self.captions)} a clip")
            )
            lines.append(("words", _spread(np.percentile(self.words, [0, 50, 99, 100]), "")))
        lines.append(
            ("classes", f"{len(self.classes):,}: {_counts(self.classes)}" if self.classes else "none")
        )
        lines.append(("licences", _counts(self.licences)))
        pairs = "".join(f" ({a} is {b})" for a, b in self.duplicates[:1])
        repeated = f"{self.num_repeated_captions:,} captions that another clip has too"
        lines.append(("duplicates", f"{len(self.duplicates):,} recordings{pairs}; {repeated}"))
        return lines


def check(
    source: Source, row_problems: Sequence[str] = (), *, advance: Callable[[], None] = lambda: None
) -> Report:
    """Decodes every recording of a data set at its own rate, and counts.

    ``row_problems`` are those of its tables; ``advance`` is called after every clip.
    """
    report = Report(found=source.found, num_rows=len(source.rows), num_bad_rows=len(row_problems))
    report.problems.extend(row_problems[:NUM_PROBLEMS])
    by_content: dict[tuple[str, float, float | None], str] = {}
    texts: collections.Counter[str] = collections.Counter()
    for row, outcome in map_in_order(_try, source.rows):
        advance()
        report.splits[row.split] += 1
        report.licences[row.licence or "unknown"] += 1
        report.classes.update(row.labels)
        captions = {text for text in map(normalise_caption, row.captions) if text}
        texts.update(captions)
        report.words.extend(len(text.split()) for text in captions)
        report.captions.append(len(captions))
        if isinstance(outcome, DataError):
            kind = "num_missing" if str(outcome).startswith("missing") else "num_undecodable"
            setattr(report, kind, getattr(report, kind) + 1)
            _add_problem(report, row, str(outcome))
            continue
        report.seconds.append(outcome.seconds)
        report.rates[f"{outcome.rate_hz} Hz {_channels(outcome.num_channels)}"] += 1
        first = by_content.setdefault((outcome.sha256, row.start_sec, row.end_sec), row.id)
        if first != row.id:
            report.duplicates.append((row.id, first))
        if not captions:
            report.num_without_caption += 1
            _add_problem(report, row, "no caption")
    report.num_repeated_captions = sum(count for count in texts.values() if count > 1)
    return report


def decode_clip(row: SourceRow) -> Decoded:
    """Decodes a clip piece by piece. Raises DataError with the reason where the clip would be left out."""
    content = row.audio.content()
    try:
        with soundfile.SoundFile(as_file(content)) as file:
            rate_hz, num_channels = file.samplerate, file.channels
    except (soundfile.SoundFileError, OSError):
        rate_hz, num_channels = 0, 0
    # Where the rate is unknown a usual rate is used, so that the reader gives the reason.
    asked_hz = rate_hz if MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ else 16_000
    max_sec = None if row.end_sec is None else row.end_sec - row.start_sec
    num_samples = sum(map(len, read_blocks(content, asked_hz, start_sec=row.start_sec, max_sec=max_sec)))
    return Decoded(
        seconds=num_samples / asked_hz,
        rate_hz=rate_hz,
        num_channels=num_channels,
        sha256=hash_file(content),
    )


def _try(row: SourceRow) -> Decoded | DataError:
    try:
        return decode_clip(row)
    except DataError as error:
        return error


def _add_problem(report: Report, row: SourceRow, reason: str) -> None:
    if len(report.problems) < NUM_PROBLEMS:
        where = f"{row.place}: " if row.place else ""
        report.problems.append(f"{where}{row.source[:200]}: {reason}")


def _channels(number: int) -> str:
    return {1: "mono", 2: "stereo"}.get(number, f"{number} channels")


def _spread(shares: Iterable[float], unit: str) -> str:
    least, middle, most, longest = (f"{share:,.4g}" for share in shares)
    return f"{least} to {longest} {unit}, half at most {middle}, 99 % at most {most}".replace(" ,", ",")


def _counts(counter: collections.Counter[str]) -> str:
    shown = [f"{name} {count:,}" for name, count in counter.most_common(8)]
    return ", ".join(shown) + (f" and {len(counter) - 8} more" if len(counter) > 8 else "")
