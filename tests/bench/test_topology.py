"""Programs compiled for devices that are not there."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from alm_jax.bench import topology
from alm_jax.bench.cycles import estimate_cycles
from alm_jax.errors import UserError
from alm_jax.training import sharding
from alm_jax.training.compiler_options import compiler_options
from alm_jax.training.mesh import MeshConfig

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `aot`)"
)


@pytest.mark.parametrize("name", ["v9:2x2", "v5e-16", "h100:0", "h100:1x8", "h100", "v5e:2x2*0"])
def test_a_name_that_is_none_is_told_so(name):
    with pytest.raises(UserError, match="topology"):
        topology.resolve(name)


def test_the_extra_of_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"alm_jax\[aot\]"):
        topology.resolve("v5e:2x2")


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="the CUDA plugin is here"
)
def test_the_extra_of_the_cuda_compiler_is_named():
    with pytest.raises(UserError, match=r"alm_jax\[cuda\]"):
        topology.resolve("h100:8")


@needs_libtpu
def test_a_shape_that_is_none_is_told_so():
    with pytest.raises(UserError, match="3x5x1x1"):
        topology.resolve("v5e:3x5x1x1")


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "num_devices", "kind"),
    [
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5e:16x16", 256, "TPU v5 lite"),
        ("v5p:2x2x1", 4, "TPU v5"),
        ("v6e:2x2", 4, "TPU v6 lite"),
        ("v4:2x2x1", 4, "TPU v4"),
        ("tpu7x:2x2x1", 8, "TPU7x"),
    ],
)
def test_every_generation_has_a_mesh_and_a_chip(name, num_devices, kind):
    found = topology.resolve(name)
    assert {device.device_kind for device in found.devices} == {kind}
    assert found.mesh().size == num_devices
    assert found.chip.hbm_bytes >= 16 * 2**30
    assert topology.read_name(name) == (num_devices, found.chip)


@needs_libtpu
def test_slices_are_copies_along_data():
    found = topology.resolve("v5e:2x2*2")
    devices = found.mesh(MeshConfig(fsdp=2, tensor=2, num_slices=2)).devices
    assert devices.shape == (2, 2, 2)
    assert [{device.slice_index for device in copy.flat} for copy in devices] == [{0}, {1}]
    assert topology.read_name("v5e:2x2*2") == (8, found.chip)
    with pytest.raises(UserError, match=r"devices are of 2 slice\(s\): set it to 2"):
        found.mesh()


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_options_of_every_generation_are_known_to_its_compiler(name):
    found = topology.resolve(name)
    options = compiler_options("overlap", found.devices[0].device_kind)
    assert options
    rows = sharding.batch_sharding(found.mesh())
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    lowered = jax.jit(lambda x: x @ x.T, in_shardings=rows, compiler_options=options).trace(x).lower()
    assert topology.compile_for(lowered, found).error is None


def lower(n, found):
    rows = sharding.batch_sharding(found.mesh())

    # The product is needed twice, so it must be kept.
    def normalise(x):
        product = x @ x.T
        return product / jnp.max(product, axis=0)[None, :]

    x = jax.ShapeDtypeStruct((n, 256), jnp.float32)
    return jax.jit(normalise, in_shardings=rows, out_shardings=rows).lower(x)


@needs_libtpu
def test_what_fits_and_what_does_not():
    found = topology.resolve("v5e:2x2")
    small = topology.compile_for(lower(2048, found), found)
    assert small.error is None
    assert small.fits
    # Inputs and outputs of one of four devices.
    assert small.memory.argument_bytes == 2048 * 256 * 4 // 4
    assert small.memory.output_bytes == 2048 * 2048 * 4 // 4
    assert small.memory.peak_bytes >= small.memory.output_bytes
    assert estimate_cycles(small.text).total > 0

    large = topology.compile_for(lower(2**18, found), found)
    assert large.fits is False
    assert large.executable is None
    assert "RESOURCE_EXHAUSTED" in large.error


@needs_libtpu
def test_programs_for_absent_devices_stay_out_of_the_cache(tmp_path):
    """They could be written there and not be read again."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    shortest = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        found = topology.resolve("v5e:2x2")
        for _ in range(2):
            assert topology.compile_for(lower(256, found), found).error is None
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
        assert not list(tmp_path.iterdir())
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
