"""Types of parts of a config, chosen on the command line: ``--objective.loss:sigmoid-config``.

A choice puts another type into a field that may hold several: a data set, a model part, a front-end, a loss, an
objective. What the old and the new type have in common, by name and type, is kept; the rest has the new type's
defaults, and what has none must be given: ``--data.dataset:esc50-config --data.dataset.root sounds``. All choices are
made before anything is built, so that parts that must fit each other can be changed together.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from alm_jax.errors import UserError
from alm_jax.ranges import hints_of
from alm_jax.run.choices import adapt, choices_of, find_field, has_default, kind_named, objects, option_name
from alm_jax.run.config_json import to_json
from alm_jax.run.experiment import ExperimentConfig, read_experiment

_CHOICE = re.compile(r"--([a-z][\w.-]*):([\w.:-]+)")


def choose(config: ExperimentConfig, args: Sequence[str]) -> tuple[ExperimentConfig, list[str]]:
    """The config with the types that ``args`` choose, and the arguments that are left.

    Raises UserError where a field has no such choice, or the new type lacks a value.
    """
    chosen = [match for match in map(_CHOICE.fullmatch, args) if match]
    rest = [arg for arg in args if not _CHOICE.fullmatch(arg)]
    if not chosen:
        return config, rest
    whole = to_json(config)
    new: list[tuple[str, dict[str, Any], type]] = []
    for match in sorted(chosen, key=lambda match: match[1].count(".")):
        path = match[1].replace("-", "_")
        parent, name, hint = find_field(whole, path)
        kind = kind_named(path, match[2], choices_of(hint))
        parent[name] = None if kind is None else adapt(parent.get(name), kind)
        if kind is not None:
            new += list(objects(path, parent[name], kind))
    for path, value, kind in new:
        rest = _fill(path, value, kind, rest)
    return read_experiment(whole), rest


def describe_choices(config: Any, path: str = "") -> Iterator[str]:
    """A line for each field of a config that may hold several types: its path and their names."""
    for field in dataclasses.fields(config):
        value, where = getattr(config, field.name), f"{path}{field.name}".replace("_", "-")
        choices = choices_of(hints_of(type(config))[field.name])
        if len(choices) > 1:
            yield f"--{where}:TYPE with one of {', '.join(map(option_name, choices))}"
        if dataclasses.is_dataclass(value):
            yield from describe_choices(value, f"{where}.")


def _fill(path: str, value: dict[str, Any], kind: type, args: list[str]) -> list[str]:
    """Puts what the arguments say of the fields of a new object into ``value``; returns the other arguments.

    Raises UserError where a field has neither a default nor an argument.
    """
    import tyro

    for field in dataclasses.fields(kind):
        option = f"--{path}.{field.name}".replace("_", "-")
        start = next((i for i, arg in enumerate(args) if arg.replace("_", "-") == option), None)
        if start is None and (field.name in value or has_default(field)):
            continue
        if start is None:
            choices = [one for one in choices_of(hints_of(kind)[field.name]) if one is not None]
            how = (
                f"{option}:TYPE with one of {', '.join(map(option_name, choices))}"
                if choices
                else f"{option} VALUE"
            )
            raise UserError(f"--{path}:{option_name(kind)} has no value for {field.name}: give {how}")
        end = next((i for i in range(start + 1, len(args)) if args[i].startswith("--")), len(args))
        hint: Any = hints_of(kind)[field.name]
        parsed: Any = tyro.cli(Annotated[hint, tyro.conf.Positional], args=args[start + 1 : end], prog=option)
        value[field.name] = list(parsed) if isinstance(parsed, tuple) else parsed
        args = args[:start] + args[end:]
    return args
