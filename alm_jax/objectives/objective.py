"""What training needs to know of an objective, split so that batch-coupled losses accumulate exactly.

A loss that couples the rows of a batch, as every contrastive loss does, is not the mean of its
micro-batches' losses. So an objective is given in three parts:

1. ``prepare`` turns a batch into inputs without touching a parameter: waveforms to features,
   augmentation, and statistics over the *whole* batch (``shared``).
2. ``encode`` maps rows of inputs to rows of outputs, each row by itself.
3. ``combine`` takes the outputs of all rows, and what the batch says of them, to ``(sum, weight)``.

Statistics that are made of outputs, as a codebook that follows its vectors, are ``update_stats``'s, of the outputs of
all rows too.

Gradient accumulation (``training/accumulation.py``) runs ``encode`` in pieces, ``combine`` and ``update_stats`` once
over the whole batch; without accumulation the three are composed and differentiated together.

An objective is one file in this folder, or a module of another package: a subclass of `ObjectiveConfig` whose fields
are its settings and whose ``build`` returns an `Objective`. Nothing else names it.
"""

import abc
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from alm_jax.figures import Figure
from alm_jax.models.capabilities import TextTokens
from alm_jax.types import Metrics, Params, PyTree

LOSS_STREAM = 3
"""Folded into a step's key for `Objective.combine`."""
PmapSupport: TypeAlias = Literal["none", "rows", "batch"]


class Inputs(NamedTuple):
    """Inputs of ``encode``."""

    rows: PyTree
    """Arrays [B ...]; accumulation cuts them into micro-batches."""
    shared: PyTree
    """Arrays every micro-batch sees whole, such as the batch's normalisation moments."""


