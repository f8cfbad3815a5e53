"""Sources and prepared sets in buckets: fetched once, built once for all machines, and never a local folder ``s3:``."""

import dataclasses
import json
import shutil
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


@pytest.fixture
def s3(monkeypatch):
    """An S3 server on this machine, by its real protocol, with an empty bucket."""
    moto_server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="data")
    yield client
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.slow
def test_building_training_and_resuming_from_s3(s3, make_esc, tmp_path):
    """`alm pretrain` with recordings and prepared data in a bucket; another machine resumes, and the loss goes on."""
    from alm_jax.cli.main import dispatch

    root = make_esc(20)
    for path in root.rglob("*.*"):
        s3.upload_file(str(path), "data", f"esc/{path.relative_to(root)}")

    def losses(run: str, machine: str) -> list[float]:
        args = ["pretrain", "configs/esc10_two_towers_nano.py", "--workdir", str(tmp_path / run)]
        args += ["--data.dataset.root", "s3://data/esc", "--data.dataset.captions", "class"]
        args += ["--data.train-split", "fold1", "--data.eval-split", "fold2", "--training.batch-size", "8"]
        args += ["--data.cache-dir", "s3://data/prepared", "--data.local-dir", str(tmp_path / machine)]
        args += [
            "--optimizer.warmup-steps",
            "1",
            "--training.num-steps",
            "6",
            "--training.save-every",
            "2",
            "--training.keep-checkpoints",
            "9",
        ]
        assert dispatch(args) == 0
        lines = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        return [line["train/loss"] for line in lines if "train/loss" in line]

    whole = losses("whole", "one")
    listed = [own["Key"] for own in s3.list_objects_v2(Bucket="data", Prefix="prepared/")["Contents"]]
    assert sum(key.endswith("manifest.json") for key in listed) == 1
    for own in s3.list_objects_v2(Bucket="data", Prefix="esc/")["Contents"]:
        s3.delete_object(Bucket="data", Key=own["Key"])
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for folder in (tmp_path / "resumed" / "checkpoints").iterdir():
        if folder.name in ("4", "6"):
            shutil.rmtree(folder)
    assert losses("resumed", "two") == whole
    assert len(whole) == 6
    assert not list(tmp_path.rglob("s3:*"))


def test_a_bucket_of_s3_by_its_protocol(s3, tmp_path):
    (tmp_path / "folder" / "index").mkdir(parents=True)
    (tmp_path / "folder" / "index" / "a.arrow").write_bytes(b"a" * 1000)
    (tmp_path / "folder" / "manifest.json").write_text("{}")
    buckets.upload(tmp_path / "folder", "s3://data/x/y", last="manifest.json")
    assert buckets.exists("s3://data/x/y/manifest.json")
    assert not buckets.exists("s3://data/x/y/other.json")
    assert buckets.newest("s3://data/x", "manifest.json") == "s3://data/x/y"
    mirrored = buckets.mirror("s3://data/x", tmp_path / "local")
    assert (mirrored / "y" / "index" / "a.arrow").read_bytes() == b"a" * 1000
    before = (mirrored / "y" / "manifest.json").stat()
    assert buckets.mirror("s3://data/x", tmp_path / "local") == mirrored
    assert (mirrored / "y" / "manifest.json").stat() == before
    one = buckets.mirror("s3://data/x/y/manifest.json", tmp_path / "local")
    assert Path(one).read_text() == "{}"
    with pytest.raises(UserError, match="s3://none/x cannot be reached"):
        buckets.mirror("s3://none/x", tmp_path / "local")
