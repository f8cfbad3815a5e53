"""``report.html``: what a run learned, on one page that needs nothing but itself.

Pictures are embedded as data URIs and lie beside it in ``report/``; there is no script and no other file.
"""

import base64
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alm_jax.evaluation.report import pictures
from alm_jax.evaluation.report.sections import Card, Picture, Section, Table
from alm_jax.figures import Figure

REPORT_FILE = "report.html"
PICTURES_FOLDER = "report"
CURVES = "curves"
OVERVIEW = "overview"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What stands on a page; what is empty is left out."""

    title: str
    summary: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Short facts below the title, such as parameters, data and steps."""
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The flat figures of the evaluation."""
    declared: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    """Declarations of figures by full name; a figure without one stands under its name."""
    sections: Sequence[Section] = ()
    """What evaluators have to show, in their order."""
    config_text: str = ""
    """The resolved config, shown folded."""


def write_report(folder: Path, report: Report, *, metrics_path: Path | None = None) -> Path:
    """Writes ``folder/report.html`` and its pictures, ``folder/report/*.png``. Returns the page's path.

    Args:
      folder: an existing folder.
      metrics_path: the run's ``metrics.jsonl``, whose declared figures are drawn as curves.
    """
    images = folder / PICTURES_FOLDER
    images.mkdir(exist_ok=True)
    for old in images.glob("*.png"):
        old.unlink()
    records = _read_records(metrics_path)
    panels = pictures.panels_of(report.declared.values())

    parts = [_tiles(report)]
    curves = pictures.draw_curves(records, panels)
    if curves:
        picture = Picture(CURVES, curves, "Learning curves over the training steps")
        parts.append(_section(images, Section(heading="Training", pictures=(picture,))))
    parts.append(_block("Evaluation", _tables(report)))
    parts += [_section(images, section) for section in report.sections]
    if report.config_text:
        parts.append(
            f"<details><summary>Resolved config</summary><pre>{escape(report.config_text)}</pre></details>"
        )
    loss = next((panel for panel in panels if panel.title == pictures.LOSS), None)
    shown = next((section.overview for section in report.sections if section.overview), None)
    if records and loss and shown:
        png = pictures.draw_overview(
            title=report.title, subtitle=_subtitle(report), records=records, loss=loss, **shown
        )
        (images / f"{OVERVIEW}.png").write_bytes(png)

    page = folder / REPORT_FILE
    temporary = page.with_suffix(".tmp")
    temporary.write_text(
        _page(report.title, report.summary, "\n".join(filter(None, parts))), encoding="utf-8"
    )
    os.replace(temporary, page)
    return page


def _read_records(path: Path | None) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``; a torn last line, of a run that is still writing, is passed over."""
    if path is None or not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in complete]


def _headlines(report: Report) -> list[tuple[str, str, str]]:
    """The figures that one looks for first: label, value, and chance where that is known."""
    headlines = []
    for name, figure in report.declared.items():
        if figure.is_headline and name in report.figures:
            chance = report.figures.get(figure.chance)
            note = "" if chance is None else f"chance {show(chance, report.declared.get(figure.chance))}"
            headlines.append((figure.label, show(report.figures[name], figure), note))
    return headlines


def _tiles(report: Report) -> str:
    tiles = [
        f'<div class="tile"><span>{escape(label)}</span><strong>{value}</strong><small>{chance}</small></div>'
        for label, value, chance in _headlines(report)
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _subtitle(report: Report) -> str:
    """One line for the overview: the figures whose chance is known."""
    parts = [f"{label} {value} ({chance})" for label, value, chance in _headlines(report) if chance]
    return "  ·  ".join(parts)


def _tables(report: Report) -> str:
    """All figures, those of classes in a table of their own."""
    by_class = {key: value for key, value in report.figures.items() if "/class_accuracy/" in key}
    others = {key: value for key, value in report.figures.items() if key not in by_class}
    tables = []
    if others:
        rows = [
            (
                report.declared[key].label if key in report.declared else key,
                show(value, report.declared.get(key)),
            )
            for key, value in others.items()
        ]
        tables.append(_table(Table(("figure", "value"), rows)))
    if by_class:
        share = Figure(name="", label="", is_share=True)
        rows = [
            (key.rsplit("/", 1)[1].replace("_", " "), show(value, share)) for key, value in by_class.items()
        ]
        tables.append(_table(Table(("class", "accuracy"), rows)))
    return f'<div class="tables">{"".join(tables)}</div>' if tables else ""


def show(value: Any, figure: Figure | None) -> str:
    """A figure for people: a share in percent, a number with four digits, nothing as a dash."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if figure is not None and figure.is_share:
        return f"{100 * value:.3g}%" if 0 < abs(value) < 0.05 else f"{value:.1%}"
    return f"{value:.4g}"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _block(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def _section(folder: Path, section: Section) -> str:
    body = f"<p>{escape(section.note)}</p>" if section.note else ""
    body += "".join(_image(folder, picture) for picture in section.pictures)
    if section.table is not None:
        body += _table(section.table)
    if section.cards:
        body += f'<div class="clips">{"".join(_card(folder, card) for card in section.cards)}</div>'
    return _block(section.heading, body)


def _image(folder: Path, picture: Picture) -> str:
    (folder / f"{picture.name}.png").write_bytes(picture.png)
    data = base64.b64encode(picture.png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(picture.description)}">'


def _card(folder: Path, card: Card) -> str:
    items = "".join(
        f'<li class="right">{escape(text)} <b>✓ right</b></li>' if right else f"<li>{escape(text)}</li>"
        for text, right in card.found
    )
    found = f"<h4>Retrieved</h4><ol>{items}</ol>" if items else ""
    return (
        f'<figure class="clip">{_image(folder, card.picture)}<figcaption><h3>“{escape(card.caption)}”</h3>'
        f"<small>{escape(card.id)}</small>{found}</figcaption></figure>"
    )


def _page(title: str, summary: Mapping[str, str], body: str) -> str:
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in summary.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{f"<dl>{facts}</dl>" if facts else ""}</header>
<main>
{body}
</main>
</body>
</html>
"""


CSS = """
:root { --ink: #1f2933; --muted: #5f6c7b; --line: #dfe4ea; --paper: #f6f7f9; --card: #fff;
  --right: #00684d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaef; --muted: #a3afbd; --line: #35404d; --paper: #12171d; --card: #1b222b;
    --right: #5fd3ae; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 40px 0 12px; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
h4 { font-size: .75rem; margin: 12px 0 2px; color: var(--muted); text-transform: uppercase;
  letter-spacing: .05em; }
small, dt { color: var(--muted); }
small { font-size: .8rem; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 0; }
dt { font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
section > img { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin-top: 24px; }
.tile { flex: 1 1 150px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; }
.tile span, .tile small { display: block; color: var(--muted); font-size: .85rem; }
.tile strong { font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tables { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
tbody th { font-weight: normal; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-size: .85rem; }
.clips { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; }
@media (max-width: 760px) { .clips { grid-template-columns: minmax(0, 1fr); } }
.clip { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.clip img { width: 100%; background: #fff; }
.clip figcaption { padding: 12px 16px 14px; }
ol { margin: 0; padding-left: 1.4em; }
li { overflow-wrap: anywhere; }
.right { color: var(--right); font-weight: 600; }
details { margin: 40px 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px; font-size: .85rem; }
main { padding-bottom: 60px; }
"""
