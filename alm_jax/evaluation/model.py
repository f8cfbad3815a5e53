"""A model as evaluators use it: its capabilities, its variables on the devices, and how batches get there."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from alm_jax import batch as contract
from alm_jax.evaluation.embed import embed_audio, embed_text
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.models.capabilities import TextTokens
from alm_jax.objectives.objective import Objective
from alm_jax.ops.frontends import TowerSpec
from alm_jax.training import sharding

Variables = dict[str, Any]


class SplitEmbeddings(NamedTuple):
    """The recordings of a split as vectors, in their order."""

    emb: np.ndarray
    """[N E] float32, or [N K E] of a model that has several vectors a recording."""
    labels: np.ndarray
    """[N] int32, -1 where a recording has no class."""


class EvaluatedModel:
    """One model for one evaluation, in which each split is encoded once."""

    def __init__(
        self,
        *,
        capabilities: Any,
        variables: Variables,
        frontend: TowerSpec,
        tokenizer: Any,
        tokens: TextTokens,
        place: Callable[[dict[str, np.ndarray]], dict[str, Array]],
        objective: Objective | None = None,
        objective_variables: Variables | None = None,
        loss_batch_size: int = 64,
        train_split: str = "",
        draw_untrained: Callable[[], Variables] | None = None,
        kept: dict[Any, Any] | None = None,
    ):
        """
        Args:
            capabilities: implements protocols of `alm_jax.models.capabilities`; None where there are none.
            variables: of the model, averaged and merged, on the devices.
            frontend: the model's, for pictures.
            tokenizer: of the library tokenizers.
            tokens: the ids that frame its texts.
            place: a batch that every process holds whole -> the same on the devices.
            objective: what the model was trained for; None of a model whose training is unknown.
            objective_variables: what the objective's functions take, adapters included.
            loss_batch_size: pairs that compete in a validation loss over pairs: training's batch size.
            train_split: the split that the model was trained on; empty where that is unknown.
            draw_untrained: the model's variables as they were drawn from the seed, on the devices.
            kept: outlives this object: what never changes from one evaluation of a run to the next.
        """
        self.capabilities = capabilities
        self.variables = variables
        self.frontend = frontend
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.place = place
        self.objective = objective
        self.objective_variables = objective_variables
        self.loss_batch_size = loss_batch_size
        self.train_split = train_split
        self.draw_untrained = draw_untrained
        self.kept = {} if kept is None else kept
        self._embeddings: dict[tuple[int, str], SplitEmbeddings] = {}
        self._caption_emb: dict[tuple[int, str], np.ndarray] = {}

    def can(self, *protocols: Any) -> bool:
        """Whether the model has all of these capabilities."""
        return all(isinstance(self.capabilities, protocol) for protocol in protocols)

    def default_sources(self, name: str) -> tuple[int, ...]:
        """Parts of a mixture that the objective means an evaluator of this name to count; empty for all."""
        return () if self.objective is None else dict(self.objective.sources).get(name, ())

    def run(self, method: str, *inputs: Any, variables: Variables | None = None, **options: Any) -> Any:
        """One of the capabilities' methods, compiled; ``options`` are static. Returns arrays on the host."""
        found = _call(
            self.capabilities,
            method,
            tuple(sorted(options.items())),
            self.variables if variables is None else variables,
            *inputs,
        )
        return jax.tree.map(sharding.fetch, found)

    def embed_split(self, split: EvaluationSplit) -> SplitEmbeddings:
        """The recordings of a split as vectors, computed once."""
        key = id(split.data), split.name
        if key not in self._embeddings:
            self._embeddings[key] = self.embed_split_with(split, self.variables)
        return self._embeddings[key]

    def embed_split_with(self, split: EvaluationSplit, variables: Variables) -> SplitEmbeddings:
        """The recordings of a split as vectors, by other variables of the model."""

        def encode(batch: Any) -> np.ndarray:
            keys = (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)
            placed = self.place({key: batch[key] for key in keys})
            return self.run("embed_audio", placed, variables=variables)

        emb, _, labels = embed_audio(encode, split.batches())
        return SplitEmbeddings(emb, labels)

    def embed_texts(self, texts: Sequence[str], split: EvaluationSplit) -> np.ndarray:
        """The vectors [M E] of texts, cut as the split's captions are."""

        def encode(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            placed = self.place({"ids": ids, "mask": mask})
            return self.run("embed_text", placed["ids"], placed["mask"])

        return embed_text(encode, *split.tokenize(texts), split.batch_size)

    def embed_captions(self, split: EvaluationSplit) -> np.ndarray:
        """The vectors [M E] of all captions of a split, recording after recording, computed once."""
        key = id(split.data), split.name
        if key not in self._caption_emb:
            captions = [caption for index in range(len(split)) for caption in split.captions(index)]
            self._caption_emb[key] = self.embed_texts(captions, split)
        return self._caption_emb[key]


def caption_owners(split: EvaluationSplit) -> np.ndarray:
    """[M] the place of each caption's recording, in the order of `EvaluatedModel.embed_captions`."""
    return np.repeat(np.arange(len(split)), [len(split.captions(index)) for index in range(len(split))])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _call(
    capabilities: Any, method: str, options: tuple[tuple[str, Any], ...], variables: Variables, *inputs: Any
) -> Any:
    return getattr(capabilities, method)(variables, *inputs, **dict(options))
