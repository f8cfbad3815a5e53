"""What a run says about its data: which set, at which settings, cut how, tokenised how."""

import dataclasses
import itertools
import re
from typing import Annotated, Any, Literal

from alm_jax.errors import UserError
from alm_jax.ranges import Range
from data_pipelines.dataset import DatasetConfig, require
from data_pipelines.templates import TemplateName, render


def __getattr__(name: str) -> Any:
    """The configs of single data sets by their names, for config files that import them from here."""
    for kind in DatasetConfig.kinds() if name.endswith("Config") else ():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What is asked of a recording; its caption is the answer."""

    template: TemplateName = "plain"
    """How recording and question are put together: `data_pipelines.templates` has them as they were published."""
    question: str | tuple[str, ...] = ""
    """The question, or the name of a task of the template (``caption``). Of several, training draws one for every
    example and epoch, and evaluation asks the first."""
    max_length: int = 64
    """Tokens a prompt is padded to, P of the batch contract; a longer one is an error."""

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
        """Every question, the first of which is evaluation's."""
        return (self.question,) if isinstance(self.question, str) else self.question


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which recordings of the training splits are read; evaluation always reads all."""

    min_sec: float = 0.0
    """Shorter recordings are left out, seconds."""
    max_sec: float | None = None
    """Longer recordings are left out, seconds; None keeps them: a window is read of each."""
    licences: tuple[str, ...] = ()
    """Licences that are kept, as patterns in which ``*`` stands for anything: ``CC0*``, ``CC-BY-4*``. The empty tuple
    keeps every licence."""
    min_caption_words: int = 1
    """Captions of fewer words are not read; a recording with no caption left is left out."""
    max_caption_words: int | None = None
    """Captions of more words are not read; None keeps them."""

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
        """Whether captions decide."""
        return self.min_caption_words > 1 or self.max_caption_words is not None

    @property
    def keeps_all(self) -> bool:
        """Whether it leaves nothing out."""
        return self == FilterConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How a data set is kept on disk once it is built."""

    sample_rate_hz: int | None = None
    """Sampling rate of the records, Hz; None: the model's. With a rate of its own one build serves models of every
    rate: what they read is resampled as it is read."""
    encoding: Literal["pcm", "flac"] = "pcm"
    """``pcm``: int16 samples, the fastest to read; ``flac``: the same samples in about half the space, and several
    times the work."""

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
    """What its splits begin with: ``digits/train``."""
    dataset: DatasetConfig
    """The data set."""
    weight: int = 1
    """Its share, beside the other parts' weights: of the rows of every batch, or of the batches."""
    train_split: str = "train"
    """Split(s) of it that the mixture's ``train`` has, joined with ``+``."""
    eval_split: str = "test"
    """Split(s) of it that the mixture's ``test`` has, joined with ``+``."""
    prompt: PromptConfig | None = None
    """What is asked of its recordings; None: what ``data.prompt`` says."""
    filter: FilterConfig | None = None
    """Which of its recordings are trained on; None: what ``data.filter`` says."""

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

    Splits: ``train`` and ``test``, made of what each part trains on and is evaluated on, and ``name/split``, any split
    of a part; join them with ``+``. Classes of the same name are one class, whatever part they are of. Each part has
    its own order and its own epochs.
    """

    parts: tuple[MixturePart, ...]
    """The data sets; batches name them by their place (``source``). Said in the config file: the command line changes
    single fields."""
    mode: Literal["rows", "turns"] = "rows"
    """``rows``: every batch has rows of every part, in fixed shares; ``turns``: a batch is of one part, and the parts
    take turns. What does not divide is spread evenly over the steps."""
    temperature: float | None = None
    """None: shares are the parts' weights. T: they are sizes of the parts to the power 1 / T, to a part in a thousand:
    1 reads every part equally often, a large T reads equally much of every part; weights are then not used."""

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        require(len(names) >= 1, "dataset.parts", self.parts, "one data set or more")
        require(len(set(names)) == len(names), "dataset.parts", names, "parts of different names")
        hot = self.temperature
        require(hot is None or hot >= 1, "dataset.temperature", hot, "1 or more, or None for the weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer trained on the captions of the train split, or a published one."""

    kind: Literal["bpe", "wordpiece"] = "bpe"
    """``bpe``: byte-level, as RoBERTa's; ``wordpiece``: lower-case, as BERT's. Ignored with ``path``."""
    vocab_size: int | None = None
    """Largest vocabulary to train, special tokens included; None for as many words as the model has, and 1000 where
    there is no model of words. Ignored with ``path``."""
    max_length: int = 32
    """Tokens a caption is cut or padded to, special tokens included."""
    length_buckets: tuple[int, ...] = ()
    """Shorter lengths, in rising order, that a training batch is padded to where all its captions fit; each that
    occurs compiles the step once more. The empty tuple pads every batch to max_length."""
    path: str | None = None
    """A ``tokenizer.json``, or a folder that holds one; trained from the captions where it is None."""

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
        """``vocab_size``, or its default where no model has filled it in."""
        return 1000 if self.vocab_size is None else self.vocab_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set, its splits, and how batches are cut from it."""

    dataset: DatasetConfig | MixtureConfig
    """The data set, or several."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How captions become token ids."""
    filter: FilterConfig = FilterConfig()
    """Which recordings are trained on."""
    storage: StorageConfig = StorageConfig()
    """How a data set is kept on disk once it is built."""
    prompt: PromptConfig | None = None
    """What comes before a caption, which is then an answer with no start token; None where a model reads captions."""
    num_negatives: Annotated[int, Range(0)] = 0
    """Captions that are wrong, and nearly right, given with every pair, K of the batch contract; the data set must
    have such. A loss with hard negatives needs them."""
    source_sec: float | None = None
    """Seconds of a recording that reach the device; shorter ones are zero-padded (``audio_num_samples``
    says where), longer ones are cut: at random in training, from the centre in evaluation. None for the length of the
    model's clips, and 10 s where there is no model."""
    train_split: str = "train"
    """Split(s) to train on, joined with ``+``."""
    eval_split: str = "test"
    """Split(s) to evaluate on, joined with ``+``."""
    cache_dir: str = "~/.cache/alm_jax/data"
    """Where prepared data sets are kept: a folder, or a bucket, ``gs://bucket/data``, from which every machine fetches
    what it reads once. It may be moved or copied, and read-only for data sets that are complete."""
    local_dir: str = "~/.cache/alm_jax/buckets"
    """Folder of this machine for what is fetched from buckets."""
    max_bad_fraction: float = 0.05
    """Largest fraction of the recordings that may be rejected before the build gives up."""
    num_reads: int = 2
    """Batches that are read at the same time."""

    def __post_init__(self) -> None:
        require(self.num_negatives >= 0, "num_negatives", self.num_negatives, "zero or more")
        require(self.window_sec > 0, "source_sec", self.source_sec, "above zero")
        require(0 <= self.max_bad_fraction < 1, "max_bad_fraction", self.max_bad_fraction, "in [0, 1)")
        require(self.num_reads >= 1, "num_reads", self.num_reads, "at least 1")
        asked = [prompt is not None for prompt in self._prompts]
        if any(asked) and not all(asked):
            raise UserError(
                "some parts of the mixture have a prompt and others have none; set data.prompt, which is the prompt of "
                "every part without its own"
            )

    @property
    def window_sec(self) -> float:
        """``source_sec``, or its default where no model has filled it in."""
        return 10.0 if self.source_sec is None else self.source_sec

    @property
    def prompts(self) -> tuple[PromptConfig, ...]:
        """The prompt of each part of a mixture, or of the one data set; none where captions have no prompt."""
        return tuple(prompt for prompt in self._prompts if prompt is not None)

    @property
    def _prompts(self) -> list[PromptConfig | None]:
        if not isinstance(self.dataset, MixtureConfig):
            return [self.prompt]
        return [part.prompt or self.prompt for part in self.dataset.parts]

    @property
    def prompt_length(self) -> int:
        """P of the batch contract, the longest ``max_length`` of the prompts; 0 where there are none."""
        return max((prompt.max_length for prompt in self.prompts), default=0)
