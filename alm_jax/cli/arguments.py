"""How commands read their arguments: tyro turns a config's fields into options, ``--a.b value``."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from alm_jax.cli.choices import choose, describe_choices
from alm_jax.errors import UserError
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


def read_config(path: str, args: Sequence[str], *, prog: str) -> ExperimentConfig:
    """A config file with overrides applied."""
    return override(run_config(path), args, prog=prog)
