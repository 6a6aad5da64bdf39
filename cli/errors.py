"""What the command can end with, each with one sentence a person can act on.

    CliError
    ├── InputError          3  no such file, not an image, an output that cannot be written
    ├── Unreachable         4  no server answers at the address
    ├── Refused             5  the server answered with a problem (its title and detail)
    ├── JobFailed           6  the job was accepted and then failed, expired or was canceled
    ├── NotInstalled        7  an extra of the package is missing
    ├── NotStarted          8  a part of the embedded mode did not start or ended for good
    └── SomeFailed          9  of a folder's images some could not be upscaled; the rest is done

The number is the exit code. 0 is success, 1 an error nobody foresaw, 2 a wrong option, and
130 an interruption with Ctrl-C.
"""

from __future__ import annotations

__all__ = [
    "CliError",
    "InputError",
    "JobFailed",
    "NotInstalled",
    "NotStarted",
    "Refused",
    "SomeFailed",
    "Unreachable",
]


class CliError(Exception):
    """An end of the command with a reason; `exit_code` is what the shell sees."""

    exit_code = 1


class InputError(CliError):
    """A file that cannot be read, is not an image, or cannot be written."""

    exit_code = 3


class Unreachable(CliError):
    """No server answers."""

    exit_code = 4


class Refused(CliError):
    """The server refused a request."""

    exit_code = 5


class JobFailed(CliError):
    """A job that ended without a result."""

    exit_code = 6


class NotInstalled(CliError):
    """Something from an extra is missing."""

    exit_code = 7


class NotStarted(CliError):
    """A part of the embedded mode did not come up, or ended once too often."""

    exit_code = 8


class SomeFailed(CliError):
    """Some images of a folder failed; the others are done."""

    exit_code = 9
