"""The shapes of an archive's arrays, from which a model's sizes are read.

An archive of torch.save has no config.json, so each family reads its sizes from its keys. A foreign file may lack any
key, or have another shape under it.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from alm_jax.errors import AlmError, UserError

_MORE_LAYERS = 64


class Shapes(Mapping[str, tuple[int, ...]]):
    """Shapes by key. A missing key is an error that names it."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self._shapes = shapes
        self._asked = ""

    def __getitem__(self, key: str) -> tuple[int, ...]:
        self._asked = key
        if key not in self._shapes:
            raise UserError(f"the key {key} is missing, which tells the model's sizes")
        return self._shapes[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the shape, or ``default`` where there is no such key."""
        return self[key] if key in self._shapes else default

    def __contains__(self, key: object) -> bool:
        return key in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @contextlib.contextmanager
    def read_as(self, name: str) -> Iterator[None]:
        """Context that reads sizes. Any fault in them becomes a UserError that says that they are no ``name``."""
        self._check()
        try:
            yield
        except AlmError as error:
            raise UserError(f"no {name}: {error}") from error
        except Exception as error:  # a shape with another number of axes, a key without its number
            about = (
                f"{self._asked} has shape {self._shapes.get(self._asked)}" if self._asked else "no key fits"
            )
            raise UserError(f"no {name}: its sizes cannot be read off its keys ({about})") from error

    def _check(self) -> None:
        """Raises UserError for an empty array, or a key whose layer has a number beyond the number of keys."""
        for key, shape in self._shapes.items():
            if 0 in shape:
                raise UserError(f"{key:.200} has shape {shape}, and no weights are empty")
            if any(int(number[-12:]) > len(self) + _MORE_LAYERS for number in re.findall(r"\d+", key)):
                raise UserError(f"{key:.200} has a number beyond the {len(self)} keys that there are")


def published_heads(width: int) -> int:
    """Number of heads of 64 numbers; one where the width is less. Raises UserError where 64 does not divide a larger
    width."""
    if width > 64 and width % 64:
        raise UserError(
            f"a width of {width} does not divide into heads of 64, as every published model's does"
        )
    return max(width // 64, 1)