class Loss(NamedTuple):
    """A loss before its division: the mean is ``sum / weight``, over all devices and micro-batches."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What an objective checks of the data set and the run that it is trained with."""

    tokens: TextTokens
    """The ids that frame a text."""
    vocab_size: int
    """Tokens of the tokenizer."""
    max_length: int
    """Tokens that a text is cut to."""
    mask_ids: Mapping[str, int]
    """Ids of the tokens that hide others, by name; empty where the tokenizer has none."""
    prompt_length: int | None
    """Tokens that a prompt is cut to; None where the batches have no prompts."""
    num_sources: int
    """Parts of a mixture; 0 where the data set is none."""
    batch_size: int
    """Rows of a training batch."""
    eval_batch_size: int
    """Rows of a batch of evaluation."""
    num_microbatches: int
    """Pieces in which a training batch is encoded."""
    init_paths: tuple[str, ...]
    """Paths of parameters that ``init_from`` replaces; the empty path stands for all."""

    def is_given(self, path: str) -> bool:
        """Whether ``init_from`` brings the parameters under a path."""
        return any(into in ("", path) or path.startswith(f"{into}/") for into in self.init_paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The training split as `Objective.fit` reads it."""

    batches: Iterator[dict[str, np.ndarray]]
    """Batches in the order of training, from the first step on, whole on every process; without an end."""
    num_clips: int
    """Recordings of the split."""
    place: Callable[[dict[str, np.ndarray]], dict[str, Array]]
    """A batch -> the same, cut over the devices."""
    fetch: Callable[[Array], np.ndarray]
    """An array on the devices -> the whole of it on the host."""
    seed: int
    """The run's seed."""


class Fitted(NamedTuple):
    """What an objective makes of its training data before the first step."""

    path: str
    """Path of the parameters that are replaced."""
    params: Params
    message: str
    """What was done, for people."""


LOSS = Figure(
    name="loss",
    label="loss",
    panel="Loss",
    series="training",
    is_noisy=True,
    is_higher_better=False,
    is_shown=True,
)
"""The loss that is trained."""
LOGIT_SCALE = Figure(
    name="logit_scale",
    label="logit scale",
    panel="Logit scale (1 / temperature)",
    is_of_batch=True,
)
"""The factor of cosines in a contrastive loss."""


def loss_figure(name: str, label: str) -> Figure:
    """The declaration of a part of the loss."""
    return Figure(name=name, label=label, is_higher_better=False)


class PairLoss(NamedTuple):
    """A loss of embeddings of pairs."""

    name: str
    """Name of its figure; ``loss`` where it is the objective's whole loss."""
    compute: Callable[..., Loss]
    """(params, audio_emb [B E], text_emb [B E], rows, negatives or None) -> Loss; ``rows`` has the batch contract's
    ``mask``, ``index`` and ``label``."""


def no_capabilities(tokens: TextTokens) -> Any:
    """A model that nothing but its loss is measured of."""
    return None


def check_nothing(facts: DataFacts) -> None:
    """Any data fits."""


def keep_stats(batch_stats: Params, outputs: PyTree, batch: dict[str, Any], key: Any) -> Params:
    """No statistics are made of outputs."""
    return batch_stats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A model and its loss as pure functions. ``variables`` is {"params": ..., "batch_stats": ...}.

    Under ``pmap``, ``Loss`` is one device's share, and the step adds over devices.
    """

    init: Callable[[Array], dict[str, Params]]
    """key -> variables."""
    axes: Callable[[], PyTree]
    """() -> logical axis names of every parameter, as a tree of tuples shaped like params."""
    prepare: Callable[..., Inputs]
    """(batch, key, *, train) -> Inputs."""
    encode: Callable[..., tuple[PyTree, Params]]
    """(variables, inputs, key, *, train) -> (outputs with leading axis B, batch_stats). The gradient of the loss
    passes through outputs that are floats; masks and integers may be among them."""
    combine: Callable[..., tuple[Loss, Metrics]]
    """(params, outputs, batch, key) -> (Loss, metrics as a dict of Loss); the key is None without noise, and the same
    for all rows."""
    update_stats: Callable[..., Params] = keep_stats
    """(batch_stats, outputs without gradients, batch, key) -> batch_stats, in training."""
    project: Callable[[Params], Params]
    """params -> params after an optimiser step, such as a clamp on the temperature."""
    check: Callable[[DataFacts], None] = check_nothing
    """Raises UserError, before anything is compiled, where the objective does not fit the data or the run."""
    fit: Callable[..., Fitted | None] | None = None
    """(variables on the devices, DataFacts, TrainingData) -> `Fitted`: parameters made of the training data before the
    first step, such as k-means, or None where ``init_from`` brings them. None for an objective that has no such
    parameters."""
    capabilities: Callable[[TextTokens], Any] = no_capabilities
    """tokens -> an object that implements the protocols of `alm_jax.models.capabilities` that the model has."""
    measure: Callable[..., Metrics] | None = None
    """(variables of the model, batch) -> further figures of evaluation as a dict of Loss, without noise; None where
    there are none beside the loss and its metrics."""
    pair_loss: PairLoss | None = None
    """The loss that is made of embeddings of pairs, where there is one: evaluation computes it over batches as large as
    training's from embeddings that it has anyway."""
    sources: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Parts of a mixture whose recordings an evaluator counts by default: (its name, the parts); all where its name is
    absent, or the parts are empty."""
    figures: tuple[Figure, ...] = ()
    """Declarations of the figures that training records, ``loss`` among them, and of those that ``measure`` returns."""
    trained: Callable[[Params], Params] = dict
    """params -> the nested dict of those that train, all of them unless some are frozen (training/trainable.py)."""
    pmap: PmapSupport = "none"
    """How it trains under ``pmap``. "rows": each row by itself, so that losses and gradients add up over devices.
    "batch": its ``prepare`` and ``combine`` take the mapped axis as ``axis_name``, and look at the rows of all devices.
    "none": not at all."""
    merge: Callable[[Params], Params] = dict
    """params -> those of the model alone: what is trained beside them, adapters say, merged into them."""

    def loss(
        self,
        variables: dict[str, Any],
        batch: dict[str, Any],
        key: Any,
        *,
        train: bool,
    ) -> tuple[Loss, Metrics]:
        """The three parts composed, for evaluation and tests. Returns (Loss, metrics)."""
        inputs = self.prepare(batch, key, train=train)
        outputs, _ = self.encode(variables, inputs, key, train=train)
        key_loss = None if key is None or not train else jax.random.fold_in(key, LOSS_STREAM)
        return self.combine(variables["params"], outputs, batch, key_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(abc.ABC):
    """What is trained: a model and its losses."""

    model: Any
    """The model's config; its ``frontend`` turns waveforms into features."""

    @property
    def num_words(self) -> int | None:
        """Tokens of texts that the model has entries for; None of a model that reads no text."""
        return None

    @property
    def follows_batch(self) -> bool:
        """Whether a step of shorter recordings computes less: its clips are as long as the batch's recordings."""
        return False

    @abc.abstractmethod
    def build(self) -> Objective:
        """The objective as pure functions. Raises UserError where the settings do not fit each other."""

    @classmethod
    def kinds(cls) -> list[type["ObjectiveConfig"]]:
        """Every objective there is: those of this folder, and what else has been imported."""
        from alm_jax import objectives

        for module in pkgutil.iter_modules(objectives.__path__):
            importlib.import_module(f"{objectives.__name__}.{module.name}")
        return [kind for kind in _below(cls) if not getattr(kind, "__abstractmethods__", None)]


def _below(kind: type[ObjectiveConfig]) -> list[type[ObjectiveConfig]]:
    """A class and all its subclasses."""
    return [kind, *(lower for child in kind.__subclasses__() for lower in _below(child))]
