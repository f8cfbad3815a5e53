"""Checkpoints under real faults: flipped bits, cut files, a full disk, a changed model, another mesh."""

import gc
import json
import os
import subprocess
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from alm_jax.errors import AlmError, DataError, UserError
from alm_jax.training.checkpoint import Checkpoints, checksum
from alm_jax.training.mesh import MeshConfig, build_mesh
from alm_jax.training.sharding import parameter_shardings, replicated
from alm_jax.training.state import TrainState

# Where one array of a damaged checkpoint cannot be read, the readers of the others fail too, and nobody hears it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SHAPE = (64, 48)


def make_state(step: int, placed=None) -> TrainState:
    """A state of noise; with ``placed``, its kernels lie so and the rest is whole on the same devices."""
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    state = TrainState(
        step=jnp.int32(step),
        params={"kernel": kernel},
        batch_stats={"mean": jnp.arange(4.0)},
        opt_state=({"mu": {"kernel": kernel * 2}}, ()),
        ema_params=None,
        key=jax.random.key_data(jax.random.key(step)),
        num_skipped=jnp.int32(0),
    )
    if placed is None:
        return state
    whole = replicated(placed.mesh)
    return jax.tree.map(lambda x: jax.device_put(x, placed if x.shape == SHAPE else whole), state)


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", keep=3, manifest={"data_fingerprint": "f"})
    yield opened
    opened.close()
    # What those readers leave is collected here, not in some later test.
    gc.collect()


def assert_equal(restored: TrainState, expected: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_what_is_saved_comes_back_bit_for_bit(checkpoints):
    for step in (1, 2, 3, 4):
        checkpoints.save(make_state(step), wait=True)
    assert checkpoints.steps() == [2, 3, 4]
    assert_equal(checkpoints.restore_latest(abstract(make_state(0))), make_state(4))
    manifest = checkpoints.manifest(4)
    assert manifest["data_fingerprint"] == "f"
    assert manifest["arrays"]["params/kernel"]["shape"] == list(SHAPE)


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.restore_latest(abstract(make_state(0))) is None


def test_an_asynchronous_save_keeps_the_values_of_its_step(checkpoints):
    """The buffers of a saved state are donated to the next step while they are being written."""
    state = make_state(1)
    expected = jax.device_get(state)
    checkpoints.save(state)
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x * 0 + 7 if x.dtype == jnp.float32 else x, s), donate_argnums=0
    )
    for _ in range(20):
        state = overwrite(state)
    checkpoints.wait()
    assert_equal(checkpoints.restore(1, abstract(make_state(0))), expected)


def data_files(folder: Path) -> list[Path]:
    """Files of a checkpoint's arrays, largest first."""
    files = [path for path in (folder / "state").rglob("*") if path.is_file() and "d" in path.parts[-2:-1]]
    return sorted(files, key=lambda path: -path.stat().st_size)


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_a_flipped_bit_is_found_and_the_step_before_is_used(checkpoints, caplog, position):
    checkpoints.save(make_state(1), wait=True)
    checkpoints.save(make_state(2), wait=True)
    path = data_files(checkpoints.folder / "2")[0]
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 1
    path.write_bytes(content)
    assert_equal(checkpoints.restore_latest(abstract(make_state(0))), make_state(1))
    assert "falling back" in caplog.text
    assert (checkpoints.folder / "damaged-2").is_dir()
    # The run goes on, and makes the step again.
    checkpoints.save(make_state(2), wait=True)
    assert_equal(checkpoints.restore_latest(abstract(make_state(0))), make_state(2))


