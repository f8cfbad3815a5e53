"""Sources and prepared sets in buckets: fetched once, built once for all machines, and never a local folder ``s3:``."""

import dataclasses
import json
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from alm_jax.errors import UserError
from data_pipelines import buckets
from data_pipelines import prepare as prepare_module
from data_pipelines.config import DataConfig, TokenizerConfig
from data_pipelines.datasets.esc50 import Esc50Config
from data_pipelines.datasets.synthetic_captions import SyntheticCaptionsConfig
from data_pipelines.pipeline import train_batches
from data_pipelines.prepare import prepare

TINY = SyntheticCaptionsConfig(num_train=6, num_validation=2, num_test=3, clip_sec=1.0)


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.fixture
def config(tmp_path, memory) -> DataConfig:
    return DataConfig(
        dataset=TINY,
        tokenizer=TokenizerConfig(vocab_size=300),
        source_sec=0.5,
        cache_dir="memory://bucket/prepared/",
        local_dir=str(tmp_path / "one"),
    )


def count_fetches(monkeypatch) -> list[str]:
    fetched = []
    get_file = fsspec.get_filesystem_class("memory").get_file

    def counted(self: object, path: str, target: str, **options: object) -> None:
        fetched.append(path)
        get_file(self, path, target, **options)

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "get_file", counted)
    return fetched


def test_a_set_is_built_into_a_bucket_once_and_other_machines_fetch_it(config, tmp_path, memory, monkeypatch):
    built = prepare(config, 16_000)
    assert memory.exists(f"memory://bucket/prepared/synthetic_captions/{built.folders[0].parent.name}")
    monkeypatch.setattr(prepare_module, "_build", lambda *_: pytest.fail("it was built twice"))
    monkeypatch.chdir(tmp_path)
    other = dataclasses.replace(config, local_dir="two")
    fetched = count_fetches(monkeypatch)
    found = prepare(other, 16_000)
    assert not any("array_record" in path for path in fetched)
    assert found.fingerprint == built.fingerprint
    batches = [
        next(train_batches(prepared, "train", batch_size=4, seed=0, start_step=2))
        for prepared in (built, found)
    ]
    assert all(np.array_equal(batches[0][key], batches[1][key]) for key in batches[0])
    prepare(other, 16_000).split("train").read_pcm(range(6))
    assert len(fetched) == len(set(fetched))
    assert sum("array_record" in path for path in fetched) == 1  # of three splits one was read
    assert not list(tmp_path.rglob("memory:*"))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["one", "two"]


def test_sources_in_a_bucket_are_fetched_once_and_may_be_gone(
    config, make_esc, tmp_path, memory, monkeypatch
):
    root = make_esc(4)
    memory.put(f"{root}/", "memory://bucket/esc/", recursive=True)
    esc = Esc50Config(root="memory://bucket/esc")
    config = dataclasses.replace(config, dataset=esc, train_split="fold1", eval_split="fold2")
    fetched = count_fetches(monkeypatch)
    first = prepare(config, 8_000)
    assert len([path for path in fetched if "/esc/" in path]) == 5
    local = dataclasses.replace(
        config, dataset=Esc50Config(root=str(root)), cache_dir=str(tmp_path / "cache")
    )
    pcm = prepare(local, 8_000).split("fold1").read_pcm([0, 1])
    assert all(map(np.array_equal, first.split("fold1").read_pcm([0, 1]), pcm))
    fetched.clear()
    assert prepare(config, 8_000).folders == first.folders
    assert not fetched
    memory.rm("memory://bucket/esc", recursive=True)
    shutil.rmtree(tmp_path / "one")
    again = prepare(config, 8_000)
    assert again.fingerprint == first.fingerprint


def test_a_bucket_that_is_not_there_is_an_error(config):
    missing = dataclasses.replace(config, dataset=Esc50Config(root="memory://nothing/esc"))
    with pytest.raises(UserError, match="memory://nothing/esc cannot be reached: nothing has that name"):
        prepare(missing, 8_000)
    with pytest.raises(UserError, match="cannot be reached"):
        buckets.exists("unheard-of://bucket/x")


def serve_s3(monkeypatch) -> Iterator[None]:
    """An S3 server on this machine."""
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield
    server.stop()


