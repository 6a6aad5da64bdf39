"""The settings of a command: environment variables, with the options given over them."""

from __future__ import annotations

from cli.errors import CliError
from jobs.errors import InvalidSettings
from jobs.settings import Settings

__all__ = ["BadSettings", "load"]


class BadSettings(CliError):
    """A setting has a value that cannot be; the exit code is that of a wrong option."""

    exit_code = 2


def load(**given: str | int | None) -> Settings:
    """The settings, with the options that are not None in place of the environment's.

    Raises:
        BadSettings: a value is not possible; the message names each.
    """
    try:
        return Settings(**{key: value for key, value in given.items() if value is not None})
    except InvalidSettings as error:
        raise BadSettings(error.detail) from error
