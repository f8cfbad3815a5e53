"""Parts of a model that do not train, and so must come from elsewhere."""

import logging

from alm_jax.objectives.objective import DataFacts

log = logging.getLogger(__name__)


def warn_unless_given(facts: DataFacts, path: str, what: str, origin: str) -> None:
    """Warns that frozen parameters are those of the seed, where no ``init_from`` names a source of them."""
    if not facts.is_given(path):
        log.warning(
            "%s is as it was drawn from the seed, and stays so: no init_from has into=%r; name a run folder of %s "
            "there",
            what,
            path,
            origin,
        )