def serve_gcs(monkeypatch) -> Iterator[None]:
    """A server of Google Cloud Storage on this machine, which asks for no credentials."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    yield
    server.stop()


@pytest.fixture(params=["s3", "gs"])
def bucket(request, monkeypatch):
    """The address of an empty bucket on this machine, reached by its real protocol."""
    kind = request.param
    # The emulator has HTTP alone, and gcsfs asks by gRPC for the kind of a bucket; it looks here when it is imported.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip({"s3": "s3fs", "gs": "gcsfs"}[kind])
    serving = {"s3": serve_s3, "gs": serve_gcs}[kind](monkeypatch)
    next(serving)
    fsspec.get_filesystem_class(kind).clear_instance_cache()
    name = f"data-{zlib.crc32(request.node.name.encode())}"  # moto's servers share what they hold
    fsspec.filesystem(kind).mkdir(name)
    yield f"{kind}://{name}"
    fsspec.get_filesystem_class(kind).clear_instance_cache()
    next(serving, None)


CONFIG = """
import dataclasses, runpy
from data_pipelines.datasets.esc50 import Esc50Config

def get_config():
    config = runpy.run_path({tiny!r})["get_config"]()
    data = dataclasses.replace(config.data, dataset=Esc50Config(root="{bucket}/esc"), cache_dir="{bucket}/prepared",
                               train_split="fold1", eval_split="fold2")
    return dataclasses.replace(config, data=data)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # which gcsfs does
def test_building_training_and_resuming_from_a_bucket(bucket, make_esc, tmp_path):
    """`alm pretrain` with recordings and prepared data in a bucket; another machine resumes, and the loss goes on."""
    from alm_jax.cli.main import dispatch

    fs = fsspec.filesystem(bucket.partition(":")[0])
    fs.put(f"{make_esc(20)}/", f"{bucket}/esc/", recursive=True)
    config = tmp_path / "config.py"
    tiny = str(Path(__file__).parents[1] / "cli" / "tiny_config.py")
    config.write_text(CONFIG.format(tiny=tiny, bucket=bucket))

    def losses(run: str, machine: str) -> list[float]:
        args = ["pretrain", str(config), "--workdir", str(tmp_path / run)]
        args += ["--data.local-dir", str(tmp_path / machine)]
        args += ["--optimizer.warmup-steps", "1", "--training.num-steps", "4", "--training.save-every", "2"]
        assert dispatch(args) == 0
        lines = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    whole = losses("whole", "one")
    fs.invalidate_cache()
    assert sum(path.endswith("manifest.json") for path in fs.find(f"{bucket}/prepared")) == 1
    fs.rm(f"{bucket}/esc", recursive=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    assert losses("resumed", "two") == whole
    assert len(whole) == 4
    assert not list(tmp_path.rglob(f"{bucket.partition('/')[0]}*"))


def test_a_bucket_by_its_protocol(bucket, tmp_path):
    (tmp_path / "folder" / "index").mkdir(parents=True)
    (tmp_path / "folder" / "index" / "a.arrow").write_bytes(b"a" * 1000)
    (tmp_path / "folder" / "manifest.json").write_text("{}")
    buckets.upload(tmp_path / "folder", f"{bucket}/x/y", last="manifest.json")
    assert buckets.exists(f"{bucket}/x/y/manifest.json")
    assert not buckets.exists(f"{bucket}/x/y/other.json")
    assert buckets.newest(f"{bucket}/x", "manifest.json") == f"{bucket}/x/y"
    mirrored = buckets.mirror(f"{bucket}/x", tmp_path / "local")
    assert (mirrored / "y" / "index" / "a.arrow").read_bytes() == b"a" * 1000
    before = (mirrored / "y" / "manifest.json").stat()
    assert buckets.mirror(f"{bucket}/x", tmp_path / "local") == mirrored
    assert (mirrored / "y" / "manifest.json").stat() == before
    one = buckets.mirror(f"{bucket}/x/y/manifest.json", tmp_path / "local")
    assert Path(one).read_text() == "{}"
    none = f"{bucket.partition(':')[0]}://none/x"
    with pytest.raises(UserError, match=f"{none} cannot be reached"):
        buckets.mirror(none, tmp_path / "local")
