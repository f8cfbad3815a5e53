"""A model of the zoo in a folder of our own: what ``alm import`` writes.

``alm_config.json`` has the config, what the model was stored as, and the versions that wrote it; ``model.safetensors``
the arrays under their paths ("params/blocks/mlp/up/kernel"); ``original/`` what else came with the model: its
config.json, its tokenizer, its card. Nothing is lost: ``alm export`` writes the original back, bit for bit.
"""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alm_jax.errors import UserError, as_user_error
from alm_jax.interop.fields import read_object
from alm_jax.interop.folder import ImportedModel
from alm_jax.interop.format import bounded_entries
from alm_jax.interop.formats import FORMATS
from alm_jax.interop.safetensors_io import read_weights, write_weights
from alm_jax.run.config_json import from_json, to_json
from alm_jax.version import __version__

CONFIG = "alm_config.json"
ORIGINAL = "original"


def is_model_folder(folder: str | Path) -> bool:
    """Whether ``alm import`` wrote this folder."""
    return (Path(folder) / CONFIG).is_file()


def save_model_folder(folder: str | Path, model: ImportedModel) -> None:
    """Writes a model. Raises UserError where the folder has anything in it."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty; name another folder, or remove it")
    (folder / ORIGINAL).mkdir(parents=True)
    description = {
        "format": model.layout.name,
        "config": to_json(model.config),
        "versions": {"alm_jax": __version__}
        | {name: metadata.version(name) for name in ("jax", "flax", "numpy", "safetensors")},
    }
    for name, path in model.files.items():
        shutil.copyfile(path, folder / ORIGINAL / name)
    arrays = {_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(model.variables)}
    write_weights(folder, arrays)
    # Last, so that a folder that has it is whole.
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def describe_arrays(model: ImportedModel) -> str:
    """A model's format, how many numbers it has, and their dtypes, on one line."""
    leaves = jax.tree.leaves(model.variables)
    dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    return f"{model.layout.name}, {sum(leaf.size for leaf in leaves):,} numbers in {dtypes}"


def load_model_folder(folder: str | Path) -> ImportedModel:
    """Reads what `save_model_folder` wrote.

    Raises:
        UserError: a file is missing or damaged, or config and weights do not belong together.
    """
    folder = Path(folder)
    description = read_object(folder / CONFIG, "a folder of `alm import`")
    layout = FORMATS[description.word("format", "", among=tuple(FORMATS))]
    config = from_json(description.get("config"), layout.config_type, f"{folder / CONFIG}: config")
    if not isinstance(config, layout.config_type):
        raise description.error("config", f"a config of the format {layout.name}")
    arrays = read_weights(folder)
    with as_user_error(f"{folder / CONFIG}: no {layout.name} has such a config; import the model again"):
        bounded_entries(layout, config, len(arrays))
        expected = layout.abstract(config)
    shapes = {_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(expected)}
    wrong = sorted(shapes.keys() ^ arrays.keys()) + sorted(
        key for key in shapes.keys() & arrays.keys() if shapes[key] != arrays[key].shape
    )
    if wrong:
        raise UserError(
            f"{folder}: weights and {CONFIG} differ in {len(wrong)} arrays ({', '.join(wrong[:3])}, ...): they are of "
            "different models, or of another version of alm_jax; import the original again"
        )
    variables = jax.tree.map_with_path(lambda path, _: arrays[_name(path)], expected)
    files = {path.name: path for path in sorted((folder / ORIGINAL).glob("*"))}
    return ImportedModel(layout=layout, config=config, variables=variables, files=files)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(step.key) for step in path)
