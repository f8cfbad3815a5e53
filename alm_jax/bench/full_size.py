"""``alm bench full-size``: the configs of published size on absent slices, one row a case, kept on disk.

A case is one ``alm compile`` in its own process, and its output is a file. A case whose file is there, made
by the same command, is not run again: the table may be made over several nights, and by several machines.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alm_jax.bench.estimates import ASSUMPTIONS

GIB = 2**30
BFLOAT16 = ("--objective.model.compute-dtype", "bfloat16", "--objective.model.remat", "block")
"""Options for configs whose published recipe is float32 on GPUs."""
POD = "v5e:16x16"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row."""

    config: str
    """Name of a file in configs/."""
    topology: str
    options: tuple[str, ...] = ()
    """Further options of `alm compile`."""

    @property
    def name(self) -> str:
        """Name of its file."""
        search = "_search" if "--search-batch" in self.options else ""
        return f"{self.config}_{self.topology.replace(':', '_')}{search}"

    def command(self, configs: Path) -> list[str]:
        """Arguments of ``alm``."""
        return ["compile", str(configs / f"{self.config}.py"), "--topology", self.topology, *self.options]


def batch(rows: int) -> tuple[str, str]:
    """Returns the option for a global batch."""
    return "--training.batch-size", str(rows)


MESH_64 = ("--training.mesh.data", "2")
"""Options that run a config for 8 x 32 chips on 64 chips, with 32 ways of ``fsdp``."""
MESH_8 = ("--training.mesh.data", "1", "--training.mesh.fsdp", "8")
CASES = (
    Case("ltu_7b", POD, batch(2048)),
    Case("qwen2_audio_7b_lora", POD, batch(256)),
    Case("speech_gpt_7b", POD, batch(512)),
    Case("audio_mae_base", POD, (*batch(8192), *BFLOAT16)),
    Case("laion_clap_htsat_tiny_roberta", POD, (*batch(8192), *BFLOAT16)),
    Case("clapcap_htsat_gpt2", POD, (*batch(8192), *BFLOAT16)),
    Case("pengi_htsat_gpt2", POD, (*batch(8192), *BFLOAT16)),
    Case("ltu_7b", "v5p:4x4x4", (*batch(512), *MESH_64)),
    Case("speech_gpt_7b", "v5p:4x4x4", (*batch(256), *MESH_64)),
    Case("audio_mae_base", "v5p:4x4x4", (*batch(2048), *BFLOAT16)),
    Case("ltu_7b", "v6e:16x16", batch(2048)),
    Case("speech_gpt_7b", "v6e:16x16", batch(512)),
    Case("audio_mae_base", "v6e:16x16", (*batch(8192), *BFLOAT16)),
    Case("ltu_7b", "h100:8", (*batch(64), *MESH_8)),
    Case("speech_gpt_7b", "h100:8", (*batch(16), *MESH_8)),
    Case("audio_mae_base", "h100:8", (*batch(512), *BFLOAT16)),
    Case("ltu_7b", POD, ("--search-batch", *batch(4096))),
    Case("speech_gpt_7b", POD, ("--search-batch", *batch(1024))),
    Case("audio_mae_base", POD, ("--search-batch", *batch(16384), *BFLOAT16)),
)
"""Returns every row of the table, the quickest to compile first."""


def run_cases(
    configs: Path, folder: Path, *, only: Sequence[str] = (), cases: Sequence[Case] = CASES
) -> Iterator[str]:
    """Compiles case by case what is not in ``folder`` yet; yields a line about each as it finishes.

    ``only``: parts of names, to select cases.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        path = folder / f"{case.name}.json"
        if only and not any(part in case.name for part in only):
            continue
        known = json.loads(path.read_text()) if path.exists() else {}
        # A case does not include the folder of the configs.
        command = " ".join(["alm", *case.command(Path("configs"))])
        if known.get("command") == command:
            yield f"{case.name}: kept"
            continue
        done = subprocess.run(
            [sys.executable, "-m", "alm_jax", *case.command(configs), "--json", "-"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            yield f"{case.name}: failed: {done.stderr.strip()[-300:]}"
            continue
        path.write_text(json.dumps({"command": command, "found": json.loads(done.stdout)}, indent=1) + "\n")
        yield f"{case.name}: done"


PAGE = f"""# Full-size configs on slices that are not here

