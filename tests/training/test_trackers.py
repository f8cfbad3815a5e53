"""Trackers: the same values as metrics.jsonl, after a restart too, and none can stop a run."""

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.training.metrics import MetricsWriter, read_metrics
from alm_jax.training.trackers import TensorBoard, WeightsAndBiases, open_trackers


def test_tensorboard_reads_the_same_values_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    with MetricsWriter(tmp_path, trackers=[TensorBoard(tmp_path / "tensorboard")]) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": np.float32(1 / step), "note": "text is for the file alone"})
    with MetricsWriter(tmp_path, trackers=[TensorBoard(tmp_path / "tensorboard")]) as writer:
        writer.truncate_after(2)
        writer.write(3, {"loss": np.float32(9.0)})
    scalars: dict[int, float] = {}
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        reader = PyRecordReader_New(str(path))
        for event in _events(reader, Event):
            if event.session_log.status == SessionLog.START:
                scalars = {step: value for step, value in scalars.items() if step < event.step}
            for value in event.summary.value:
                assert value.tag == "loss"
                assert event.step not in scalars
                scalars[event.step] = value.simple_value
    assert scalars == {1: 1.0, 2: 0.5, 3: 9.0}


def _events(reader: Any, event_type: Any) -> Iterator[Any]:
    """Each event of TensorBoard's own record reader, which checks both checksums."""
    from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError

    while True:
        try:
            reader.GetNext()
        except OutOfRangeError:
            return
        yield event_type.FromString(reader.record())


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_names_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_it(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(package):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_it)
    with pytest.raises(UserError, match=rf"alm_jax\[{package}\]"):
        open_trackers(tmp_path, "run", {}, tensorboard=package == "tensorboard", wandb=package == "wandb")


class Broken:
    """Fails at its second record, and would again."""

    name = "Broken"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def write(self, step: int, metrics: Any) -> None:
        self.calls.append(step)
        if step > 1:
            raise OSError("no network")

    def restart(self, step: int) -> None:
        pass

    def close(self) -> None:
        raise AssertionError("a tracker that failed is not called again")


def test_a_failing_tracker_ends_alone(tmp_path: Path, caplog: Any) -> None:
    broken = Broken()
    with MetricsWriter(tmp_path, trackers=[broken]) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0})
    assert broken.calls == [1, 2]
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert "Broken failed (no network)" in caplog.text


@pytest.mark.slow
def test_weights_and_biases_has_the_records_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is an extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in ((1, 2), (3,)):
        with MetricsWriter(tmp_path, trackers=[WeightsAndBiases(tmp_path, "run", {"seed": 3})]) as writer:
            for step in steps:
                writer.write(step, {"loss": 1.0 / step, "note": "text"})
    found, names = {}, set()
    for path in sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")):
        names.add(path.stem)
        found |= dict(_wandb_records(path))
    assert names == {f"run-{(tmp_path / '.wandb-id').read_text()}"}
    assert found == {1: 1.0, 2: 0.5, 3: 1 / 3}


def _wandb_records(path: Path) -> Iterator[tuple[int, float]]:
    """Step and loss of each record in a file that `wandb sync` sends."""
    import json

    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal import datastore

    store = datastore.DataStore()
    store.open_for_scan(str(path))
    while data := store.scan_data():
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }
        if "loss" in values:
            yield values["step"], values["loss"]
