"""Several processes as one run, with JAX's own runtime."""

import logging
import os
from typing import Any

import jax

from alm_jax.errors import UserError

log = logging.getLogger(__name__)

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


MARGIN_SEC = 120
"""Seconds by which JAX's own limit, which aborts a process, is longer than that of `alm_jax.training.peers`."""


def initialize(
    *, multihost: bool = False, connect_timeout_sec: int = 300, peer_timeout_sec: int = 300
) -> None:
    """Joins the other processes of the run; does nothing for a single process.

    Either the three environment variables of VARIABLES name the coordinator (host:port), the number of
    processes and this one's number, or ``multihost`` lets JAX detect the cluster (Cloud TPU, Slurm, GKE, Open MPI).
    ``connect_timeout_sec`` is how long the processes may take to find each other, ``peer_timeout_sec`` how long one
    may give no sign of life before the others end. Must run before any device is used. Raises UserError where the
    variables are incomplete or the coordinator is not reached.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if not given and not multihost:
        return
    if given and len(given) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in given]
        raise UserError(
            f"the environment sets {given} but not {missing}: a run of several processes needs all three"
        )
    if given:
        check_address(os.environ["JAX_COORDINATOR_ADDRESS"])
        numbers = [_whole_number(name) for name in VARIABLES[1:]]
        if not 0 <= numbers[1] < numbers[0]:
            raise UserError(
                f"JAX_PROCESS_ID is {numbers[1]}, expected 0 to {numbers[0] - 1} (JAX_NUM_PROCESSES - 1)"
            )
    limits: dict[str, Any] = {
        "initialization_timeout": connect_timeout_sec,
        "heartbeat_timeout_seconds": peer_timeout_sec + MARGIN_SEC,
    }
    where = os.environ.get("JAX_COORDINATOR_ADDRESS", "the coordinator of the cluster")
    log.warning("waiting for the other processes at %s, at most %d s", where, connect_timeout_sec)
    if jax.config.jax_platforms == "cpu":  # type: ignore[attr-defined]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if given:
            jax.distributed.initialize(
                coordinator_address=os.environ["JAX_COORDINATOR_ADDRESS"],
                num_processes=numbers[0],
                process_id=numbers[1],
                **limits,
            )
        else:
            jax.distributed.initialize(**limits)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not find each other in {connect_timeout_sec} s: {error}. Expected every "
            f"process to reach {where}; check the address, the port, and that each process has its own number"
        ) from error


def is_first() -> bool:
    """Whether this process is the first of its run."""
    return jax.process_index() == 0


def check_address(address: str) -> None:
    """Raises UserError unless ``address`` is host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}, expected host:port, for example 10.0.0.1:12355"
        )


def _whole_number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r}, expected a whole number")
    return int(text)
