"""``alm classify MODEL PATH ... --labels a,b,c``: which of some labels each recording is, zero-shot."""

import json
from collections.abc import Sequence
from pathlib import Path

from alm_jax.cli.arguments import Parser
from alm_jax.run.embed import classify_files


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("classify", "Say which of some labels each recording is, with two towers, zero-shot.")
    parser.add_argument(
        "model",
        help="a run folder, a folder of `alm import`, `alm export` or transformers, or an id of the Hub",
    )
    parser.add_argument("paths", type=Path, nargs="+", help="recordings, and folders of them")
    parser.add_argument("--labels", required=True, help="the labels, separated by commas")
    parser.add_argument(
        "--template",
        action="append",
        help='a prompt with {} for the label; several are averaged (default: "This is a sound of {}.")',
    )
    parser.add_argument("--top", type=int, default=3, help="labels printed of each recording (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a recording, all labels")
    own = parser.parse_args(args)
    labels = [label.strip() for label in own.labels.split(",") if label.strip()]
    for path, found in classify_files(own.model, own.paths, labels, own.template):
        if own.json:
            print(json.dumps({"file": str(path), "labels": found}, ensure_ascii=False))
        else:
            best = list(found.items())[: max(own.top, 1)]
            print(f"{path}: " + ", ".join(f"{label} {share:.1%}" for label, share in best))
