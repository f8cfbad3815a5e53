"""``alm pretrain CONFIG [--a.b value ...] --workdir DIR``: train, or continue, one run."""

import sys
from collections.abc import Sequence

from alm_jax.cli.arguments import Parser, read_config
from alm_jax.errors import UserError
from alm_jax.run.checkpoints import copy
from alm_jax.run.train import pretrain
from alm_jax.run.workdir import local_folder
from alm_jax.training import distributed
from alm_jax.training.peers import Peers


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("pretrain", "Train a model from a config file, or continue the run in --workdir.")
    parser.add_argument(
        "config", help="a file with get_config(), such as configs/demo.py, or the config.json of a run"
    )
    parser.add_argument(
        "--workdir", type=local_folder, help="the run's folder; holds everything the run leaves"
    )
    parser.add_argument(
        "--multihost",
        action="store_true",
        help="join the processes of the cluster that JAX finds (Slurm, TPU, GKE)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="read the first batch, and estimate memory, disk and time; nothing is trained, no --workdir is needed",
    )
    parser.add_argument(
        "--allow-data-change",
        action="store_true",
        help="continue a run though its data set has changed since; the run is then no longer that of its config",
    )
    parser.add_argument(
        "--change",
        action="store_true",
        help="continue the run with another number of steps or other settings of the optimizer, and say what changes",
    )
    parser.add_argument(
        "--fork",
        metavar="RUN@STEP",
        help="begin --workdir with a copy of this checkpoint and continue it, with changes as --change allows",
    )
    parser.add_argument(
        "--connect-timeout-sec",
        type=int,
        default=300,
        help="seconds that several processes may take to find each other (default: 300)",
    )
    parser.add_argument(
        "--peer-timeout-sec",
        type=int,
        default=300,
        help="seconds that a process may give no sign of life before the others end (default: 300)",
    )
    parser.epilog = (
        "Every field of the config is an option, and so is the type of a part, such as "
        "--objective.loss:sigmoid-config: `alm pretrain CONFIG --help` lists them."
    )
    if not args or args[0] in ("-h", "--help"):
        parser.print_help(sys.stdout if args else sys.stderr)
        if args:
            return
        raise UserError("no config file was given")
    own, overrides = split_arguments(parser, args)
    if own.dry_run:
        from alm_jax.bench.dry_run import dry_run

        print(
            "\n".join(dry_run(read_config(own.config, overrides, prog=f"alm pretrain {own.config}")).lines())
        )
        return
    distributed.initialize(
        multihost=own.multihost,
        connect_timeout_sec=own.connect_timeout_sec,
        peer_timeout_sec=own.peer_timeout_sec,
    )
    # Before the config is read, so that a mistake that one process alone has ends the others too.
    with Peers(own.peer_timeout_sec):
        config = read_config(own.config, overrides, prog=f"alm pretrain {own.config}")
        if own.workdir is None:
            raise UserError(
                f"--workdir is missing: name the run's folder, for example --workdir runs/{config.name}"
            )
        if own.fork is not None and not own.workdir.exists() and distributed.is_first():
            copy(own.fork, own.workdir)
        pretrain(
            config,
            own.workdir,
            is_change_allowed=own.change or own.fork is not None,
            allow_data_change=own.allow_data_change,
        )


def split_arguments(parser: Parser, args: Sequence[str]) -> tuple:
    """This command's own options, and the rest, which name fields of the config."""
    asked = {"-h", "--help"}
    own, rest = parser.parse_known_args([arg for arg in args if arg not in asked])
    # Help is the config's own here, of the types that the other options choose, so it must not end at this parser.
    return own, [*rest, "--help"] if asked & set(args) else rest
