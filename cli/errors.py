"""What the command can end with: one sentence that a person can act on, and an exit code.

0 is success, 1 an unforeseen error, 2 a wrong option, 130 an interruption with Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CliError(Exception):
    """An end of the command with a reason; `exit_code` is what the shell sees."""

    exit_code = 1

    def __init_subclass__(cls, exit_code: int = 1) -> None:
        cls.exit_code = exit_code


class BadSettings(CliError, exit_code=2):
    """An option or a setting has a value that cannot be."""


class InputError(CliError, exit_code=3):
    """A file that cannot be read, is not an image, or cannot be written."""


class Unreachable(CliError, exit_code=4):
    """No server answers at the address."""


class Refusal(CliError, exit_code=5):
    """The server answered with a problem: its title and detail."""


class JobFailure(CliError, exit_code=6):
    """A job was accepted and then failed, expired or was canceled."""


class MissingExtra(CliError, exit_code=7):
    """An extra of the package is missing."""


class StartFailure(CliError, exit_code=8):
    """A part of the embedded mode did not start, or ended once too often."""


class PartialFailure(CliError, exit_code=9):
    """Some images of a folder failed; the others are done."""


@contextmanager
def file_errors(path: Path, verb: str) -> Iterator[None]:
    """Within this context an OSError is InputError: `path` cannot be read, or written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be {verb}: {error.strerror or error}.") from error


@contextmanager
def translate(errors: Mapping[type[Any], type[CliError]], prefix: str = "") -> Iterator[None]:
    """Within this context the errors of other layers become the command's, with their sentence.

    The first match decides, so a class stands before its parents.
    """
    try:
        yield
    except tuple(errors) as error:
        target = next(target for kind, target in errors.items() if isinstance(error, kind))
        raise target(f"{prefix}{error}") from error
