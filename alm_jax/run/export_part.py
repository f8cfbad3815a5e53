"""A run's model, or a part of it by name, under the names of its own published code.

A part that transformers has a class for, such as a language model, is written as that class saves it; any other part as
the state dict of the code that its authors published, in safetensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from alm_jax.errors import UserError
from alm_jax.interop.folder import export_model
from alm_jax.interop.format import Format, variables_to_arrays
from alm_jax.interop.formats import FORMATS
from alm_jax.interop.safetensors_io import write_weights
from alm_jax.interop.written_whole import written_whole
from alm_jax.run.load import load_model
from alm_jax.types import PyTree


def read_part(source: str, part: str) -> tuple[Any, dict[str, PyTree]]:
    """Config and variables of a run's model, or of the part of it whose config and parameters go by one name.

    Args:
        part: "encoder" of a masked autoencoder, "language_model" of two heads; "" for the model as a whole.

    Raises:
        UserError: there is no run, or no such part.
    """
    loaded = load_model(source)
    model, variables = loaded.config, loaded.variables
    if not part:
        return model, variables
    names = [name for name in variables["params"] if hasattr(model, name)]
    if part not in names:
        raise UserError(
            f"the run's {type(model).__name__} has no part {part!r} with a config of its own; it has {names}"
        )
    chosen = {
        kind: tree[part] for kind, tree in variables.items() if isinstance(tree, Mapping) and part in tree
    }
    return getattr(model, part), chosen


def layout_of(config: Any, variables: PyTree) -> Format:
    """The published layout that holds exactly these variables, one of transformers before others.

    Raises UserError where there is none.
    """
    ours = {tuple(step.key for step in path) for path, _ in jax.tree.leaves_with_path(variables)}
    known = [layout for layout in FORMATS.values() if layout.config_type is type(config)]
    for layout in sorted(known, key=lambda layout: layout.write_config is None or bool(layout.ignored)):
        if {entry.path for entry in layout.entries(config)} == ours:
            return layout
    tried = f"; tried {', '.join(layout.name for layout in known)}" if known else ""
    raise UserError(
        f"no published layout holds this {type(config).__name__} whole{tried}. A part of a run is written with --part, "
        "and `--format stablehlo` writes programs"
    )


def export_part(source: str, part: str, out: Path) -> Format:
    """Writes a run's model, or a part of it, into ``out``. Returns the layout that it is written in.

    Raises UserError where no published layout holds it.
    """
    config, variables = read_part(source, part)
    layout = layout_of(config, variables)
    if layout.write_config is not None and not layout.ignored:
        export_model(out, config, variables, layout)
    else:
        with written_whole(out) as new:
            write_weights(new, variables_to_arrays(layout, config, variables))
    return layout