Written by `alm bench full-size` from the rows in [full_size/](full_size/). Nothing ran: state and batch (*held*) are
known from shapes and shardings, the *peak* is the compiler's, and times are estimates.

- *XLA* is the compiler's own estimate of computation, with the bundles of Pallas kernels, and never less than the bytes
  to and from HBM at the chip's bandwidth. *roofline* is the sum, over all instructions, of the slowest of bytes, padded
  products and vector operations ([pods.md](pods.md)). *predicted* is XLA's with the traffic that nothing hides, if
  {ASSUMPTIONS}.
- MFU is of the model's FLOPs: reference forms, nothing padded, nothing computed twice.
- *sent* is what one chip receives in the collectives of a step; *hidden* is the share of their time with computation
  beside it.

The first command compiles what has no row yet, the second one config, by the model's own names:

    alm bench full-size > docs/performance/full_size.md
    alm compile configs/ltu_7b.py --topology v5e:16x16 --by-module

"""

TITLES = (
    *("config", "on", "mesh", "rows a chip", "parameters", "held GiB", "peak GiB", "fits"),
    *("ms XLA / roofline / predicted", "MFU XLA / roofline / predicted", "sent GB a chip", "hidden"),
)


def write_table(folder: Path, *, cases: Sequence[Case] = CASES) -> str:
    """Writes the page in Markdown: existing rows, then the largest batches, then what has not been compiled."""
    rows, searches, missing = [], [], []
    for case in cases:
        path = folder / f"{case.name}.json"
        if not path.exists():
            missing.append(case.name)
            continue
        found = json.loads(path.read_text())["found"]
        if "rows" in found:
            searches.append(_search_line(case, found["rows"]))
        else:
            rows.append(_cells(found))
    lines = [PAGE + f"| {' | '.join(TITLES)} |", f"|{' --- |' * len(TITLES)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    if searches:
        lines += ["", "The largest batch that fits, to an eighth:", "", *searches]
    if missing:
        lines += ["", f"Not compiled yet: {', '.join(f'`{name}`' for name in missing)}."]
    return "\n".join(lines) + "\n"


def _search_line(case: Case, rows: Sequence[dict[str, Any]]) -> str:
    fitting = [row for row in rows if row["fits"]]
    if not fitting:
        return f"- `{case.config}` on {case.topology}: not even {min(row['batch'] for row in rows):,} rows"
    best = max(fitting, key=lambda row: row["batch"])
    mfu = "" if best["estimated_mfu"] is None else f", an MFU of {best['estimated_mfu']:.1%} by XLA's cycles"
    return (
        f"- `{case.config}` on {case.topology}: {best['batch']:,} rows, {best['batch'] // best['devices']} a chip, "
        f"with a peak of {best['peak_bytes'] / GIB:.2f} GiB{mfu}"
    )


def _cells(found: dict[str, Any]) -> list[str]:
    row = found["step"]
    head = [
        f"`{found['config']}`",
        found["topology"],
        row["mesh"],
        f"{row['batch'] / row['devices']:g}",
        f"{found['parameters'] / 1e6:,.1f} M",
        f"{found['total_bytes_per_chip'] / GIB:.2f}",
    ]
    if row["error"]:
        return [*head, "", "no" if row["fits"] is False else "?", *[""] * (len(TITLES) - len(head) - 2)]
    memory = [f"{row['peak_bytes'] / GIB:.2f}", "yes" if row["fits"] else "no"]
    if row["estimated_ms"] is None:
        return [*head, *memory, *[""] * (len(TITLES) - len(head) - len(memory))]
    kinds = ("estimated", "roofline", "predicted")
    groups = row["collectives"]
    sent: dict[str, float] = {}
    for group in groups:
        sent[group["kind"]] = sent.get(group["kind"], 0.0) + group["sent_bytes"]
    total = sum(group["ms"] for group in groups)
    return [
        *head,
        *memory,
        " / ".join(f"{row[f'{kind}_ms']:,.1f}" for kind in kinds),
        " / ".join(f"{row[f'{kind}_mfu']:.1%}" for kind in kinds),
        ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(sent.items()) if size >= 5e6),
        f"{sum(group['hidden_ms'] for group in groups) / total:.0%}" if total else "",
    ]
