"""The base of every data set's config, which is also how its rows are read."""

import abc
import dataclasses
import os

from alm_jax.errors import UserError
from data_pipelines.source import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig(abc.ABC):
    """A data set: where its rows come from.

    A data set is one file in ``data_pipelines/datasets/``: a subclass of this whose fields are its settings and whose
    ``read`` finds its rows. Nothing else names it: configs, ``alm data`` and TFDS find every subclass.
    """

    @abc.abstractmethod
    def read(self, problems: list[str] | None = None) -> Source:
        """Looks at the tables and finds the rows; decodes nothing.

        ``problems``: a list that takes what is wrong with single rows, which are then passed over where the data set
        can do without them, for `alm data check`; None raises for the first.

        Raises:
          UserError: a folder or file is not there; the message says what is expected and where to get it.
          DataError: a table that cannot be read; the message has file, line and column.
        """

    def check(self, sample_rate_hz: int) -> None:  # noqa: B027
        """Raises UserError where a model of this sampling rate cannot be given this data set."""

    def short_name(self) -> str:
        """The settings in a word or two, part of the name of the built data set's folder."""
        return "default"

    @classmethod
    def at(cls, place: str | os.PathLike[str]) -> "DatasetConfig":
        """With the usual settings, of the files in a folder, or of that file."""
        fields = {field.name for field in dataclasses.fields(cls)}
        named = [name for name in ("root", "path") if name in fields]
        return cls(**{name: str(place) for name in named})

    @classmethod
    def title(cls) -> str:
        """What the data set is called: ``Esc50``."""
        return cls.__name__.removesuffix("Config")

    @classmethod
    def kinds(cls) -> list[type["DatasetConfig"]]:
        """Every data set there is, by looking into ``data_pipelines/datasets/`` and at what has been imported."""
        from data_pipelines.datasets import import_all  # its modules import this one

        import_all()
        return [kind for kind in _below(cls) if not getattr(kind, "__abstractmethods__", None)]


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raises UserError, which names the field of a config, its value and what was expected, unless ``condition``."""
    if not condition:
        raise UserError(f"{field} is {value!r}; it must be {expected}")


def _below(kind: type[DatasetConfig]) -> list[type[DatasetConfig]]:
    """A class and all its subclasses."""
    return [kind, *(lower for child in kind.__subclasses__() for lower in _below(child))]
