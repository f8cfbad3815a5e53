"""The parts of a report, as data: the page (`alm_jax.evaluation.report.page`) decides what they look like."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Picture(NamedTuple):
    """A picture of a report."""

    name: str
    """File name without its ending, one of a kind in a report."""
    png: bytes
    description: str
    """What it shows, for those who cannot see it."""


class Card(NamedTuple):
    """A recording with its picture, its caption, and what a model found for it."""

    picture: Picture
    caption: str
    id: str
    found: Sequence[tuple[str, bool]] = ()
    """Texts, best first, and whether each is right."""


class Table(NamedTuple):
    """Rows of text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report under a heading of its own."""

    heading: str
    note: str = ""
    """One or two sentences on how to read it."""
    pictures: Sequence[Picture] = ()
    cards: Sequence[Card] = ()
    table: Table | None = None
    overview: Mapping[str, Any] | None = None
    """Arguments of `pictures.draw_overview` beside title and curves: the section that has them is drawn there too."""
