"""What the command can end with, one sentence and an exit code, and what is checked before work."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.errors import ImageError, InvalidSettings
from jobs.formats import examine
from jobs.settings import Settings
from stablesr_client.files import format_of

EXTRAS = {
    "worker": ("torch", "diffusers", "pyvips", "safetensors"),
    "train": ("accelerate", "tensorboard"),
    "evaluate": ("scipy", "skimage"),
}


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


def load(**options: str | int | None) -> Settings:
    """The settings: environment variables, with the options that are not None in their place."""
    with translate({InvalidSettings: BadSettings}):
        return Settings(**{key: value for key, value in options.items() if value is not None})


@contextmanager
def valid_parameters() -> Iterator[None]:
    """Within this context wrong UpscaleParameters are BadSettings, which name each wrong choice."""
    try:
        yield
    except ValidationError as error:
        texts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        faults = "; ".join(text.removeprefix(": Value error, ") for text in texts)
        raise BadSettings(faults) from error


def require_torch(
    purpose: str = "Upscaling on this machine", instead: str = ", or give a server with --server"
) -> None:
    """Ends with MissingExtra when this environment cannot run a model."""
    require("worker", purpose, instead)


def require(extra: str, purpose: str, instead: str = "") -> None:
    """Ends with MissingExtra when one of the extra's modules is missing.

    `purpose` says what needs it, `instead` what a person could do without.
    """
    for name in ("worker", extra):
        missing = [module for module in EXTRAS[name] if not importlib.util.find_spec(module)]
        if missing:
            raise MissingExtra(
                f"{purpose} needs {', '.join(missing)}: install them with "
                f'`pip install "stablesr-server[{name}]"`{instead}.'
            )


def check_input(path: Path, page: int | None = None) -> None:
    """Looks at the structure of an image file (InputError); nothing is decoded."""
    no_image = f"{path} is not an image that can be read: "
    with file_errors(path, "read"), translate({ImageError: InputError}, no_image):
        if not os.path.exists(path):
            raise InputError(f"There is no file {path}.")
        examine(path.read_bytes(), sys.maxsize, page)


def check_output(path: Path) -> str:
    """The format that `path` asks for, if it can be written there (InputError)."""
    with translate({ValueError: InputError}):
        output_format = format_of(path)
    if not os.path.isdir(path.parent):
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}.")
    # Its name may be too long, which would show when the result is there.
    with file_errors(path, "written"), suppress(FileNotFoundError):
        path.lstat()
    return output_format
