"""Attention alone, forward and backward, compiled for an absent TPU: memory and cycles of its forms.

    python -m alm_jax.bench.attention v5e:2x2 --impl flash --length 512

prints a line of JSON for one device: the memory that the program needs besides its inputs and outputs, and its
cycles. Those are XLA's estimates (``cycles``) and, for a kernel, the bundles of its body (``bundles``) in every step
of its grid, also in steps that a causal mask skips. Both estimate only computation, not waiting for memory.
"""

import argparse
import json
import os
from typing import Any


def compile_attention(
    topology: str,
    impl: Any,
    *,
    length: int,
    batch: int = 32,
    num_heads: int = 12,
    num_groups: int = 12,
    head_dim: int = 64,
    dtype: str = "bfloat16",
    is_causal: bool = False,
    is_masked: bool = False,
    num_devices: int = 1,
    tensor: int = 1,
) -> tuple[Any, Any]:
    """Compiles attention and the gradients of its inputs for devices of ``topology``; returns `compile_for`'s result
    and the `Counts`.

    ``is_masked``: some keys are padding. ``tensor``: devices that heads are cut over; the others cut the batch.
    """
    # JAX starts here and not with the module: libtpu reads its options when it is loaded.
    import jax
    import jax.numpy as jnp

    from alm_jax.bench.counting import count_jaxpr
    from alm_jax.bench.topology import compile_for, resolve
    from alm_jax.ops.attention import attend
    from alm_jax.training.mesh import MeshConfig, build_mesh
    from alm_jax.training.sharding import batch_sharding

    found = resolve(topology)
    mesh = build_mesh(MeshConfig(tensor=tensor), found.devices[:num_devices])

    def loss(qkv: Any, mask: Any) -> Any:
        mask = mask[:, None, None] if is_masked else None
        out = attend(*qkv, mask=mask, is_causal=is_causal, impl=impl)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    rows = batch_sharding(mesh)
    query, key = (
        jax.ShapeDtypeStruct((batch, length, heads, head_dim), jnp.dtype(dtype), sharding=rows)
        for heads in (num_heads, num_groups)
    )
    mask = jax.ShapeDtypeStruct((batch, length), jnp.bool_, sharding=rows)
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(loss)).trace((query, key, key), mask)
        return compile_for(traced.lower(), found), count_jaxpr(traced.jaxpr, num_devices=num_devices)


def main() -> None:
    """Compiles one form of attention and prints a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m alm_jax.bench.attention", description=main.__doc__)
    parser.add_argument("topology", help="v5e:2x2, v5p:2x2x1, v6e:2x2 or tpu7x:2x2x1")
    parser.add_argument("--impl", choices=("reference", "flash"), default="flash", help="(default flash)")
    parser.add_argument("--length", type=int, default=512, help="queries and keys (default 512)")
    parser.add_argument("--batch", type=int, default=32, help="rows (default 32)")
    parser.add_argument("--dtype", default="bfloat16", help="(default bfloat16)")
    parser.add_argument("--causal", action="store_true", help="a token sees none after it")
    parser.add_argument("--masked", action="store_true", help="some keys are padding")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from alm_jax.bench.cycles import estimate_cycles
    from alm_jax.bench.kernel_cycles import kernel_cycles

    compiled, counts = compile_attention(
        options.topology,
        options.impl,
        length=options.length,
        batch=options.batch,
        dtype=options.dtype,
        is_causal=options.causal,
        is_masked=options.masked,
    )
    if compiled.error is not None:
        raise SystemExit(compiled.error)
    # The estimates leave the inside of kernels out.
    around, kernels = estimate_cycles(compiled.text), kernel_cycles(counts.kernels, options.topology)
    report = vars(options) | {
        "temp_bytes": compiled.memory.temp_bytes,
        "cycles": (around.total if around else 0) + kernels,
        "kernel_cycles": kernels,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
