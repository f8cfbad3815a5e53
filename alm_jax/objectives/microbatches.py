"""Which audio towers can be encoded in micro-batches."""

from alm_jax.encoders.families import family_of
from alm_jax.encoders.tower import AudioTowerConfig
from alm_jax.errors import UserError


def check_microbatches(audio: AudioTowerConfig, num_microbatches: int) -> None:
    """Raises UserError where a tower's own batch norms would see a micro-batch and the whole batch is meant."""
    if num_microbatches > 1 and family_of(audio).normalises_inside:
        raise UserError(
            f"training.num_microbatches is {num_microbatches}, and the batch norms inside {type(audio).__name__} would "
            "normalise by a micro-batch instead of the batch: set it to 1, or choose another audio tower"
        )
