"""TFDS builder of composed sounds with captions; see ``data_pipelines.synthesis``."""

from collections.abc import Mapping, Sequence

import numpy as np

from alm_jax.errors import UserError
from data_pipelines import synthesis
from data_pipelines.config import SyntheticCaptionsConfig
from data_pipelines.datasets.captioned_audio import CaptionedAudioBuilder, Example, Planned
from data_pipelines.decode import float_to_pcm

NEGATIVES_PER_CLIP = 4
"""Captions of similar compositions that are kept with every clip."""


def split_compositions(config: SyntheticCaptionsConfig) -> dict[str, list[synthesis.Composition]]:
    """Compositions of each split, no two splits sharing one.

    ``train`` has every single event, and the pairs that are left; ``validation`` and ``test`` have
    ``num_validation`` and ``num_test`` pairs, drawn by the seed.
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


class SyntheticCaptions(CaptionedAudioBuilder):
    """Composed sounds with captions that say what is in them; evaluation is on unseen compositions."""

    @classmethod
    def check(cls, settings: SyntheticCaptionsConfig, sample_rate_hz: int) -> None:
        if sample_rate_hz < synthesis.MIN_SAMPLE_RATE_HZ:
            raise UserError(
                f"synthetic captions need a sampling rate of {synthesis.MIN_SAMPLE_RATE_HZ} Hz or more, "
                f"the model has {sample_rate_hz} Hz"
            )
        split_compositions(settings)

    @classmethod
    def short_name(cls, settings: SyntheticCaptionsConfig) -> str:
        return f"seed{settings.seed}"

    @classmethod
    def source_signature(cls, settings: SyntheticCaptionsConfig) -> str:
        return ""

    def class_names(self) -> Sequence[str]:
        return ()

    def plan(self) -> Mapping[str, Sequence[Planned]]:
        config: SyntheticCaptionsConfig = self.settings
        plan = {}
        for number, (split, compositions) in enumerate(split_compositions(config).items()):
            drawn = compositions
            if split == "train":
                rng = np.random.default_rng([config.seed, 1])
                drawn = [compositions[i] for i in rng.integers(len(compositions), size=config.num_train)]
            plan[split] = [
                Planned(id=f"{split}-{i:06d}", source="", details=(composition, (config.seed, 2, number, i)))
                for i, composition in enumerate(drawn)
            ]
        return plan

    def make_example(self, planned: Planned) -> Example:
        config: SyntheticCaptionsConfig = self.settings
        composition, seed = planned.details
        rng = np.random.default_rng(seed)
        most = config.captions_per_clip
        num_captions = int(rng.integers(1, most + 1)) if planned.id.startswith("train") else most
        captions = synthesis.describe(composition, rng, num_captions)
        waveform = synthesis.render(
            composition, rng, clip_sec=config.clip_sec, sample_rate_hz=self.sample_rate_hz
        )
        similar = synthesis.similar_compositions(composition)
        drawn = [similar[i] for i in rng.choice(len(similar), NEGATIVES_PER_CLIP, replace=False)]
        return Example(
            pcm=float_to_pcm(waveform),
            captions=captions,
            negatives=[synthesis.describe(other, rng, 1)[0] for other in drawn],
            licence="CC0-1.0",
        )
