"""Types of parts of a config, chosen on the command line: ``--objective.loss:sigmoid-config``.

A choice puts another type into a field that may hold several: a data set, a model part, a front-end, a loss, an
objective. What the old and the new type have in common, by name and type, is kept; the rest has the new type's
defaults, and what has none must be given: ``--data.dataset:esc50-config --data.dataset.root sounds``. All choices are
made before anything is built, so that parts that must fit each other can be changed together.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args

from alm_jax.errors import UserError
from alm_jax.ranges import fits, hints_of
from alm_jax.run.config_json import kinds_of, to_json, type_name
from alm_jax.run.experiment import ExperimentConfig, read_experiment
from alm_jax.run.migrate import FORMAT_KEY, TYPE_KEY

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
        parent, name, hint = _find(whole, path)
        kind = _kind_named(path, match[2], choices_of(hint))
        parent[name] = None if kind is None else _adapt(parent.get(name), kind)
        if kind is not None:
            new += list(_objects(path, parent[name], kind))
    for path, value, kind in new:
        rest = _fill(path, value, kind, rest)
    return read_experiment(whole), rest


def choices_of(hint: Any) -> list[type | None]:
    """The types of config that a field may hold, None among them; empty or one where there is no choice."""
    found: list[type | None] = []
    for one in get_args(hint) or (hint,):
        if one is type(None):
            found.append(None)
        elif isinstance(one, type) and dataclasses.is_dataclass(one):
            found += kinds_of(one)
    return found


def describe_choices(config: Any, path: str = "") -> Iterator[str]:
    """A line for each field of a config that may hold several types: its path and their names."""
    for field in dataclasses.fields(config):
        value, where = getattr(config, field.name), f"{path}{field.name}".replace("_", "-")
        choices = choices_of(hints_of(type(config))[field.name])
        if len(choices) > 1:
            yield f"--{where}:TYPE with one of {', '.join(map(_option, choices))}"
        if dataclasses.is_dataclass(value):
            yield from describe_choices(value, f"{where}.")


def _option(kind: type | None) -> str:
    """A type's name as an option has it: ``info-nce-config``."""
    return "none" if kind is None else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type_name(kind)).lower()


def _kind_named(path: str, name: str, choices: Sequence[type | None]) -> type | None:
    wanted = name.lower().replace("_", "-")
    for kind in choices if len(choices) > 1 else ():
        option = _option(kind)
        if wanted in (
            option,
            option.removesuffix("-config"),
            option.removesuffix("-spec"),
            option.replace("-", ""),
        ):
            return kind
    if len(choices) < 2:
        raise UserError(
            f"--{path}:{name}: {path} has no choice of types; `--help` lists the fields that have"
        )
    raise UserError(f"--{path}:{name}: expected one of {', '.join(map(_option, choices))}")


def _find(whole: dict[str, Any], path: str) -> tuple[dict[str, Any], str, Any]:
    """The object that has the field of this path, the field's name, and its type."""
    *parents, name = path.split(".")
    value: Any = whole
    kind: type | None = ExperimentConfig
    for step in (*parents, name):
        hints = {} if kind is None else hints_of(kind)
        if step not in hints:
            raise UserError(f"--{path}: there is no field {step!r} there, but {sorted(hints)}")
        if step is name:
            break
        value = value.get(step)
        found = value.get(TYPE_KEY) if isinstance(value, dict) else None
        kinds = (one for one in choices_of(hints[step]) if one is not None)
        kind = next((one for one in kinds if type_name(one) == found), None)
    return value, name, hints[name]


def _adapt(old: Any, kind: type) -> dict[str, Any]:
    """A config of this type as JSON, with what it has in common with ``old``."""
    old = old if isinstance(old, dict) else {}
    made: dict[str, Any] = {TYPE_KEY: type_name(kind)}
    hints = hints_of(kind)
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], old.get(field.name)
        kinds = [one for one in choices_of(hint) if one is not None]
        if field.name in old and (
            value[TYPE_KEY] in map(type_name, kinds) if isinstance(value, dict) else fits(value, hint)
        ):
            made[field.name] = value
        elif field.default is not dataclasses.MISSING:
            default = to_json(field.default)
            made[field.name] = _without_format(default)
        elif not _has_default(field) and len(kinds) == 1:
            made[field.name] = _adapt(value, kinds[0])
    return made


def _objects(path: str, value: dict[str, Any], kind: type) -> Iterator[tuple[str, dict[str, Any], type]]:
    """The objects of a new value that may lack fields: itself, and what `_adapt` has made inside it."""
    yield path, value, kind
    for name, hint in hints_of(kind).items():
        inner = value.get(name)
        if isinstance(inner, dict):
            kinds = {type_name(one): one for one in choices_of(hint) if one is not None}
            yield from _objects(f"{path}.{name}", inner, kinds[inner[TYPE_KEY]])


def _fill(path: str, value: dict[str, Any], kind: type, args: list[str]) -> list[str]:
    """Puts what the arguments say of the fields of a new object into ``value``; returns the other arguments.

    Raises UserError where a field has neither a default nor an argument.
    """
    import tyro

    for field in dataclasses.fields(kind):
        option = f"--{path}.{field.name}".replace("_", "-")
        start = next((i for i, arg in enumerate(args) if arg.replace("_", "-") == option), None)
        if start is None and (field.name in value or _has_default(field)):
            continue
        if start is None:
            choices = [one for one in choices_of(hints_of(kind)[field.name]) if one is not None]
            how = (
                f"{option}:TYPE with one of {', '.join(map(_option, choices))}"
                if choices
                else f"{option} VALUE"
            )
            raise UserError(f"--{path}:{_option(kind)} has no value for {field.name}: give {how}")
        end = next((i for i in range(start + 1, len(args)) if args[i].startswith("--")), len(args))
        hint: Any = hints_of(kind)[field.name]
        parsed: Any = tyro.cli(Annotated[hint, tyro.conf.Positional], args=args[start + 1 : end], prog=option)
        value[field.name] = list(parsed) if isinstance(parsed, tuple) else parsed
        args = args[:start] + args[end:]
    return args


def _without_format(value: Any) -> Any:
    """A part of a config as it stands in the whole one."""
    return (
        {key: item for key, item in value.items() if key != FORMAT_KEY} if isinstance(value, dict) else value
    )


def _has_default(field: Any) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
