"""Every data set as a builder of TensorFlow Datasets.

    tfds build esc50 --imports data_pipelines.tfds_builders --manual_dir ESC-50 --data_dir OUT

builds the files of a folder with the usual settings, at 16 kHz; ``tfds.builder_from_directory`` reads the result.
"""

from data_pipelines.builder import builder_class
from data_pipelines.dataset import DatasetConfig

for _kind in DatasetConfig.kinds():
    globals()[_kind.title()] = builder_class(_kind)
