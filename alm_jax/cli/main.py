"""``alm COMMAND ...``: dispatch, and errors as messages and exit codes.

Each command lives in a module of its own that is imported when it is used, so that ``alm --help`` answers at
once. A command module has ``run(args)``; AlmError becomes its message on standard error and its exit code.
"""

import contextlib
import errno
import glob
import importlib
import importlib.util
import io
import logging
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from alm_jax import signals
from alm_jax.errors import AlmError
from alm_jax.version import __version__

COMMANDS = {
    "pretrain": "train a model from a config, or continue the run of a folder",
    "evaluate": "measure a trained model: retrieval, zero-shot, linear probe, ...",
    "report": "draw the report of a run, finished or stopped",
    "embed": "write the embeddings of recordings to one file",
    "classify": "choose among given labels for each recording",
    "generate": "write text about recordings",
    "import": "read published weights as a model of this project",
    "export": "write a trained or imported model for transformers, or as StableHLO",
    "zoo": "list every encoder and language model, or compare each with its reference",
    "bench": "measure speed and memory of losses, encoders, training steps and input",
    "checkpoint": "list, verify, compare, copy and prune the checkpoints of a run",
    "replay": "repeat one training step of a run, and show the norms of every module",
    "compile": "estimate memory and time of a config on accelerators that are not here",
    "data": "check, build, show and list data sets",
}

GROUPS = {
    "train": ("data", "pretrain"),
    "measure": ("evaluate", "report", "bench", "compile"),
    "use": ("embed", "classify", "generate"),
    "exchange models": ("zoo", "import", "export"),
}
"""Headings of ``alm --help`` and their commands; a command without a heading is listed at the end."""

MODULES = {"import": "import_"}
"""Modules of commands whose name is a keyword of Python."""

EXTRAS = {
    "tensorflow": "data",
    "tensorflow_datasets": "data",
    "array_record": "data",
    "pyarrow": "data",
    "torch": "torch",
    "transformers": "torch",
    "sklearn": "eval",
}
"""Extras that install the packages that a command may need."""

CONTINUABLE = ("pretrain", "data")
"""Commands that go on where they were stopped."""
PATH_ERRORS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EDQUOT,
)
"""What the system answers where a path of the command cannot be read or written: a message, not a traceback."""

USAGE = """usage: alm COMMAND ...

{commands}

`alm COMMAND --help` describes a command and its options. `alm --version` prints the version.

exit codes: 0 done, 2 a mistake in the command or config, 3 unusable data, 75 stopped by request (the same command
continues), 76 another process of the run ended, 130 interrupted, 143 stopped."""


ACCELERATOR_FILES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/dxg", "/dev/kfd")
"""Device files of TPUs and of NVIDIA and AMD cards."""


def is_compiler_only(device_files: Sequence[str]) -> bool:
    """Whether libtpu serves only as a compiler: it is installed, and ``device_files`` has no accelerator.

    JAX would otherwise look for a TPU, which takes time and prints warnings.
    """
    return importlib.util.find_spec("libtpu") is not None and not any(map(glob.glob, device_files))


TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def start_with_huge_pages() -> None:
    """Restarts this program with huge pages for malloc, where Linux offers them and the environment does not set them.

    XLA on a CPU allocates its temporary buffer anew in every step; in pages of 4 KB handing it out is a sixth of the
    time of a large step (docs/performance.md). The C library reads the setting once, when a process starts; the new
    one has the same process id.
    """
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if TUNABLES not in os.environ and offered.is_file() and "[never]" not in offered.read_text():
        os.environ[TUNABLES] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def usage() -> str:
    """The text of ``alm --help``."""
    grouped = {name for names in GROUPS.values() for name in names}
    groups = GROUPS | {"other": tuple(name for name in COMMANDS if name not in grouped)}
    sections = (
        "\n".join([f"{title}:", *(f"  {name:10} {COMMANDS[name]}" for name in names)])
        for title, names in groups.items()
        if names
    )
    return USAGE.format(commands="\n\n".join(sections))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits."""
    if argv is None:
        start_with_huge_pages()
        allow_many_files()
        command = next(iter(sys.argv[1:]), "")
        signals.serve(command, is_continuable=command in CONTINUABLE)
    for stream in (sys.stdout, sys.stderr):
        # A caption or a class may have letters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(dispatch(list(sys.argv[1:] if argv is None else argv)))


def allow_many_files() -> None:
    """Raises the limit of open files as far as the system lets a user: checkpoints and data are read by many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def set_up_logging() -> None:
    """Warnings of this project as ``alm: ...``; of other libraries, errors alone and under their own names."""
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr)
    # Orbax reports by absl what it raises besides, with a traceback.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("alm: %(message)s"))
    for package in ("alm_jax", "data_pipelines"):
        own = logging.getLogger(package)
        own.setLevel(logging.WARNING)
        if not own.handlers:
            own.addHandler(handler)


def dispatch(argv: list[str]) -> int:
    """Runs one command. Returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"alm_jax {__version__}")
        return 0
    command, args = argv[0], argv[1:]
    if command not in COMMANDS:
        print(f"alm: there is no command {command!r}\n\n{usage()}", file=sys.stderr)
        return 2
    # TensorFlow's and XLA's start-up notices are not this program's output.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if is_compiler_only(ACCELERATOR_FILES):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    set_up_logging()
    logging.getLogger("data_pipelines").setLevel(logging.INFO)  # what is built, and from what
    try:
        importlib.import_module(f"alm_jax.cli.{MODULES.get(command, command)}").run(args)
    except AlmError as error:
        print(f"alm {command}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"alm {command}: the package {error.name} is not installed; `pip install 'alm_jax[{extra}]'` brings it",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"alm {command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        if error.errno not in PATH_ERRORS or error.filename is None:
            raise
        print(f"alm {command}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