def test_a_cut_file_is_found(checkpoints):
    checkpoints.save(make_state(1), wait=True)
    checkpoints.save(make_state(2), wait=True)
    path = data_files(checkpoints.folder / "2")[0]
    os.truncate(path, path.stat().st_size // 2)
    assert_equal(checkpoints.restore_latest(abstract(make_state(0))), make_state(1))


def test_only_damaged_checkpoints_are_an_error_and_are_kept(checkpoints):
    checkpoints.save(make_state(1), wait=True)
    for path in data_files(checkpoints.folder / "1"):
        os.truncate(path, 0)
    with pytest.raises(DataError, match="none of the checkpoints"):
        checkpoints.restore_latest(abstract(make_state(0)))
    assert (checkpoints.folder / "damaged-1").is_dir()


def test_another_shape_or_dtype_is_a_table_not_a_cast(checkpoints):
    checkpoints.save(make_state(1), wait=True)
    wanted = abstract(make_state(0))
    half = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16, sharding=wanted.params["kernel"].sharding)
    object.__setattr__(wanted, "params", {"kernel": half, "bias": half})
    with pytest.raises(UserError) as error:
        checkpoints.restore_latest(wanted)
    assert "params/kernel: float32[64, 48] in the checkpoint, bfloat16[64, 48] in this run" in str(
        error.value
    )
    assert "params/bias: absent in the checkpoint" in str(error.value)


def test_another_format_is_refused(checkpoints):
    checkpoints.save(make_state(1), wait=True)
    path = checkpoints.folder / "1" / "manifest" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="format 99, this version reads 1"):
        checkpoints.restore_latest(abstract(make_state(0)))


def test_a_state_cut_over_eight_devices_restores_whole_and_cut_otherwise(checkpoints):
    def kernel_sharding(config):
        mesh = build_mesh(config)
        axes = {"kernel": ("embed", "mlp")}
        return parameter_shardings(axes, {"kernel": jax.ShapeDtypeStruct(SHAPE, jnp.float32)}, mesh)["kernel"]

    state = make_state(1, kernel_sharding(MeshConfig(data=1, fsdp=8)))
    assert not state.params["kernel"].is_fully_replicated
    checkpoints.save(state, wait=True)
    for placed in (
        kernel_sharding(MeshConfig(data=2, fsdp=2, tensor=2)),
        replicated(build_mesh(MeshConfig())),
    ):
        wanted = abstract(make_state(0, placed))
        restored = checkpoints.restore_latest(wanted)
        assert restored.params["kernel"].sharding == placed
        assert_equal(restored, make_state(1))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_, np.int64])
def test_every_flipped_bit_changes_the_checksum(dtype):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2, 40) if dtype == np.bool_ else rng.integers(0, 100, 40)
    x = words.astype(dtype).reshape(5, 8)
    with jax.enable_x64(dtype == np.int64):
        before = int(checksum(jnp.asarray(x)))
        for position in rng.integers(0, x.nbytes, 16):
            raw = bytearray(x.tobytes())
            raw[position] ^= 1 if dtype == np.bool_ else 1 << int(rng.integers(0, 8))
            changed = np.frombuffer(bytes(raw), dtype).reshape(x.shape)
            assert zlib.crc32(changed.tobytes()) != zlib.crc32(x.tobytes())
            assert int(checksum(jnp.asarray(changed))) != before


def test_two_values_that_change_places_change_the_checksum():
    x = jnp.arange(24.0).reshape(4, 6)
    assert int(checksum(x)) != int(checksum(x.at[0, 1].set(x[2, 3]).at[2, 3].set(x[0, 1])))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_the_checkpoints_before(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=2)
    checkpoints.save(make_state(1), wait=True)
    large = make_state(2)
    # Noise does not compress away.
    noise = np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32).view(np.float32)
    object.__setattr__(large, "batch_stats", {"mean": jnp.asarray(np.nan_to_num(noise, posinf=0, neginf=0))})
    with pytest.raises(AlmError, match=r"could not be written .* It takes about \d+ MB"):
        checkpoints.save(large, wait=True)
    assert checkpoints.steps() == [1]
    assert_equal(checkpoints.restore_latest(abstract(make_state(0))), make_state(1))
