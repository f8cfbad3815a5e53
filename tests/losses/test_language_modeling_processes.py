"""The language-modelling losses across two processes of two devices; this file is also the program that they run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_language_modeling import AXES, FORMS, SMOOTH, TILE, check, half_masked, make_case, oracle, params_of

from alm_jax.losses.language_modeling import token_loss
from alm_jax.training.distributed import initialize
from alm_jax.training.sharding import fetch


@pytest.mark.slow
def test_two_processes() -> None:
    """Tokens over processes and words over devices, and the other way round, in every form."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": str(root),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__],
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
        assert output.count("equal") == 2 * len(FORMS)


def main() -> None:
    """One of the two processes."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    initialize()
    assert jax.device_count() == 4
    case = half_masked(make_case(32, **SMOOTH))
    devices = np.array(jax.devices()).reshape(2, 1, 2)
    for order in (devices, devices.transpose(2, 1, 0)):
        mesh = Mesh(order, AXES, axis_types=(AxisType.Auto,) * 3)
        for impl in FORMS:
            run_form(case, impl, mesh)
            print("equal", impl, flush=True)
    jax.distributed.shutdown()


def run_form(case, impl: str, mesh: Mesh) -> None:
    """Checks one form on one mesh."""
    tokens = P(("data", "fsdp"))
    specs = {"hidden": tokens, "kernel": P(None, "tensor"), "bias": P("tensor")}

    def place(x, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    @jax.jit
    def value_and_grad(params, labels, mask):
        def loss(params):
            return token_loss(
                params["hidden"],
                params["kernel"],
                labels,
                mask=mask,
                bias=params["bias"],
                impl=impl,
                tile=TILE,
                **case.settings,
            )

        (total, weight), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return total, weight, grads

    with jax.set_mesh(mesh):
        params = {name: place(x, specs[name]) for name, x in params_of(case).items()}
        total, weight, grads = value_and_grad(params, place(case.labels, tokens), place(case.mask, tokens))
    check((fetch(total), fetch(weight), {name: fetch(x) for name, x in grads.items()}), oracle(case))


if __name__ == "__main__":
    main()
