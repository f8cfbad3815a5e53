"""Errors that a person can act on, and the exit code of each.

Every message says what was found, what was expected, and what to do. The command line prints the
message alone, without a traceback, and exits with ``exit_code``.
"""

import contextlib
from collections.abc import Iterator


class AlmError(Exception):
    """Base of the errors that are part of the interface."""

    exit_code = 1


class UserError(AlmError):
    """A mistake in a command, a config or a path."""

    exit_code = 2


class DataError(AlmError):
    """Data that cannot be used: unreadable, inconsistent, or too much of it rejected."""

    exit_code = 3


class PreemptedError(AlmError):
    """The run was asked to stop, and has saved itself; the same command continues it."""

    exit_code = 75


@contextlib.contextmanager
def as_user_error(message: str) -> Iterator[None]:
    """Whatever a library raises inside becomes a UserError: ``message``, and in brackets what the library said.

    A panic of a library in Rust too, which is no Exception. Errors of our own pass as they are.
    """
    try:
        yield
    except (AlmError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        said = str(error) or type(error).__name__
        raise UserError(f"{message} ({said if len(said) <= 300 else said[:297] + '...'})") from error
