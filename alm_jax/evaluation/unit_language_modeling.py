"""What a report says of what a language model of words and units makes of recordings."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """A recording of which a report says what was heard and written."""

    id: str
    units: tuple[int, ...]
    written: str
    right: tuple[str, ...]
    """Any of these."""

    @property
    def is_right(self) -> bool:
        """Whether exactly one of the right texts was written."""
        return self.written in self.right
