"""A split and models that know every answer, so that a test can compute an evaluator's figures by itself."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from alm_jax.evaluation.model import EvaluatedModel
from alm_jax.evaluation.split import EvaluationSplit
from alm_jax.models.capabilities import AudioStates, LabelMaps, Reconstruction, TextTokens
from alm_jax.models.generated import Generated
from alm_jax.ops.frontends import ClapSpec, ClipSpec

TOKENS = TextTokens(begin=(), end=(1,), pad_id=0)


class FakeSplit(EvaluationSplit):
    """Recordings whose samples are their place in the split, in batches of ``batch_size``; no file is read."""

    def __init__(
        self,
        captions: Sequence[Sequence[str]],
        *,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
        name: str = "test",
        batch_size: int = 4,
        siblings: dict[str, "FakeSplit"] | None = None,
        sources: Sequence[int] | None = None,
        composed: bool = False,
    ):
        self.name, self.batch_size = name, batch_size
        self._captions = captions
        self._labels = np.array([-1] * len(captions) if labels is None else labels, np.int32)
        self._class_names = class_names
        self._siblings = siblings or {}
        self._sources = np.zeros(len(captions), np.int32) if sources is None else np.array(sources)
        self._composed = composed
        self.num_decoded = 0
        self.data: Any = dataclasses.make_dataclass("Data", ["fingerprint", "config"])(
            "f",
            dataclasses.make_dataclass("C", ["tokenizer"])(
                dataclasses.make_dataclass("T", ["max_length"])(6)
            ),
        )

    def __len__(self) -> int:
        return len(self._captions)

    def sibling(self, name: str) -> EvaluationSplit:
        return self._siblings[name]

    @property
    def class_names(self) -> Sequence[str]:
        return self._class_names

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    @property
    def templates(self) -> tuple[str, ...]:
        return ()

    def id(self, index: int) -> str:
        return f"clip-{index}"

    def captions(self, index: int) -> list[str]:
        return list(self._captions[index])

    def negatives(self, index: int) -> list[str]:
        return []

    def question(self, index: int) -> str:
        return ""

    def rows_of(self, sources: Sequence[int]) -> np.ndarray:
        return np.flatnonzero(np.isin(self._sources, sources) if len(sources) else self._sources >= 0)

    def is_composed(self, index: int) -> bool:
        return self._composed

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Six bytes of each text's hash: a model that knows a text finds it by them."""
        return np.stack([text_ids(text) for text in texts]), np.ones((len(texts), 6), bool)

    def batches(self):
        for start in range(0, len(self), self.batch_size):
            rows = np.arange(start, start + self.batch_size)
            real = rows < len(self)
            self.num_decoded += int(real.sum())
            place = np.minimum(rows, len(self) - 1)
            yield {
                "audio": np.repeat(place[:, None], 8, axis=1).astype(np.int16),
                "audio_num_samples": np.full(len(rows), 8, np.int32),
                "index": np.where(real, place, -1).astype(np.int32),
                "label": np.where(real, self._labels[place], -1).astype(np.int32),
                "mask": real,
            }


def text_ids(text: str) -> np.ndarray:
    """[6] int32, of the text alone."""
    return np.random.default_rng(list(text.encode())).integers(0, 1 << 20, 6).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class AudioTable:
    """Embeds a recording as the row of ``variables["audio"]`` that its samples name."""

    def embed_audio(self, variables, batch):
        return variables["audio"][batch["audio"][:, 0]]


@dataclasses.dataclass(frozen=True)
class TowerTables(AudioTable):
    """Embeds a text as the row of ``variables["text"]`` whose ids ``variables["text_ids"]`` has."""

    def embed_text(self, variables, ids, mask):
        same = jnp.all(variables["text_ids"][None] == ids[:, None], axis=-1)
        return variables["text"][jnp.argmax(same, axis=1)]


@dataclasses.dataclass(frozen=True)
class Matcher(TowerTables):
    """Judges a pair by the table ``variables["logits"]`` [N M]."""

    def encode_states(self, variables, batch):
        states = batch["audio"][:, :1, None].astype(jnp.float32)
        return AudioStates(states, jnp.ones(states.shape[:2], bool))

    def match(self, variables, audio, ids, mask):
        same = jnp.all(variables["text_ids"][None] == ids[:, None], axis=-1)
        return variables["logits"][audio.states[:, 0, 0].astype(int), jnp.argmax(same, axis=1)]


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes the row of ``variables["ids"]`` that the samples name, its padding zeros."""

    def generate_text(self, variables, batch, tokens, *, num_new_tokens):
        ids = variables["ids"][batch["audio"][:, 0]][:, :num_new_tokens]
        return Generated(ids, ids > 0, jnp.zeros(len(ids)))


@dataclasses.dataclass(frozen=True)
class Labeller:
    """Labels, units and maps from tables."""

    num_units: int = 8

    def encode_units(self, variables, batch):
        found = variables["labels"][batch["audio"][:, 0]].reshape(len(batch["audio"]), -1)
        return found, found >= 0

    def count_labels(self, variables, batch):
        found = variables["labels"][batch["audio"][:, 0]]
        one_hot = (found[..., None] == jnp.arange(8)[None, None, None]) & batch["mask"][:, None, None, None]
        return jnp.sum(one_hot, axis=(0, 1, 2))

    def label_patches(self, variables, batch):
        labels = variables["labels"][batch["audio"][:, 0]]
        features = jnp.zeros((len(labels), labels.shape[1] * 4, 64)) + labels[:, :1, :1]
        return LabelMaps(features, labels, None, None)

    def reconstruct(self, variables, batch):
        features = jnp.zeros((len(batch["audio"]), 12, 64)) + batch["audio"][:, :1, None]
        return Reconstruction(features, features > 2, features + 1)


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A token a word; ids 0 and 1 are padding and the end."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<pad>", "<end>", *words])}, "<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def make_model(capabilities: Any, variables: dict[str, np.ndarray], **options: Any) -> EvaluatedModel:
    """A model on the default device."""
    return EvaluatedModel(
        capabilities=capabilities,
        variables={name: jnp.asarray(value) for name, value in variables.items()},
        frontend=ClapSpec(clip=ClipSpec(clip_sec=1.0)),
        tokenizer=options.pop("tokenizer", None),
        tokens=TOKENS,
        place=lambda batch: {key: jnp.asarray(value) for key, value in batch.items()},
        **options,
    )


def unit_rows(seed: int, *shape: int) -> np.ndarray:
    """Random float32 rows of length one."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
