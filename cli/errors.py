"""What the command can end with: one sentence that a person can act on, and an exit code.

0 is success, 1 an unforeseen error, 2 a wrong option, 130 an interruption with Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = [
    "BadSettings",
    "CliError",
    "InputError",
    "JobFailed",
    "NotInstalled",
    "NotStarted",
    "Refused",
    "SomeFailed",
    "Unreachable",
    "translate",
]


class CliError(Exception):
    """An end of the command with a reason; `exit_code` is what the shell sees."""

    exit_code = 1


class BadSettings(CliError):
    """An option or a setting has a value that cannot be."""

    exit_code = 2


class InputError(CliError):
    """A file that cannot be read, is not an image, or cannot be written."""

    exit_code = 3


class Unreachable(CliError):
    """No server answers at the address."""

    exit_code = 4


class Refused(CliError):
    """The server answered with a problem: its title and detail."""

    exit_code = 5


class JobFailed(CliError):
    """A job was accepted and then failed, expired or was canceled."""

    exit_code = 6


class NotInstalled(CliError):
    """An extra of the package is missing."""

    exit_code = 7


class NotStarted(CliError):
    """A part of the embedded mode did not start, or ended once too often."""

    exit_code = 8


class SomeFailed(CliError):
    """Some images of a folder failed; the others are done."""

    exit_code = 9


@contextmanager
def translate(errors: Mapping[type[Exception], type[CliError]]) -> Iterator[None]:
    """Within this context the errors of other layers become the command's, with their sentence.

    The first match decides, so a class stands before its parents.
    """
    try:
        yield
    except tuple(errors) as error:
        target = next(target for kind, target in errors.items() if isinstance(error, kind))
        raise target(str(error)) from error
