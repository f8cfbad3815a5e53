"""Models of the Hugging Face Hub: their files are downloaded once and found in the cache afterwards."""

import re
from pathlib import Path

from alm_jax.errors import UserError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md", "LICENSE*")
"""Patterns of the files that are downloaded: configs, weights, tokenizers, card and licence; no weights in other
formats."""


def is_hub_id(source: str) -> bool:
    """Whether ``source`` has the form of a Hub id, "owner/name"."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not source.startswith(".")


def fetch_folder(hub_id: str) -> Path:
    """Returns the folder of a model's files, from the cache (HF_HOME) where they are there.

    Raises: UserError: the model does not exist, requires accepting a licence, or the Hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(FILES)))
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise UserError(
            f"{hub_id}: the Hub has no such model, or shows it only to those who accepted its licence; check the name, "
            "accept the licence on its page, and log in with `hf auth login`"
        ) from error
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
    ) as error:
        raise UserError(
            f"{hub_id}: no such folder here, not in the Hub's cache, and the Hub cannot be reached "
            f"({type(error).__name__}). Where there is a network, run `hf download {hub_id}`; then copy the folder "
            "that it prints, and import that"
        ) from error
