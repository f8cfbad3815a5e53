"""The linear probe of a run's encoder, beside that of the same encoder as it was drawn."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alm_jax import batch as contract
from alm_jax.evaluation.embed import embed_audio
from alm_jax.evaluation.metrics.linear_probe import linear_probe_accuracy, probe_classes
from alm_jax.run.session import Session
from alm_jax.training import sharding
from alm_jax.training.state import TrainState


def check_probe() -> None:
    """Finds out now, and not after training, that scikit-learn is missing."""
    import sklearn.linear_model  # noqa: F401


def probe_encoder(
    session: Session,
    state: TrainState,
    split: str,
    *,
    embed: Callable[[dict[str, Any], dict[str, jax.Array]], jax.Array],
    init: Callable[[Any], dict[str, Any]],
) -> dict[str, float]:
    """Figures ``linear_probe/...`` on a split, the same on every process; none where clips have no classes.

    The probe is fitted on the training split's clips, whose labels training does not see, and is compared with the
    same probe on the encoder as it was drawn from the seed.

    Args:
        embed: (variables of the model, recordings) -> a vector of each [B D]; jitted.
        init: key -> variables of the model, as the objective draws them.
    """
    batches = session.evaluation_batches

    def features(variables: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
        def encode(batch: Any) -> np.ndarray:
            placed = session.place(
                {key: np.asarray(batch[key]) for key in (contract.AUDIO, contract.AUDIO_NUM_SAMPLES)}
            )
            return sharding.fetch(embed(variables, placed))

        feat, _, labels = embed_audio(encode, batches(name))
        return feat, labels

    def probe(variables: dict[str, Any]) -> float | None:
        train_feat, train_labels = features(variables, session.config.data.train_split)
        test_feat, test_labels = features(variables, split)
        if not probe_classes(train_labels, test_labels):
            return None
        return linear_probe_accuracy(train_feat, train_labels, test_feat, test_labels)

    accuracy = probe(session.replicate(session.model_variables(state)))
    if accuracy is None:
        return {}
    # As training/state.py draws it.
    key, _ = jax.random.split(jax.random.key(session.config.seed))
    untrained = jax.jit(init, out_shardings=sharding.replicated(session.mesh))(key)
    random_accuracy = probe(untrained)
    assert random_accuracy is not None
    return {
        "linear_probe/accuracy": accuracy,
        "linear_probe/random_accuracy": random_accuracy,
        "linear_probe/chance": 1 / len(session.data.class_names),
    }
