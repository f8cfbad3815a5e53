"""Base class of every data set's config, which also reads its rows."""

import abc
import dataclasses
import os

from alm_jax.errors import UserError
from data_pipelines.source import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig(abc.ABC):
    """A data set: its settings and where its rows come from.

    A data set is one file in ``data_pipelines/datasets/``: a subclass of this class whose fields are its settings and
    whose ``read`` finds its rows. No central list names it: configs, ``alm data`` and TFDS find every subclass.
    """

    @abc.abstractmethod
    def read(self, problems: list[str] | None = None) -> Source:
        """Reads the tables and finds the rows; decodes nothing.

        ``problems``: a list that collects faults of single rows, which are then skipped where the data set allows it,
        for `alm data check`; None raises at the first fault.

        Raises:
          UserError: a folder or file does not exist; the message says what is expected and where to get it.
          DataError: a table that cannot be read; the message has file, line and column.
        """

    def check(self, sample_rate_hz: int) -> None:  # noqa: B027
        """Raises UserError where the data set does not support a model of this sampling rate."""

    def short_name(self) -> str:
        """Short text of the settings, part of the name of the built data set's folder."""
        return "default"

    @classmethod
    def at(cls, place: str | os.PathLike[str]) -> "DatasetConfig":
        """Makes the data set with default settings, for the files in a folder or for one file."""
        fields = {field.name for field in dataclasses.fields(cls)}
        named = [name for name in ("root", "path") if name in fields]
        return cls(**{name: str(place) for name in named})

    @classmethod
    def title(cls) -> str:
        """Name of the data set: ``Esc50``."""
        return cls.__name__.removesuffix("Config")

    @classmethod
    def kinds(cls) -> list[type["DatasetConfig"]]:
        """Returns every data set class, from ``data_pipelines/datasets/`` and from modules already imported."""
        from data_pipelines.datasets import import_all  # its modules import this module

        import_all()
        return [kind for kind in _below(cls) if not getattr(kind, "__abstractmethods__", None)]


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raises UserError, naming the config field, its value and what is expected, unless ``condition``."""
    if not condition:
        raise UserError(f"{field} is {value!r}; it must be {expected}")


def _below(kind: type[DatasetConfig]) -> list[type[DatasetConfig]]:
    """Returns a class and all its subclasses."""
    return [kind, *(lower for child in kind.__subclasses__() for lower in _below(child))]
