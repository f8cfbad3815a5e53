"""What a run says about its data: which set, at which settings, cut how, tokenised how."""

import dataclasses
import itertools
from typing import Literal

from alm_jax.errors import UserError
from data_pipelines.templates import TemplateName, render


def _require(condition: bool, field: str, value: object, expected: str) -> None:
    if not condition:
        raise UserError(f"{field} is {value!r}; it must be {expected}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticCaptionsConfig:
    """Sounds composed from a seed, with captions that say what is in them; needs no download.

    Splits: ``train``, ``validation`` and ``test``. The compositions of the last two occur in no other
    split, though every single event of theirs does in ``train``.
    """

    num_train: int = 3000
    """Clips of the train split."""
    num_validation: int = 100
    """Clips of the validation split, each of a different composition."""
    num_test: int = 200
    """Clips of the test split, each of a different composition."""
    clip_sec: float = 2.5
    """Length of every clip, seconds."""
    captions_per_clip: int = 5
    """Captions of a validation or test clip; a train clip has one to this many."""
    seed: int = 0
    """Seed of compositions, sounds and wording."""

    def __post_init__(self) -> None:
        _require(self.num_train >= 1, "num_train", self.num_train, "at least 1")
        _require(self.num_validation >= 1, "num_validation", self.num_validation, "at least 1")
        _require(self.num_test >= 1, "num_test", self.num_test, "at least 1")
        _require(1.0 <= self.clip_sec <= 60.0, "clip_sec", self.clip_sec, "between 1 and 60 seconds")
        _require(1 <= self.captions_per_clip <= 8, "captions_per_clip", self.captions_per_clip, "1 to 8")
        _require(self.seed >= 0, "seed", self.seed, "zero or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Esc50Config:
    """ESC-50 (Piczak 2015) in its published layout: ``audio/`` and ``meta/esc50.csv``.

    Splits: ``fold1`` ... ``fold5``, those that the CSV names; join them with ``+``.
    """

    root: str
    """Folder that holds ``audio/`` and ``meta/``."""
    subset: Literal["esc50", "esc10"] = "esc50"
    """``esc10`` keeps the rows whose column ``esc10`` is True: ten classes."""
    captions: Literal["class", "title"] = "class"
    """``class``: every template, filled with the class; ``title``: what the recording's author called it
    (``meta/freesound.csv``), cleaned, or the templates where nothing is left of it."""
    templates: tuple[str, ...] = ("This is a sound of {}.",)
    """Captions of a class; ``{}`` is its name. With several, training draws one each time."""

    def __post_init__(self) -> None:
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise UserError(
                f"dataset.templates is {self.templates!r}; give at least one, each with exactly one {{}} "
                "where the name of the class goes"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FsddConfig:
    """The Free Spoken Digit Dataset in its published layout: ``recordings/``, and a ``metadata.csv`` beside it.

    Splits: those that the CSV names in its column ``split``, ``train`` and ``test``. The caption of a recording is
    the word of its digit (``seven``), its label the digit.
    """

    root: str
    """Folder that holds ``recordings/`` and ``metadata.csv`` (columns filename, split, digit)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer trained on the captions of the train split, or a published one."""

    kind: Literal["bpe", "wordpiece"] = "bpe"
    """``bpe``: byte-level, as RoBERTa's; ``wordpiece``: lower-case, as BERT's. Ignored with ``path``."""
    vocab_size: int = 1000
    """Largest vocabulary to train, special tokens included. Ignored with ``path``."""
    max_length: int = 32
    """Tokens a caption is cut or padded to, special tokens included."""
    length_buckets: tuple[int, ...] = ()
    """Shorter lengths, in rising order, that a training batch is padded to where all its captions fit; each that
    occurs compiles the step once more. The empty tuple pads every batch to max_length."""
    path: str | None = None
    """A ``tokenizer.json``, or a folder that holds one; trained from the captions where it is None."""

    def __post_init__(self) -> None:
        _require(self.max_length >= 3, "tokenizer.max_length", self.max_length, "at least 3")
        lengths = (*self.length_buckets, self.max_length)
        _require(
            lengths[0] >= 3 and all(a < b for a, b in itertools.pairwise(lengths)),
            "tokenizer.length_buckets",
            self.length_buckets,
            f"lengths from 3 on, each longer than the one before, below tokenizer.max_length {self.max_length}",
        )
        smallest = 300 if self.kind == "bpe" else 50
        if self.path is None:
            _require(
                self.vocab_size >= smallest,
                "tokenizer.vocab_size",
                self.vocab_size,
                f"at least {smallest} for {self.kind} (the alphabet and the special tokens)",
            )


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
        _require(self.max_length >= 1, "prompt.max_length", self.max_length, "at least 1")
        _require(self.question != (), "prompt.question", self.question, "a question, or several")
        _require(
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
class DataConfig:
    """A data set, its splits, and how batches are cut from it."""

    dataset: SyntheticCaptionsConfig | Esc50Config | FsddConfig
    """The data set."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How captions become token ids."""
    prompt: PromptConfig | None = None
    """What comes before a caption, which is then an answer with no start token; None where a model reads captions."""
    num_negatives: int = 0
    """Captions that are wrong, and nearly right, given with every pair, K of the batch contract; the data set must
    have such. A loss with hard negatives needs them."""
    source_sec: float = 10.0
    """Seconds of a recording that reach the device; shorter ones are zero-padded (``audio_num_samples``
    says where), longer ones are cut: at random in training, from the centre in evaluation."""
    train_split: str = "train"
    """Split(s) to train on, joined with ``+``."""
    eval_split: str = "test"
    """Split(s) to evaluate on, joined with ``+``."""
    cache_dir: str = "~/.cache/alm_jax/data"
    """Where prepared data sets are kept."""
    max_bad_fraction: float = 0.05
    """Largest fraction of the recordings that may be rejected before the build gives up."""
    num_reads: int = 2
    """Batches that are read at the same time."""

    def __post_init__(self) -> None:
        _require(self.num_negatives >= 0, "num_negatives", self.num_negatives, "zero or more")
        _require(self.source_sec > 0, "source_sec", self.source_sec, "above zero")
        _require(0 <= self.max_bad_fraction < 1, "max_bad_fraction", self.max_bad_fraction, "in [0, 1)")
        _require(self.num_reads >= 1, "num_reads", self.num_reads, "at least 1")
