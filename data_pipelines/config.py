"""Configuration of a run's data: data set, storage, filters, clip lengths and tokenizer."""

import dataclasses
import itertools
import re
from typing import Annotated, Literal

from alm_jax.errors import UserError
from alm_jax.ranges import Range
from data_pipelines.dataset import DatasetConfig, require
from data_pipelines.templates import TemplateName, render


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """A question asked about each recording; the recording's caption is the answer."""

    template: TemplateName = "plain"
    """How recording and question are put together: one of the published templates of `data_pipelines.templates`."""
    question: str | tuple[str, ...] = ""
    """The question, or the name of one of the template's tasks (``caption``). Of several, training picks one at
    random for every example and epoch, and evaluation asks the first."""
    max_length: int = 64
    """Maximum tokens of a prompt (P of the batch contract), to which shorter prompts are padded; a longer one is an
    error."""

    def __post_init__(self) -> None:
        require(self.max_length >= 1, "prompt.max_length", self.max_length, "at least 1")
        require(self.question != (), "prompt.question", self.question, "a question, or several")
        require(
            len(set(self.questions)) == len(self.questions),
            "prompt.question",
            self.question,
            "different questions",
        )
        for question in self.questions:
            render(self.template, question)

    @property
    def questions(self) -> tuple[str, ...]:
        """Every question; evaluation asks the first."""
        return (self.question,) if isinstance(self.question, str) else self.question


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which recordings of the training splits are used; evaluation always uses all."""

    min_sec: float = 0.0
    """Minimum length of a recording, seconds; shorter ones are left out."""
    max_sec: float | None = None
    """Maximum length of a recording, seconds; longer ones are left out. None keeps them: a window of each is read."""
    licences: tuple[str, ...] = ()
    """Licences to keep, as patterns in which ``*`` matches anything: ``CC0*``, ``CC-BY-4*``. The empty tuple keeps
    every licence."""
    min_caption_words: int = 1
    """Minimum number of words of a caption; shorter captions are not used, and a recording with none left is left
    out."""
    max_caption_words: int | None = None
    """Maximum number of words of a caption; longer captions are not used. None: no limit."""

    def __post_init__(self) -> None:
        require(self.min_sec >= 0, "filter.min_sec", self.min_sec, "zero or more")
        longest, most = self.max_sec, self.max_caption_words
        require(longest is None or longest > self.min_sec, "filter.max_sec", longest, "above filter.min_sec")
        require(self.min_caption_words >= 1, "filter.min_caption_words", self.min_caption_words, "at least 1")
        require(
            most is None or most >= self.min_caption_words,
            "filter.max_caption_words",
            most,
            "filter.min_caption_words or more",
        )

    @property
    def looks_at_captions(self) -> bool:
        """Whether the filter depends on captions."""
        return self.min_caption_words > 1 or self.max_caption_words is not None

    @property
    def keeps_all(self) -> bool:
        """Whether the filter keeps everything."""
        return self == FilterConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DurationBucketsConfig:
    """Duration buckets: training batches of recordings of similar length, each padded to one of a few lengths.

    Every batch is of one bucket. Buckets alternate in shares that read all recordings equally often, to one part in a
    thousand; each has its own permutations and epochs. Batches have only the shapes of this list.
    """

    longest_sec: tuple[float, ...] = ()
    """Padded lengths besides ``source_sec``, seconds, ascending and below it; a recording is padded to the shortest
    that holds it. Each length compiles the step once more. The empty tuple pads every recording to ``source_sec``."""
    fill: bool = False
    """Whether a batch has a fixed number of samples instead of rows: a batch of length L has ``training.batch_size``
    times ``source_sec`` / L rows, the quotient rounded down. For models whose work depends on the batch's length
    (packed_vit)."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise((0.0, *self.longest_sec)))
        require(
            rising, "duration_buckets.longest_sec", self.longest_sec, "seconds above zero in rising order"
        )
        require(
            bool(self.longest_sec) or not self.fill,
            "duration_buckets.fill",
            self.fill,
            "False where duration_buckets.longest_sec names no length",
        )

    def shapes(self, window_sec: float, batch_size: int) -> list[tuple[float, int]]:
        """Returns (seconds, rows) of the batches of each bucket; the last is ``source_sec`` long.

        Raises UserError where a bucket is not shorter than that.
        """
        for seconds in self.longest_sec[-1:]:
            if seconds >= window_sec:
                raise UserError(
                    f"duration_buckets.longest_sec has {seconds:g} s, and batches show {window_sec:g} s of a recording "
                    "(data.source_sec): name lengths below that"
                )
        return [
            (seconds, batch_size * (int(window_sec / seconds + 1e-9) if self.fill else 1))
            for seconds in (*self.longest_sec, window_sec)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeCaptionsConfig:
    """Training captions made from the names of a recording's classes, in addition to its own captions."""

    templates: tuple[str, ...] = ()
    """Sentences with ``{}`` for the class names: ``the sounds of {}``. One is chosen at random for each example and
    epoch, with the names in random order (``rain, wind and thunder``). The empty tuple makes no captions."""
    fraction: float = 0.5
    """Probability that a recording with classes shows a made caption in an epoch; one without classes always shows its
    own."""
    negatives: bool = False
    """Whether to also make wrong captions, from classes that the recording does not have, where ``num_negatives``
    asks for more than the data set has."""

    def __post_init__(self) -> None:
        good = all(template.count("{}") == 1 for template in self.templates)
        require(good, "made_captions.templates", self.templates, "sentences with exactly one {} each")
        require(0 <= self.fraction <= 1, "made_captions.fraction", self.fraction, "from 0 to 1")
        require(
            bool(self.templates) or not self.negatives,
            "made_captions.negatives",
            self.negatives,
            "False where made_captions.templates has no sentence",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How a built data set is stored on disk."""

    sample_rate_hz: int | None = None
    """Sampling rate of the stored recordings, Hz; None: the model's rate. With a fixed rate one build serves models
    of every rate, and recordings are resampled as they are read."""
    encoding: Literal["pcm", "flac"] = "pcm"
    """``pcm``: int16 samples, the fastest to read. ``flac``: the same samples in about half the space, several times
    slower to read."""

    def __post_init__(self) -> None:
        rate_hz = self.sample_rate_hz
        require(
            rate_hz is None or 1_000 <= rate_hz <= 768_000,
            "storage.sample_rate_hz",
            rate_hz,
            "1000 to 768000, or None for the model's",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixturePart:
    """One data set of a mixture."""

    name: str
    """Prefix of its splits' names: ``digits`` gives ``digits/train``."""
    dataset: DatasetConfig
    """The data set."""
    weight: int = 1
    """Weight of the part, a whole number: its share of the rows of every batch, or of the batches, relative to the
    other parts."""
    train_split: str = "train"
    """Split(s) of the part that belong to the mixture's ``train``, joined with ``+``."""
    eval_split: str = "test"
    """Split(s) of the part that belong to the mixture's ``test``, joined with ``+``."""
    prompt: PromptConfig | None = None
    """Prompt for its recordings; None: that of ``data.prompt``."""
    filter: FilterConfig | None = None
    """Filter of its training recordings; None: that of ``data.filter``."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[A-Za-z0-9_.-]+", self.name) is not None,
            "the name of a mixture's part",
            self.name,
            "letters, digits, dots, hyphens and underscores",
        )
        is_whole = isinstance(self.weight, int) and 1 <= self.weight <= 1000
        require(is_whole, f"the weight of part {self.name!r}", self.weight, "a whole number from 1 to 1000")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Several data sets at once.

    Splits: ``train`` and ``test``, joined from the parts' train and test splits, and ``name/split``, any split of a
    part; join them with ``+``. Classes of the same name in different parts are one class. Each part has its own order
    and its own epochs.
    """

    parts: tuple[MixturePart, ...]
    """The data sets; batches number them by position (``source``). Set in the config file: the command line changes
    only single fields."""
    mode: Literal["rows", "turns"] = "rows"
    """``rows``: every batch has rows of every part, in fixed shares. ``turns``: a batch is of one part, and the parts
    alternate. Remainders are spread evenly over the steps."""
    temperature: float | None = None
    """Temperature of the shares. None: shares are the parts' weights. T: shares are the sizes of the parts to the
    power 1 / T, rounded to thousandths, and weights are ignored; T = 1 reads all data equally often, a large T reads
    equally much of every part."""

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        require(len(names) >= 1, "dataset.parts", self.parts, "one data set or more")
        require(len(set(names)) == len(names), "dataset.parts", names, "parts of different names")
        hot = self.temperature
        require(hot is None or hot >= 1, "dataset.temperature", hot, "1 or more, or None for the weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer: a published one, or one trained on the captions of the train split."""

    kind: Literal["bpe", "wordpiece"] = "bpe"
    """Kind of tokenizer to train. ``bpe``: byte-level, like RoBERTa's. ``wordpiece``: lower-case, like BERT's.
    Ignored with ``path``."""
    vocab_size: int | None = None
    """Largest vocabulary to train, special tokens included. None: the model's vocabulary size, or 1000 where no model
    reads text. Ignored with ``path``."""
    max_length: int = 32
    """Maximum tokens of a caption, special tokens included; shorter captions are padded, longer ones cut."""
    length_buckets: tuple[int, ...] = ()
    """Shorter lengths, ascending, to which a training batch is padded where all its captions fit. Each length in use
    compiles the step once more. The empty tuple pads every batch to max_length."""
    path: str | None = None
    """A ``tokenizer.json``, or a folder that holds one. None: train a tokenizer on the captions."""

    def __post_init__(self) -> None:
        require(self.max_length >= 3, "tokenizer.max_length", self.max_length, "at least 3")
        lengths = (*self.length_buckets, self.max_length)
        require(
            lengths[0] >= 3 and all(a < b for a, b in itertools.pairwise(lengths)),
            "tokenizer.length_buckets",
            self.length_buckets,
            f"lengths from 3 on, each longer than the one before, below tokenizer.max_length {self.max_length}",
        )
        smallest = 300 if self.kind == "bpe" else 50
        if self.path is None:
            require(
                self.num_tokens >= smallest,
                "tokenizer.vocab_size",
                self.vocab_size,
                f"at least {smallest} for {self.kind} (the alphabet and the special tokens)",
            )

    @property
    def num_tokens(self) -> int:
        """``vocab_size``, or its default where no model has set it."""
        return 1000 if self.vocab_size is None else self.vocab_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set, its splits, and how batches are cut from it."""

    dataset: DatasetConfig | MixtureConfig
    """The data set, or a mixture of several."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How captions become token ids."""
    filter: FilterConfig = FilterConfig()
    """Which recordings training uses."""
    storage: StorageConfig = StorageConfig()
    """How a built data set is stored on disk."""
    prompt: PromptConfig | None = None
    """Prompt before a caption; the caption is then an answer without a start token. None where the model reads
    captions."""
    num_negatives: Annotated[int, Range(0)] = 0
    """Number of wrong but similar captions given with every pair (K of the batch contract); the data set must have
    them. A loss with hard negatives needs them."""
    source_sec: float | None = None
    """Seconds of each recording that are sent to the device. Shorter recordings are zero-padded
    (``audio_num_samples`` is the real length); longer ones are cut, at random in training and to the centre in
    evaluation. None: the length of the model's clips, or 10 s where there is no model."""
    duration_buckets: DurationBucketsConfig = DurationBucketsConfig()
    """Lengths besides ``source_sec`` that training batches are padded to."""
    made_captions: MadeCaptionsConfig = MadeCaptionsConfig()
    """Training captions made from class names."""
    train_split: str = "train"
    """Split(s) to train on, joined with ``+``."""
    eval_split: str = "test"
    """Split(s) to evaluate on, joined with ``+``."""
    cache_dir: str = "~/.cache/alm_jax/data"
    """Folder of prepared data sets: a local folder, or a bucket (``gs://bucket/data``), from which every machine
    downloads what it reads once. The folder may be moved or copied, and may be read-only where its data sets are
    complete."""
    local_dir: str = "~/.cache/alm_jax/buckets"
    """Local folder for downloads from buckets."""
    max_bad_fraction: float = 0.05
    """Largest fraction of recordings that may be rejected; above it the build stops with an error."""
    num_reads: int = 2
    """Batches that are read concurrently."""

    def __post_init__(self) -> None:
        require(self.num_negatives >= 0, "num_negatives", self.num_negatives, "zero or more")
        require(self.window_sec > 0, "source_sec", self.source_sec, "above zero")
        require(0 <= self.max_bad_fraction < 1, "max_bad_fraction", self.max_bad_fraction, "in [0, 1)")
        require(self.num_reads >= 1, "num_reads", self.num_reads, "at least 1")
        require(
            not (self.duration_buckets.longest_sec and isinstance(self.dataset, MixtureConfig))
            or self.dataset.mode == "turns",
            "dataset.mode",
            getattr(self.dataset, "mode", ""),
            "turns where data.duration_buckets names lengths: the rows of a batch are of one length",
        )
        asked = [prompt is not None for prompt in self._prompts]
        if any(asked) and not all(asked):
            raise UserError(
                "some parts of the mixture have a prompt and others have none; set data.prompt, which is the prompt of "
                "every part without its own"
            )

    @property
    def window_sec(self) -> float:
        """``source_sec``, or its default where no model has set it."""
        return 10.0 if self.source_sec is None else self.source_sec

    @property
    def prompts(self) -> tuple[PromptConfig, ...]:
        """The prompt of each part of a mixture, or of the one data set; empty where there are no prompts."""
        return tuple(prompt for prompt in self._prompts if prompt is not None)

    @property
    def _prompts(self) -> list[PromptConfig | None]:
        if not isinstance(self.dataset, MixtureConfig):
            return [self.prompt]
        return [part.prompt or self.prompt for part in self.dataset.parts]

    @property
    def prompt_length(self) -> int:
        """P of the batch contract: the largest ``max_length`` of the prompts; 0 without prompts."""
        return max((prompt.max_length for prompt in self.prompts), default=0)
