"""``alm bench report``: docs/benchmarks.md from the rows on disk. Every figure on the page comes from a file."""

import os
from collections.abc import Sequence
from pathlib import Path

from alm_jax.bench.record import Record, read_record
from alm_jax.bench.table import Row, cells
from alm_jax.bench.torch_losses import PEERS
from alm_jax.errors import UserError

HEAD = """# Benchmarks

Written by `alm bench report` from the files in [benchmarks/](benchmarks/): rows as `alm bench ... --json` printed them,
and beside them what they were measured with. Nothing on this page is typed by hand.

How to read it:

- *temp* and *peak* are the compiler's bytes on one device: scratch, and the most that is alive at any time.
  *resident* is the growth of the peak resident memory of a fresh process over what it held before (inputs,
  libraries), the one figure that PyTorch has too.
- FLOPs are counted in the program with loops multiplied, two a multiply-add of a product; *received* are the bytes
  that a device receives in collectives.
- *ms* are wall times of runs that took turns, A B A B; *times ours* is the median, over neighbouring runs, of the
  peer's time over this project's. On a busy machine trust minima and ratios.
- Where a row is of a topology (`v5e:16x16`), nothing ran: the program was compiled for devices that are not there.
  Cycles, and the milliseconds and the MFU made of them, are the compiler's **estimates**, which know neither the
  interconnect nor what overlaps; they are no measurements of speed.
- MFU is of the dense bfloat16 peak of the device (`alm_jax/bench/chips.py`); a CPU has none.
"""
COMMANDS = """## On a GPU

The commands of the same tables where a card is at hand, PyTorch (compiled, too) beside ours on the same card:

    alm bench loss --loss infonce,sigmoid --dtype bfloat16 --batch 4k,16k,64k --impl reference,chunked,kernel \\
        --peer open_clip,open_clip+compile --json docs/benchmarks/loss_gpu.json
    alm bench loss --loss lm --dtype bfloat16 --batch 16k --dim 4096 --vocab 131072 --peer pytorch,pytorch+compile \\
        --json docs/benchmarks/lm_gpu.json
    alm bench encoder --encoder htsat/tiny,bert/roberta_base,audio_mae/base --dtype bfloat16 --batch 64 \\
        --peer transformers,transformers+compile --json docs/benchmarks/encoder_gpu.json
    alm bench step configs/laion_clap_htsat_tiny_roberta.py --training.batch-size 256 \\
        --objective.model.compute-dtype bfloat16 --peer transformers,transformers+compile \\
        --json docs/benchmarks/step_gpu.json

transformers' models attend by PyTorch's SDPA where they have it. The memory of an H100 or an H200 needs no card:

    alm bench loss --dtype bfloat16 --dim 768 --batch 32k,256k,1m --impl ring,open_clip_pattern --topology h100:8
"""


def write_page(folder: Path, *, relative_to: Path) -> str:
    """Returns the page's text.

    Args:
        folder: holds ``NAME.json`` and ``NAME.run.json`` of every benchmark, and the pictures of sweeps.
        relative_to: the folder of the page, from which pictures are linked.

    Raises UserError where there is nothing to report, DataError where a file is no record.
    """
    paths = sorted(path for path in folder.glob("*.json") if not path.name.endswith(".run.json"))
    if not paths:
        raise UserError(
            f"{folder} holds no rows; write some with `alm bench loss --json {folder / 'loss.json'}`"
        )
    sections = [section(path, read_record(path), relative_to) for path in paths]
    return "\n".join([HEAD, *sections, COMMANDS])


def section(path: Path, record: Record, relative_to: Path) -> str:
    """Returns the part of the page for one file."""
    title = path.stem.replace("_", " ")
    machine = record.machine
    memory_gib = machine["memory_bytes"] / 2**30
    lines = [
        f"## {title[:1].upper()}{title[1:]}",
        "",
        f"    {record.command}",
        "",
        table(record.rows),
        "",
    ]
    for row in record.rows:
        if row["error"]:
            lines += [f"{row['impl']}, batch {row['batch']:,}: {row['error']}", ""]
    compared = comparisons(record.rows)
    lines += [*(f"- {text}" for text in compared), ""] if compared else []
    for picture in sorted(path.parent.glob(f"{path.stem}_*.png")):
        link = os.path.relpath(picture, relative_to)
        lines += [f"![{picture.stem.replace('_', ' ')}]({link})", ""]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    lines += [
        (
            f"{machine['processor']}, {machine['cores']} cores, {memory_gib:.0f} GiB, {machine['devices']}, load "
            f"{machine['load_average']} at the start; {versions}."
        ),
        "",
    ]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Formats rows in Markdown."""
    titles, lines = cells(rows)
    right = [line[:1].isdigit() for line in lines[0]]
    rule = ["---:" if is_right else "---" for is_right in right]
    return "\n".join("| " + " | ".join(line) + " |" for line in [titles, rule, *lines])


def comparisons(rows: Sequence[Row]) -> list[str]:
    """Writes one sentence for each row of a loss's peer: its time and memory beside our fastest form's at that
    size."""
    peers = {peer for _, peer in PEERS}
    size = ("loss", "batch", "dim", "vocab", "dtype")
    sentences = []
    for row in rows:
        if row["impl"].partition("+")[0] not in peers or not row["step_ms"] or "loss" not in row:
            continue
        ours = [
            other
            for other in rows
            if other["step_ms"]
            and other["impl"].partition("+")[0] not in peers
            and all(other[key] == row[key] for key in size)
        ]
        if not ours:
            continue
        best = min(ours, key=lambda other: other["step_ms"]["min"])
        times = row["step_ms"]["min"] / best["step_ms"]["min"]
        text = f"{row['loss']}, {row['batch']:,}: {row['impl']} takes {times:.2f} times as long as {best['impl']}"
        text += " (minima)"
        if row["rss_bytes"] and best["rss_bytes"]:
            text += f" and {row['rss_bytes'] / best['rss_bytes']:.1f} times its resident memory"
        sentences.append(text + ".")
    return sentences
