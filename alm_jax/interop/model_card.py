"""The README.md of an exported model: YAML front matter and the known facts about the weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_USAGE = """```python
from transformers import ClapModel, ClapProcessor

model = ClapModel.from_pretrained(FOLDER)
processor = ClapProcessor.from_pretrained(FOLDER)
```"""


def write_model_card(
    *,
    name: str,
    licence: str,
    datasets: Mapping[str, str],
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    step: int,
    commit: str | None,
    versions: Mapping[str, str],
    export_error: float | None,
) -> str:
    """A model card in Markdown.

    Args:
        licence: of the weights, as the Hub names it ("apache-2.0", "cc-by-nc-4.0", "other").
        datasets: name of each data set trained on, and its licence.
        metrics: results by name ("zero_shot/accuracy"); empty where nothing was evaluated.
        config: the resolved config of the run, JSON-ready.
        step: optimiser steps taken.
        commit: of the code that trained it, None where it was not a checkout.
        versions: of the packages it was trained with.
        export_error: largest absolute difference of logits to transformers' on real clips, None where it
            was not measured.
    """
    front_matter = [
        "---",
        f"license: {_scalar(licence)}",
        "library_name: transformers",
        "pipeline_tag: zero-shot-audio-classification",
        "tags:",
        "- clap",
        "- audio",
        *_sequence("datasets", list(datasets)),
        *_sequence("metrics", sorted({metric.rsplit("/", 1)[-1] for metric in metrics})),
        "---",
    ]
    measured = (
        "not measured"
        if export_error is None
        else f"{export_error:.2e} (largest absolute difference of logits to `transformers.ClapModel`)"
    )
    sections = [
        f"# {name}",
        "A two-tower audio-language model (CLAP), pre-trained with alm_jax.",
        _USAGE,
        "## Training data",
        _table(("data set", "licence"), list(datasets.items())),
        "## Results",
        _table(("metric", "value"), [(key, f"{value:.6g}") for key, value in sorted(metrics.items())])
        if metrics
        else "Not evaluated.",
        "## Provenance",
        _table(
            ("", ""),
            [
                ("licence of the weights", licence),
                ("optimiser steps", str(step)),
                ("commit", commit or "unknown"),
                ("export error", measured),
                *sorted(versions.items()),
            ],
        ),
        "`logit_scale_t` equals `logit_scale_a`: one temperature was trained for both directions.",
        "## Config",
        f"```json\n{json.dumps(config, indent=2)}\n```",
    ]
    return "\n".join(front_matter) + "\n\n" + "\n\n".join(sections) + "\n"


def _scalar(text: str) -> str:
    """A JSON string is a YAML string, whatever it holds."""
    return json.dumps(text, ensure_ascii=False)


def _sequence(key: str, items: Sequence[str]) -> list[str]:
    return [f"{key}:", *(f"- {_scalar(item)}" for item in items)] if items else [f"{key}: []"]


def _table(header: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(header), "| --- | --- |", *(line(row) for row in rows)])
