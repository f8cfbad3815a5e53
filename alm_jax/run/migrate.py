"""Old config JSON, brought to the fields and type names of this version.

Run folders, checkpoints and ``alm_config.json`` hold configs as JSON objects that carry the name of their type
(``config_json.to_json``); the outermost carries a format version, an integer under ``"format"``. JSON without it has
version 1. ``MIGRATIONS`` is an ordered list: item i turns version i + 1 into version i + 2, so this version of the code
writes ``1 + len(MIGRATIONS)``, and a reader applies what a file lacks, in order.

To rename or remove a config type or field:

1. Append one entry to ``MIGRATIONS`` with the functions below. Never reorder or edit an entry that has landed, since
   files were written with it. It may have several changes: ``chain(rename_type(...), rename_field(...))``.
2. Entries see type and field names as the entries before left them: after ``rename_type("A", "B")`` write
   ``rename_field("B", ...)``.
3. Leave the files of ``tests/golden`` as they are: ``tests/golden/test_golden.py`` reads each with your entry applied.
   Add a test to ``tests/run/test_migrate.py`` where an entry does more than rename or drop.

A field that is added needs no entry where its default is what old files meant; otherwise ``set_default`` or
``derive_field`` states what they meant. A default that changes needs none: files state every field.

The module imports no config, so that an entry stays valid when the types it speaks of are gone.
"""

from collections.abc import Callable
from typing import Any

from alm_jax.errors import UserError

TYPE_KEY = "type"
"""Key of a JSON object for the name of the dataclass it stands for."""
FORMAT_KEY = "format"
"""Key of the outermost JSON object of a config for the version it was written with."""

Object = dict[str, Any]
"""One config as JSON: its fields, and its type's name under ``TYPE_KEY``."""
Migration = Callable[[Any], Any]
"""A whole config as JSON values to the same config one version later; may change its argument."""


def each(kind: str, change: Callable[[Object], Object]) -> Migration:
    """Applies ``change`` to every object of the type named ``kind``, the inner ones first."""

    def migration(value: Any) -> Any:
        if isinstance(value, list):
            return [migration(item) for item in value]
        if not isinstance(value, dict):
            return value
        value = {key: migration(item) for key, item in value.items()}
        return change(value) if value.get(TYPE_KEY) == kind else value

    return migration


def chain(*migrations: Migration) -> Migration:
    """Several changes of one version, in this order."""

    def migration(value: Any) -> Any:
        for step in migrations:
            value = step(value)
        return value

    return migration


def rename_type(old: str, new: str) -> Migration:
    """Objects of the type ``old`` become objects of the type ``new``."""
    return each(old, lambda value: value | {TYPE_KEY: new})


def rename_field(kind: str, old: str, new: str) -> Migration:
    """The field ``old`` of the type ``kind`` is called ``new``."""
    return each(kind, lambda value: {new if key == old else key: item for key, item in value.items()})


def rename_value(kind: str, field: str, old: str, new: str) -> Migration:
    """The value ``old`` of the field ``field`` of the type ``kind`` is called ``new``."""
    return each(kind, lambda value: value | {field: new} if value.get(field) == old else value)


def drop_field(kind: str, field: str) -> Migration:
    """The field ``field`` of the type ``kind`` is gone: it is derived now, or had no effect."""
    return each(kind, lambda value: {key: item for key, item in value.items() if key != field})


def derive_field(kind: str, field: str, derive: Callable[[Object], Any]) -> Migration:
    """The field ``field`` of the type ``kind`` gets the value that ``derive`` makes of the object as it was.

    For a field that is new and whose default is not what old files meant, or whose meaning changed.
    """
    return each(kind, lambda value: value | {field: derive(value)})


def set_default(kind: str, field: str, value: Any) -> Migration:
    """The field ``field`` of the type ``kind`` is ``value`` where a file does not state it."""
    return each(kind, lambda found: {field: value} | found)


def _inner(value: Object, field: str) -> Object:
    """The object in a field; empty where there is none. Raises UserError where something else is there."""
    found = value.get(field) or {}
    if not isinstance(found, dict):
        raise UserError(f"{field} is {found!r:.80}, expected an object; the file is damaged")
    return found


def name_evaluators(experiment: Object) -> Object:
    """``evaluation`` was one config for every evaluator; evaluators have configs of their own now.

    An empty list stands for all that the model allows, whose prompts are the data set's templates: a run whose prompts
    were others names its three evaluators.
    """
    old = _inner(experiment, "evaluation")
    fields = {key: item for key, item in experiment.items() if key != "evaluation"}
    templates = old.get("templates", ["This is a sound of {}."])
    data_set = _inner(_inner(experiment, "data"), "dataset")
    is_default = templates == data_set.get("templates", ["This is a sound of {}."])
    is_zero_shot = _inner(experiment, "objective").get(TYPE_KEY) in ("ContrastiveConfig", "CalmConfig")
    evaluations: list[Object] = []
    if is_zero_shot and not is_default:
        evaluations = [
            {TYPE_KEY: "ValidationLoss"},
            {TYPE_KEY: "Retrieval"},
            {TYPE_KEY: "ZeroShot", "templates": templates},
        ]
    return fields | {"eval_batch_size": old.get("batch_size", 64), "evaluations": evaluations}


MIGRATIONS: tuple[Migration, ...] = (
    rename_type("TogetherConfig", "MultiTaskConfig"),
    each("ExperimentConfig", name_evaluators),
    chain(
        *(
            rename_value(kind, "padding", "heard", "unmasked")
            for kind in (
                "TwoTowersConfig",
                "TwoHeadsConfig",
                "AudioQFormerConfig",
                "ContrastiveCaptionerConfig",
            )
        )
    ),
)
"""Item i turns version i + 1 into version i + 2. Append only."""


def current_format() -> int:
    """The version that this code writes."""
    return 1 + len(MIGRATIONS)


def migrate(value: Any, where: str = "config") -> Any:
    """A config's JSON of any version, with the names of this one and without its version.

    What is not a JSON object is returned as it is. Raises UserError where the version is newer than this code, or
    not an integer from 1 on.
    """
    if not isinstance(value, dict):
        return value
    fields = {key: item for key, item in value.items() if key != FORMAT_KEY}
    found = value.get(FORMAT_KEY, 1)
    if type(found) is not int or found < 1:
        raise UserError(f"{where} has format {found!r}, expected an integer from 1 on; the file is damaged")
    if found > current_format():
        raise UserError(
            f"{where} has format {found}, this version of alm_jax reads up to {current_format()}: install the version "
            "that wrote it"
        )
    return chain(*MIGRATIONS[found - 1 :])(fields)
