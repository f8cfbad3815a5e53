"""The small two-tower model by name, the tiny configs of every objective, and facts of data that fit one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_towers import objective_config as objective_config

from alm_jax.models.capabilities import TextTokens
from alm_jax.objectives.objective import DataFacts
from alm_jax.run.experiment import ExperimentConfig, load_config
from data_pipelines.config import MixtureConfig

TINY = {path.stem: path for path in sorted((Path(__file__).parents[1]).rglob("tiny_*.py"))}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``tiny_name`` runs for every tiny config."""
    if "tiny_name" in metafunc.fixturenames:
        names = [name for name, path in TINY.items() if "def get_config" in path.read_text()]
        metafunc.parametrize("tiny_name", names)


@pytest.fixture
def load_tiny() -> Callable[[str], ExperimentConfig]:
    """Name of a tiny config -> the config."""
    return lambda name: load_config(TINY[name])


@pytest.fixture
def make_facts() -> Callable[..., DataFacts]:
    """(config, changes) -> the facts of a run with the tokenizer that the config asks for."""

    def make(config: ExperimentConfig, **changes: Any) -> DataFacts:
        data, training = config.data, config.training
        is_mixture = isinstance(data.dataset, MixtureConfig)
        vocab_size = data.tokenizer.vocab_size
        facts: dict[str, Any] = {
            "tokens": TextTokens((0,), (2,), 1),
            "vocab_size": vocab_size,
            "max_length": data.tokenizer.max_length,
            "mask_ids": {"[MASK]": 4} if data.tokenizer.kind == "wordpiece" else {"<mask>": vocab_size - 1},
            "prompt_length": data.prompt_length if data.prompts else None,
            "num_sources": len(data.dataset.parts) if is_mixture else 0,
            "batch_size": training.batch_size,
            "eval_batch_size": config.eval_batch_size,
            "num_microbatches": training.num_microbatches,
            "init_paths": tuple(source.into for source in config.init_from),
        }
        return DataFacts(**(facts | changes))

    return make
