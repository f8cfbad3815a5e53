"""How commands read their arguments: tyro turns a config's fields into options, ``--a.b value``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from alm_jax.errors import UserError
from alm_jax.experiment import ExperimentConfig, from_json, load_config
from alm_jax.training.checkpoint import Checkpoints
from alm_jax.training.workdir import CHECKPOINTS


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake as UserError and no guessing at abbreviated options."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"alm {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().rstrip()}")


def override(config: ExperimentConfig, args: Sequence[str], *, prog: str) -> ExperimentConfig:
    """``config`` with the fields that ``args`` name; exits with 2 and a suggestion on an unknown one.

    ``--help`` lists every field with its documentation and its value in this config.
    """
    import tyro

    try:
        return tyro.cli(
            ExperimentConfig, prog=prog, default=config, args=list(args), config=(tyro.conf.AvoidSubcommands,)
        )
    except SystemExit as exit:
        if exit.code:
            raise UserError("nothing was run; see the message above") from exit
        raise


def load_run(workdir: Path) -> ExperimentConfig:
    """The config that the newest checkpoint of a run folder was made with.

    Raises UserError where the folder holds no checkpoint.
    """
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(
            f"{workdir} holds no run: there is no {folder}. Expected a --workdir of `alm pretrain`"
        )
    checkpoints = Checkpoints(folder, keep=0)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(
                f"{folder} holds no finished checkpoint yet; let `alm pretrain` reach its first save"
            )
        return from_json(checkpoints.manifest(steps[-1])["config"])
    finally:
        checkpoints.close()


def read_config(path: str, args: Sequence[str], *, prog: str) -> ExperimentConfig:
    """A config file with overrides applied."""
    return override(load_config(path), args, prog=prog)
