"""How commands read their arguments: tyro turns a config's fields into options, ``--a.b value``."""

import argparse
import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NoReturn

from alm_jax.cli.choices import choose, describe_choices
from alm_jax.errors import UserError
from alm_jax.ranges import check_value, fits, hints_of
from alm_jax.run.experiment import ExperimentConfig, check_experiment, mistakes_are_users, resolve, run_config


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake as UserError and no guessing at abbreviated options."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"alm {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().rstrip()}")


def override(config: ExperimentConfig, args: Sequence[str], *, prog: str) -> ExperimentConfig:
    """``config`` with the fields that ``args`` name; exits with 2 and a suggestion on an unknown one.

    ``--help`` lists every field with its documentation and its value in this config, and the fields that may hold
    another type (`alm_jax.cli.choices`).
    """
    import tyro

    with mistakes_are_users("the config with these types"):
        config, args = choose(config, args)
    check_numbers(config, args)
    if "--help" in args or "-h" in args:
        print("Fields that may hold another type:\n")
        print("\n".join(f"  {line}" for line in describe_choices(config)), end="\n\n")
    try:
        with mistakes_are_users("the config with these options"):
            changed = tyro.cli(
                ExperimentConfig,
                prog=prog,
                default=config,
                args=list(args),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as exit:
        if exit.code:
            raise UserError("nothing was run; see the message above") from exit
        raise
    check_experiment(changed)
    return resolve(changed)


def check_numbers(config: ExperimentConfig, args: Sequence[str]) -> None:
    """Raises UserError where an option is a number that its field does not take, before a config is made of it."""
    for option, text in itertools.pairwise(args):
        value: Any = config
        hint: Any = None
        for name in option.removeprefix("--").replace("-", "_").split("."):
            hints = hints_of(type(value)) if dataclasses.is_dataclass(value) else {}
            hint, value = hints.get(name), getattr(value, name, None)
        with contextlib.suppress(ValueError):
            number = float(text)
            for one in (number, int(number) if number.is_integer() else number):
                if hint is not None and fits(one, hint):
                    check_value(one, hint, option.removeprefix("--").replace("-", "_"))


def read_config(path: str, args: Sequence[str], *, prog: str) -> ExperimentConfig:
    """A config file with overrides applied."""
    return override(run_config(path), args, prog=prog)
