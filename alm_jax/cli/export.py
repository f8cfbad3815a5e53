"""``alm export SRC --format transformers --out DIR``: write a trained or imported model for other libraries."""

from collections.abc import Sequence
from pathlib import Path

from alm_jax.cli.arguments import Parser
from alm_jax.run.export import export


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("export", "Write a trained or imported model in another library's format.")
    parser.add_argument(
        "source",
        help="the folder of an `alm pretrain` run (its newest checkpoint, or RUN@STEP) or of `alm import`",
    )
    parser.add_argument(
        "--format",
        choices=["transformers", "stablehlo"],
        default="transformers",
        help="format to write (default: transformers)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--licence", default="other", help="licence of a run's weights, for the model card (default: other)"
    )
    parser.add_argument(
        "--part",
        default="",
        help="write only this part of a run's model: encoder, audio, text or language_model",
    )
    own = parser.parse_args(args)
    written = export(own.source, own.out, format=own.format, part=own.part, licence=own.licence)
    if written.remark:
        print(written.remark)
    layout = f" ({written.layout})" if written.layout else ""
    print(f"wrote {own.out}{layout}: {', '.join(sorted(path.name for path in own.out.iterdir()))}")
