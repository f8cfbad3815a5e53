"""Errors that a person can act on, and the exit code of each.

Every message says what was found, what was expected, and what to do. The command line prints only the message,
without a traceback, and exits with ``exit_code``.
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
    """Data that cannot be used: unreadable, inconsistent, or with too many rejected examples."""

    exit_code = 3


class PreemptedError(AlmError):
    """The run was stopped by a signal and has saved its state; the same command continues it."""

    exit_code = 75


@contextlib.contextmanager
def as_user_error(message: str) -> Iterator[None]:
    """Context that turns any exception of a library into a UserError: ``message``, and the library's message in
    brackets.

    This includes panics of libraries in Rust, which are no Exception. Our own errors pass unchanged.
    """
    try:
        yield
    except (AlmError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        text = str(error) or type(error).__name__
        raise UserError(f"{message} ({text if len(text) <= 300 else text[:297] + '...'})") from error
