"""Synthetic sounds with captions that describe them; see ``data_pipelines.synthesis``."""

import dataclasses
import io

import numpy as np
import soundfile

from alm_jax.errors import UserError
from data_pipelines import synthesis
from data_pipelines.dataset import DatasetConfig, require
from data_pipelines.decode import float_to_pcm
from data_pipelines.source import Recording, Source, SourceRow

NEGATIVES_PER_CLIP = 4
"""Number of captions of similar compositions stored with every clip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticCaptionsConfig(DatasetConfig):
    """Sounds composed from a seed, with captions that describe them; needs no download.

    Splits: ``train``, ``validation`` and ``test``. The compositions of the last two occur in no other split, but
    every single event of theirs occurs in ``train``.
    """

    num_train: int = 3000
    """Number of clips of the train split."""
    num_validation: int = 100
    """Number of clips of the validation split, each of a different composition."""
    num_test: int = 200
    """Number of clips of the test split, each of a different composition."""
    clip_sec: float = 2.5
    """Length of every clip, seconds."""
    captions_per_clip: int = 5
    """Number of captions of a validation or test clip; a train clip has one to this many."""
    seed: int = 0
    """Seed of compositions, sounds and wording."""

    def __post_init__(self) -> None:
        require(self.num_train >= 1, "num_train", self.num_train, "at least 1")
        require(self.num_validation >= 1, "num_validation", self.num_validation, "at least 1")
        require(self.num_test >= 1, "num_test", self.num_test, "at least 1")
        require(1.0 <= self.clip_sec <= 60.0, "clip_sec", self.clip_sec, "between 1 and 60 seconds")
        require(1 <= self.captions_per_clip <= 8, "captions_per_clip", self.captions_per_clip, "1 to 8")
        require(self.seed >= 0, "seed", self.seed, "zero or more")

    def check(self, sample_rate_hz: int) -> None:
        if sample_rate_hz < synthesis.MIN_SAMPLE_RATE_HZ:
            raise UserError(
                f"synthetic captions need a sampling rate of {synthesis.MIN_SAMPLE_RATE_HZ} Hz or more, "
                f"the model has {sample_rate_hz} Hz"
            )

    def short_name(self) -> str:
        return f"seed{self.seed}"

    def read(self, problems: list[str] | None = None) -> Source:
        rows = []
        for number, (split, compositions) in enumerate(split_compositions(self).items()):
            drawn = compositions
            if split == "train":
                rng = np.random.default_rng([self.seed, 1])
                drawn = [compositions[i] for i in rng.integers(len(compositions), size=self.num_train)]
            for i, composition in enumerate(drawn):
                seed = (self.seed, 2, number, i)
                least = 1 if split == "train" else self.captions_per_clip
                sound = Composed(composition, seed, least, self.captions_per_clip, self.clip_sec)
                name = f"{split}-{i:06d}"
                rows.append(
                    SourceRow(
                        id=name,
                        audio=sound,
                        captions=sound.captions(),
                        negatives=sound.negatives(),
                        split=split,
                        licence="CC0-1.0",
                        source=name,
                    )
                )
        return Source(rows=rows)


@dataclasses.dataclass(frozen=True, slots=True)
class Composed:
    """A sound that is synthesised when it is read, with its captions: a function of its seed."""

    composition: synthesis.Composition
    seed: tuple[int, ...]
    min_captions: int
    max_captions: int
    clip_sec: float

    def captions(self) -> tuple[str, ...]:
        """Captions that describe the sound, in different words."""
        return self._describe(np.random.default_rng(self.seed))

    def negatives(self) -> tuple[str, ...]:
        """Captions of similar compositions."""
        rng = np.random.default_rng(
            [*self.seed, 1]
        )  # a generator of its own, so that the captions need no sound
        similar = synthesis.similar_compositions(self.composition)
        drawn = [similar[i] for i in rng.choice(len(similar), NEGATIVES_PER_CLIP, replace=False)]
        return tuple(synthesis.describe(other, rng, 1)[0] for other in drawn)

    def read(self, sample_rate_hz: int, *, start_sec: float = 0.0, end_sec: float | None = None) -> Recording:
        """Implements ``source.Audio.read``; always returns the whole sound."""
        rng = np.random.default_rng(self.seed)
        self._describe(rng)  # the words are chosen first, the sound uses the random numbers after them
        waveform = synthesis.render(
            self.composition, rng, clip_sec=self.clip_sec, sample_rate_hz=sample_rate_hz
        )
        return Recording(pcm=float_to_pcm(waveform), sha256="")

    def content(self) -> bytes:
        """Returns a WAV file of the sound, at 16 kHz."""
        file = io.BytesIO()
        soundfile.write(file, self.read(16_000).pcm, 16_000, format="WAV")
        return file.getvalue()

    def state(self) -> object:
        """Implements ``source.Audio.state``."""
        return self.seed

    def _describe(self, rng: np.random.Generator) -> tuple[str, ...]:
        least, most = self.min_captions, self.max_captions
        num_captions = most if least == most else int(rng.integers(least, most + 1))
        return tuple(synthesis.describe(self.composition, rng, num_captions))


def split_compositions(config: SyntheticCaptionsConfig) -> dict[str, list[synthesis.Composition]]:
    """Divides the compositions among the splits, without overlap.

    ``train`` has every single event, and the remaining pairs; ``validation`` and ``test`` have ``num_validation`` and
    ``num_test`` pairs, chosen by the seed.
    """
    compositions = synthesis.all_compositions()
    alone = [composition for composition in compositions if composition.relation == "alone"]
    pairs = [composition for composition in compositions if composition.relation != "alone"]
    num_held_out = config.num_validation + config.num_test
    if num_held_out > len(pairs) // 2:
        raise UserError(
            f"num_validation + num_test is {num_held_out}, but only {len(pairs) // 2} of the {len(pairs)} "
            "compositions of two events can be held out; make them fewer"
        )
    order = np.random.default_rng([config.seed, 0]).permutation(len(pairs))
    pairs = [pairs[i] for i in order]
    return {
        "train": alone + pairs[num_held_out:],
        "validation": pairs[: config.num_validation],
        "test": pairs[config.num_validation : num_held_out],
    }
