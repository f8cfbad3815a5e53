"""The declaration of a figure: everything that logs, tables, plots and reports need to know of it.

Objectives declare the figures of their training records, evaluators those that they measure. Nothing else names them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that training or an evaluation records."""

    name: str
    """Key of the record, ``loss`` or ``text_to_audio/r@1``; an evaluator's own name and a slash stand before it."""
    label: str
    """What it is called where people read it."""
    panel: str = ""
    """Title of the plot of learning curves that it belongs to; empty for none."""
    series: str = ""
    """Its legend in that plot; empty for its label."""
    is_share: bool = False
    """Whether it is a share from 0 to 1, shown in percent."""
    is_noisy: bool = False
    """Whether a running mean is drawn through its points."""
    chance: str = ""
    """Name of the figure that holds what a random model reaches; empty where none is known."""
    is_higher_better: bool | None = None
    """Which way is better; None where neither is."""
    is_headline: bool = False
    """Whether it stands at the head of a report."""
    is_shown: bool = False
    """Whether it stands on the line that a run prints after an evaluation."""
    is_of_batch: bool = False
    """Whether it describes one training batch and says nothing of a whole split, as a batch's perplexity does."""
