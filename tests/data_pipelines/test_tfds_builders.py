"""Recipes as builders of TensorFlow Datasets: found by name, built from `manual_dir`, read by any TFDS program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_pipelines import tfds_builders
from data_pipelines.dataset import DatasetConfig
from data_pipelines.datasets.fsdd import FsddConfig


def test_every_data_set_is_a_builder_by_name():
    for kind in DatasetConfig.kinds():
        if kind.__module__.startswith("data_pipelines.datasets."):
            assert tfds.builder_cls(getattr(tfds_builders, kind.title()).name).KIND is kind


def test_a_builder_reads_the_manual_folder(make_fsdd, tmp_path):
    root = make_fsdd()
    builder = tfds.builder("fsdd", data_dir=tmp_path / "out")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root))
    read = tfds.builder_from_directory(builder.data_path)
    ids = [record["id"].decode() for record in read.as_data_source("train")]
    assert ids == [row.id for row in FsddConfig(root=str(root)).read().rows if row.split == "train"]


@pytest.mark.slow
def test_the_command_of_tfds(make_fsdd, tmp_path):
    command = [
        Path(sys.executable).parent / "tfds",
        "build",
        "fsdd",
        "--imports",
        "data_pipelines.tfds_builders",
    ]
    command += ["--manual_dir", make_fsdd(), "--data_dir", tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300)
    (folder,) = (tmp_path / "out" / "fsdd" / "manual_dir").iterdir()
    assert len(tfds.builder_from_directory(folder).as_data_source("test")) == 10
