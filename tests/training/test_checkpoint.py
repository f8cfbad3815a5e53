"""Checkpoints under real faults: flipped bits, cut files, a full disk, a changed model, another mesh."""

import contextlib
import dataclasses
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
from alm_jax.training import checkpoint
from alm_jax.training.checkpoint import Checkpoints, ReadError, checksum, host_checksum, seal
from alm_jax.training.checkpoint_writer import CheckpointWriter
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
    opened = CheckpointWriter(tmp_path / "checkpoints", keep=3, manifest={"data_fingerprint": "f"})
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
    assert_equal(checkpoints.restore_newest(abstract(make_state(0))), make_state(4))
    manifest = checkpoints.manifest(4)
    assert manifest["data_fingerprint"] == "f"
    assert manifest["arrays"]["params/kernel"]["shape"] == list(SHAPE)


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.restore_newest(abstract(make_state(0))) is None


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
    assert_equal(checkpoints.restore_newest(abstract(make_state(0))), make_state(1))
    assert "falling back" in caplog.text
    assert (checkpoints.folder / "damaged-2").is_dir()
    # The run goes on, and makes the step again.
    checkpoints.save(make_state(2), wait=True)
    assert_equal(checkpoints.restore_newest(abstract(make_state(0))), make_state(2))


def test_a_cut_file_is_found(checkpoints):
    checkpoints.save(make_state(1), wait=True)
    checkpoints.save(make_state(2), wait=True)
    path = data_files(checkpoints.folder / "2")[0]
    os.truncate(path, path.stat().st_size // 2)
    assert_equal(checkpoints.restore_newest(abstract(make_state(0))), make_state(1))


def damage(folder: Path) -> None:
    for path in data_files(folder):
        os.truncate(path, 0)


def test_only_damaged_checkpoints_are_an_error_each_time_and_stay(checkpoints):
    for step in (1, 2):
        checkpoints.save(make_state(step), wait=True)
        damage(checkpoints.folder / str(step))
    before = listing(checkpoints.folder)
    for _ in range(2):
        with pytest.raises(DataError, match=r"none of the checkpoints \[1, 2\] .* Nothing was changed"):
            checkpoints.restore_newest(abstract(make_state(0)))
    assert listing(checkpoints.folder) == before


@pytest.mark.faults
def test_a_step_that_is_damaged_again_is_set_aside_again(checkpoints):
    checkpoints.save(make_state(1), wait=True)
    for _ in range(3):
        checkpoints.save(make_state(2), wait=True)
        damage(checkpoints.folder / "2")
        assert_equal(checkpoints.restore_newest(abstract(make_state(0))), make_state(1))
    names = {path.name for path in checkpoints.folder.iterdir()}
    assert names == {"1", "damaged-2", "damaged-2-2", "damaged-2-3"}


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and time of change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.faults
def test_a_reader_falls_back_and_changes_nothing_of_a_live_run(checkpoints, caplog):
    for step in (1, 2):
        checkpoints.save(make_state(step), wait=True)
    damage(checkpoints.folder / "2")
    (checkpoints.folder / "3.orbax-checkpoint-tmp").mkdir()
    before = listing(checkpoints.folder)
    reader = Checkpoints(checkpoints.folder)
    assert reader.steps() == [1, 2]
    assert_equal(reader.restore_newest(abstract(make_state(0))), make_state(1))
    assert "falling back" in caplog.text
    fields, damaged = reader.newest(lambda step: reader.read_arrays(step, ("params", "ema_params")))
    assert damaged == [2]
    assert list(fields) == ["params"]
    np.testing.assert_array_equal(fields["params"]["kernel"], make_state(1).params["kernel"])
    assert isinstance(fields["params"]["kernel"], np.ndarray)
    assert listing(checkpoints.folder) == before
    # The owner of the folder removes what a killed save left.
    CheckpointWriter(checkpoints.folder, keep=3).close()
    assert not (checkpoints.folder / "3.orbax-checkpoint-tmp").exists()


def make_unreadable(path: Path) -> Path:
    """Puts a link to itself in a file's place, which no user may open. Returns where the file is now."""
    kept = path.with_name("kept")
    path.rename(kept)
    path.symlink_to(path)
    return kept


@pytest.mark.faults
@pytest.mark.parametrize("what", ["manifest", "array"])
def test_a_read_error_is_not_damage(checkpoints, monkeypatch, what):
    monkeypatch.setattr(checkpoint, "RETRY_WAITS_SEC", (0.0, 0.0))
    for step in (1, 2):
        checkpoints.save(make_state(step), wait=True)
    folder = checkpoints.folder / "2"
    path = folder / "manifest" / "metadata" if what == "manifest" else data_files(folder)[0]
    kept = make_unreadable(path)
    before = listing(checkpoints.folder)
    with pytest.raises(ReadError, match="not damage, and nothing was changed") as error:
        checkpoints.restore_newest(abstract(make_state(0)))
    assert error.value.exit_code == 3
    assert listing(checkpoints.folder) == before
    kept.rename(path)
    assert_equal(checkpoints.restore_newest(abstract(make_state(0))), make_state(2))


@pytest.mark.faults
@pytest.mark.parametrize("what", ["manifest", "array"])
def test_a_passing_read_error_is_tried_again(checkpoints, monkeypatch, what):
    checkpoints.save(make_state(2), wait=True)
    folder = checkpoints.folder / "2"
    path = folder / "manifest" / "metadata" if what == "manifest" else data_files(folder)[0]
    kept = make_unreadable(path)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            kept.rename(path)

    monkeypatch.setattr(checkpoint.time, "sleep", sleep)
    assert_equal(checkpoints.restore_newest(abstract(make_state(0))), make_state(2))
    assert len(waits) == 2


@pytest.mark.faults
def test_a_checkpoint_that_its_run_deletes_meanwhile_is_passed_over(checkpoints):
    for step in (1, 2):
        checkpoints.save(make_state(step), wait=True)
    reader = Checkpoints(checkpoints.folder)

    def read(step: int) -> int:
        if (checkpoints.folder / "2").exists():
            (checkpoints.folder / "2").rename(checkpoints.folder / "2.deleted")
        reader.read_arrays(step, ("params",))
        return step

    assert reader.newest(read) == (1, [])


@pytest.mark.faults
@pytest.mark.parametrize(
    "name", ["run[1]", "lr=[1e-3]", "a\\b", "a*?b", "50% of #1", "ü:ber", "'q\"", "two\nlines"]
)
def test_any_path_that_the_system_allows_works(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    writer = CheckpointWriter(folder, keep=2)
    for step in (1, 2, 3):
        writer.save(make_state(step), wait=True)
    writer.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    assert_equal(Checkpoints(folder).restore_newest(abstract(make_state(0))), make_state(3))
    assert Checkpoints(folder).read_arrays(3, ("batch_stats",))["batch_stats"]["mean"].shape == (4,)


@pytest.mark.faults
def test_every_flipped_bit_of_a_manifest_is_damage(checkpoints, rng):
    checkpoints.save(make_state(1), wait=True)
    path = checkpoints.folder / "1" / "manifest" / "metadata"
    content = path.read_bytes()
    for position in rng.integers(0, len(content) * 8, 300):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << (position % 8)
        path.write_bytes(bytes(changed))
        with pytest.raises(DataError, match="is damaged"):
            checkpoints.manifest(1)
    for size in range(0, len(content) - 1, 97):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="is damaged"):
            checkpoints.manifest(1)


def test_another_shape_or_dtype_is_a_table_not_a_cast(checkpoints):
    checkpoints.save(make_state(1), wait=True)
    wanted = abstract(make_state(0))
    half = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16, sharding=wanted.params["kernel"].sharding)
    object.__setattr__(wanted, "params", {"kernel": half, "bias": half})
    with pytest.raises(UserError) as error:
        checkpoints.restore_newest(wanted)
    assert "params/kernel: float32[64, 48] in the checkpoint, bfloat16[64, 48] in this run" in str(
        error.value
    )
    assert "params/bias: absent in the checkpoint" in str(error.value)


