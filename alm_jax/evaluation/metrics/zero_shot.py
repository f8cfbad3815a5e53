"""Zero-shot classification: a clip is of the class whose text embedding lies nearest.

A class is described by several prompts, one a template; its embedding is the mean of the L2-normalised
embeddings of its prompts, normalised again (CLIP, arXiv 2103.00020, section 3.1.4). The score is the cosine,
the prediction its argmax; equal scores go to the class that is named first.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from alm_jax.errors import DataError, UserError
from alm_jax.evaluation.metrics.ranking import require_finite, stable_ranks

TOP_K = 5
LAION_TEMPLATE = "This is a sound of {}."
"""LAION-CLAP's prompt of a class."""


def build_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The prompts of all classes, class after class: C classes times P templates.

    ``{}`` in a template stands for the class name, in which ``_`` becomes a space.

    >>> build_prompts(["church_bells"], ["{}", "this is the sound of {}."])
    ['church bells', 'this is the sound of church bells.']

    Raises UserError where there is no template, or one has not exactly one ``{}``.
    """
    if not templates:
        raise UserError('zero-shot evaluation needs a template; got none. "this is the sound of {}" is one')
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f'the template {template!r} has {template.count("{}")} "{{}}" for the class; it needs one'
            )
    return [t.replace("{}", name.replace("_", " ")) for name in class_names for t in templates]


def class_embeddings(prompt_emb: Float[np.ndarray, "CP E"], num_classes: int) -> Float[np.ndarray, "C E"]:
    """One L2-normalised embedding a class from those of its prompts, in ``build_prompts``'s order."""
    if num_classes < 1 or len(prompt_emb) % num_classes:
        raise ValueError(f"{len(prompt_emb)} prompts do not divide among {num_classes} classes")
    mean = _normalize(prompt_emb).reshape(num_classes, -1, prompt_emb.shape[1]).mean(axis=1)
    return _normalize(mean)


def zero_shot_metrics(
    audio_emb: Float[np.ndarray, "N E"],
    class_emb: Float[np.ndarray, "C E"],
    labels: Int[np.ndarray, " N"],
    class_names: Sequence[str],
) -> dict[str, float | int]:
    """Accuracy over clips, its mean over classes, top-5 accuracy and each class's accuracy.

    Classes of which no clip is at hand take no part in the mean over classes.

    Returns:
      A flat dictionary: ``num_clips``, ``chance`` (1 / C), ``accuracy``,
      ``mean_per_class_accuracy``, ``top5_accuracy`` where C > 5, and
      ``class_accuracy/NAME`` for each class that has clips.

    Raises:
      DataError: no clip, a label outside [0, C), or embeddings that are not finite.
    """
    num_classes = len(class_names)
    if len(class_emb) != num_classes:
        raise ValueError(f"{len(class_emb)} class embeddings for {num_classes} class names")
    ranks = stable_ranks(_scores(audio_emb, class_emb, labels), labels)
    num_clips = np.bincount(labels, minlength=num_classes)
    num_right = np.bincount(labels, ranks == 0, minlength=num_classes)
    by_class = {c: float(num_right[c] / num_clips[c]) for c in range(num_classes) if num_clips[c]}
    return {
        "num_clips": len(labels),
        "chance": 1.0 / num_classes,
        "accuracy": float(np.mean(ranks == 0)),
        "mean_per_class_accuracy": float(np.mean(list(by_class.values()))),
        **({f"top{TOP_K}_accuracy": float(np.mean(ranks < TOP_K))} if num_classes > TOP_K else {}),
        **{f"class_accuracy/{class_names[c]}": accuracy for c, accuracy in by_class.items()},
    }


def zero_shot_hits(
    audio_emb: Float[np.ndarray, "N E"], class_emb: Float[np.ndarray, "C E"], labels: Int[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Which clips are put in their class; the accuracy is their share."""
    return stable_ranks(_scores(audio_emb, class_emb, labels), labels) == 0


def confusion_matrix(
    audio_emb: Float[np.ndarray, "N E"], class_emb: Float[np.ndarray, "C E"], labels: Int[np.ndarray, " N"]
) -> Int[np.ndarray, "C C"]:
    """How many clips of each true class (row) were taken for each class (column)."""
    predictions = _scores(audio_emb, class_emb, labels).argmax(axis=1)
    num_classes = len(class_emb)
    counts = np.bincount(labels.astype(np.int64) * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _scores(audio_emb: np.ndarray, class_emb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Checked cosine scores [N C]."""
    if len(labels) == 0:
        raise DataError("zero-shot evaluation got 0 clips; it needs one at least. Is the split empty?")
    bad = np.flatnonzero((labels < 0) | (labels >= len(class_emb)))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(labels)} clips have a label outside 0..{len(class_emb) - 1} (clip {bad[0]}: "
            f"{labels[bad[0]]}); zero-shot accuracy needs the class of every clip. Leave out those without"
        )
    require_finite(audio_emb, "audio embeddings")
    require_finite(class_emb, "class embeddings")
    return audio_emb @ class_emb.T


def _normalize(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(x.dtype).tiny)
