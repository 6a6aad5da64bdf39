"""What is checked before work begins: settings, installed extras, input and output files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from cli.errors import BadSettings, InputError, MissingExtra, file_errors, translate
from jobs.errors import ImageError, InvalidSettings
from jobs.formats import examine
from jobs.settings import Settings
from stablesr_client.files import format_of

EXTRAS = {
    "worker": ("torch", "diffusers", "pyvips", "safetensors"),
    "train": ("accelerate", "tensorboard"),
    "evaluate": ("scipy", "skimage"),
}


def load(**options: str | int | None) -> Settings:
    """The settings: environment variables, with the options that are not None in their place."""
    with translate({InvalidSettings: BadSettings}):
        return Settings(**{key: value for key, value in options.items() if value is not None})


@contextmanager
def valid_parameters() -> Iterator[None]:
    """Within this context UpscaleParameters are made.

    Raises:
        BadSettings: a choice is not possible; the message names each.
    """
    try:
        yield
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            field = ".".join(map(str, fault["loc"]))
            faults.append(f"{field}: {fault['msg']}".removeprefix(": Value error, "))
        raise BadSettings("; ".join(faults)) from error


def require_torch(
    purpose: str = "Upscaling on this machine", instead: str = ", or give a server with --server"
) -> None:
    """Ends with the extra's name when this environment cannot run a model (MissingExtra)."""
    require("worker", purpose, instead)


def require(extra: str, purpose: str, instead: str = "") -> None:
    """Ends with the extra's name when one of its modules is missing (MissingExtra).

    Args:
        purpose: what needs it, for the message.
        instead: what a person could do without.
    """
    for name in ("worker", extra):
        missing = [module for module in EXTRAS[name] if not importlib.util.find_spec(module)]
        if missing:
            raise MissingExtra(
                f"{purpose} needs {', '.join(missing)}: install them with "
                f'`pip install "stablesr-server[{name}]"`{instead}.'
            )


def check_input(path: Path) -> None:
    """Looks at the structure of an image file (InputError); nothing is decoded."""
    no_image = f"{path} is not an image that can be read: "
    with file_errors(path, "read"), translate({ImageError: InputError}, no_image):
        if not path.exists():
            raise InputError(f"There is no file {path}.")
        examine(path.read_bytes(), sys.maxsize)


def check_output(path: Path) -> str:
    """The format that `path` asks for, if it can be written there (InputError)."""
    with translate({ValueError: InputError}):
        output_format = format_of(path)
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}.")
    return output_format
