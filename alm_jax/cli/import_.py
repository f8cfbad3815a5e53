"""``alm import SRC --out DIR``: published weights as a model of the zoo."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from alm_jax.cli.arguments import Parser
from alm_jax.interop.folder import import_model
from alm_jax.interop.formats import FORMATS, format_named
from alm_jax.run.model_folder import describe_arrays, save_model_folder


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("import", "Read published weights, and write them as a model of the zoo.")
    parser.add_argument(
        "source", help="a folder with config.json, an archive of torch.save, or a Hub id (owner/name)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of every float array (default: as in the file)",
    )
    parser.add_argument(
        "--format", help=f"format of the source, where it cannot be detected: {', '.join(FORMATS)}"
    )
    own = parser.parse_args(args)
    layout = None if own.format is None else format_named(own.format)
    model = import_model(own.source, dtype=own.dtype, layout=layout)
    save_model_folder(own.out, model)
    Console(file=sys.stdout, highlight=False, markup=False).print(
        f"wrote {own.out}: {describe_arrays(model)}", soft_wrap=True
    )
