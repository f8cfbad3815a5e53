"""One of two processes with two devices each: every form of every loss over all four, against the float64 formula."""

import itertools

import jax

from alm_jax.training import distributed

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    distributed.initialize()

import numpy as np
from contrastive_oracle import LOSSES, SCALARS, check, make_inputs, oracle, split

from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import batch_sharding, fetch, replicated


def main() -> None:
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    mesh = build_mesh(MeshConfig())
    x = make_inputs(20)
    shardings = {key: replicated(mesh) if key in SCALARS else batch_sharding(mesh) for key in x}
    placed = {
        key: jax.make_array_from_callback(np.shape(value), shardings[key], lambda index, v=value: v[index])
        for key, value in x.items()
    }
    trained, fixed = split(placed)
    outputs = (replicated(mesh), replicated(mesh)), {key: shardings[key] for key in trained}
    for name, impl in itertools.product(LOSSES, ("reference", "onesided", "chunked", "ring", "grid")):

        def loss(trained, fixed, name=name, impl=impl):
            return LOSSES[name]({**trained, **fixed}, impl=impl, tile=3)

        with jax.set_mesh(mesh):
            function = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=outputs)
            (total, weight), grads = function(trained, fixed)
        got = fetch(total), fetch(weight), {key: fetch(grad) for key, grad in grads.items()}
        check(got, oracle(name, x), rtol=1e-5, atol=1e-5)
        if jax.process_index() == 0:
            print(f"{name} {impl} ok", flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
