"""What is measured of a two-tower model, during and after training."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Zero-shot classification and retrieval on the evaluation split."""

    batch_size: int = 64
    """Recordings, and captions, that are embedded at a time."""
    templates: tuple[str, ...] = ("This is a sound of {}.",)
    """Prompts of a class for zero-shot classification; ``{}`` is its name (LAION-CLAP's by default)."""
