"""The declaration of a figure: everything that logs, tables, plots and reports need to know about it.

Objectives declare the figures of their training records, evaluators those that they measure. Nothing else names them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that training or an evaluation records."""

    name: str
    """Key of the record, ``loss`` or ``text_to_audio/r@1``; an evaluator's name and a slash are put before it."""
    label: str
    """Label where people read it."""
    panel: str = ""
    """Title of the plot of learning curves that it belongs to; empty for none."""
    series: str = ""
    """Legend in that plot; empty: the label."""
    is_share: bool = False
    """Whether it is a fraction from 0 to 1, shown in percent."""
    is_noisy: bool = False
    """Whether a running mean is plotted through its points."""
    chance: str = ""
    """Name of the figure that holds the chance level; empty where it is unknown."""
    is_higher_better: bool | None = None
    """Whether higher is better; None where neither direction is."""
    is_headline: bool = False
    """Whether it is among the main figures of a report."""
    is_shown: bool = False
    """Whether it is on the line that a run prints after an evaluation."""
    is_of_batch: bool = False
    """Whether it describes one training batch and not a whole split, like a batch's perplexity."""
