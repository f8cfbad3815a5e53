"""Errors that a person can act on, and the exit code of each.

Every message says what was found, what was expected, and what to do. The command line prints the
message alone, without a traceback, and exits with ``exit_code``.
"""


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