def test_another_format_is_refused(checkpoints):
    checkpoints.save(make_state(1), wait=True)
    path = checkpoints.folder / "1" / "manifest" / "metadata"
    path.write_text(json.dumps(seal(json.loads(path.read_text()) | {"format": 99})))
    with pytest.raises(UserError, match="format 99, this version reads 2"):
        checkpoints.restore_newest(abstract(make_state(0)))


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
        restored = checkpoints.restore_newest(wanted)
        assert restored.params["kernel"].sharding == placed
        assert_equal(restored, make_state(1))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_, np.int64])
def test_every_flipped_bit_changes_the_checksum(dtype):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2, 40) if dtype == np.bool_ else rng.integers(0, 100, 40)
    x = words.astype(dtype).reshape(5, 8)
    with jax.enable_x64(dtype == np.int64):
        before = int(checksum(jnp.asarray(x)))
        assert host_checksum(x) == before
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
    checkpoints = CheckpointWriter(small_disk / "checkpoints", keep=2)
    checkpoints.save(make_state(1), wait=True)
    large = make_large_state(2)
    with pytest.raises(AlmError, match=r"could not be written .* It takes about \d+ MB"):
        checkpoints.save(large, wait=True)
    assert checkpoints.steps() == [1]
    assert_equal(checkpoints.restore_newest(abstract(make_state(0))), make_state(1))


def make_large_state(step: int) -> TrainState:
    """A state of 4 MB of noise, which does not compress away."""
    noise = np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32).view(np.float32)
    mean = jnp.asarray(np.nan_to_num(noise, posinf=0, neginf=0))
    return dataclasses.replace(make_state(step), batch_stats={"mean": mean})


@pytest.mark.faults
def test_a_save_that_failed_in_the_background_affects_no_later_one(small_disk, caplog):
    writer = CheckpointWriter(small_disk / "checkpoints", keep=3)
    writer.save(make_state(1), wait=True)
    with contextlib.suppress(AlmError):
        writer.save(make_large_state(2))
    with contextlib.suppress(AlmError):
        writer.wait()
    # What was written of it takes no room any more.
    assert [path.name for path in writer.folder.iterdir()] == ["1"]
    writer.save(make_state(3), wait=True)
    writer.save(make_state(4))
    writer.close()
    assert writer.steps() == [1, 3, 4]
    messages = [record.message for record in caplog.records if "could not be written" in record.message]
    assert len(messages) <= 1
