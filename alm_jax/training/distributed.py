"""Several processes as one run, with JAX's own runtime."""

import os

import jax

from alm_jax.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(*, multihost: bool = False) -> None:
    """Joins the other processes of the run; does nothing for a single process.

    Either the three environment variables of VARIABLES name the coordinator (host:port), the number of
    processes and this one's number, or ``multihost`` lets JAX detect the cluster (Cloud TPU, Slurm, GKE, Open MPI).
    Must run before any device is used. Raises UserError where the variables are incomplete or the coordinator is not
    reached.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if not given and not multihost:
        return
    if given and len(given) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in given]
        raise UserError(
            f"the environment sets {given} but not {missing}: a run of several processes needs all three"
        )
    if jax.config.jax_platforms == "cpu":  # type: ignore[attr-defined]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if given:
            jax.distributed.initialize(
                coordinator_address=os.environ["JAX_COORDINATOR_ADDRESS"],
                num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
                process_id=int(os.environ["JAX_PROCESS_ID"]),
            )
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not find each other: {error}. Expected every process to reach "
            f"{os.environ.get('JAX_COORDINATOR_ADDRESS', 'the coordinator of the cluster')}; check the address, the "
            "port, and that each process has its own number"
        ) from error
