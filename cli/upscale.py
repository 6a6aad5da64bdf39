"""`stablesr upscale`: which of its ways to work the options ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cli.options import PARALLEL, Choices, FolderFormat
from cli.settings import BadSettings

__all__ = ["ForFolders", "run"]


@dataclass(frozen=True)
class ForFolders:
    """The options that only a folder has; None and False are those that were not given."""

    output_format: FolderFormat | None = None
    recursive: bool | None = None
    overwrite: bool = False
    parallel: int | None = None


def run(
    source: Path,
    target: Path,
    choices: Choices,
    *,
    server: str | None,
    api_key: str | None,
    seeds: int | None,
    folders: ForFolders,
) -> None:
    """Upscales a file or a folder, here or through a server.

    Raises:
        BadSettings: options that do not go together.
        CliError: as the way to work raises it.
    """
    if server is not None and any(value is not None for value in choices.host().values()):
        raise BadSettings(
            "--tile-batch, --decode-tile, --compile and --devices are for this machine, not for a "
            "server."
        )
    if source.is_dir():
        _folder(source, target, choices, server, api_key, seeds, folders)
        return
    if folders != ForFolders():
        raise BadSettings(
            f"--format, --recursive, --overwrite and --parallel are for folders; {source} is none."
        )
    if seeds is not None:
        from cli import seeds as several

        if server is not None:
            several.run_remotely(source, target, server, api_key, choices, seeds)
        else:
            several.run_here(source, target, choices, seeds)
    elif server is not None:
        from cli import remote

        remote.run(source, target, server, api_key, choices)
    else:
        from cli import local

        local.run(source, target, choices)


def _folder(
    source: Path,
    target: Path,
    choices: Choices,
    server: str | None,
    api_key: str | None,
    seeds: int | None,
    folders: ForFolders,
) -> None:
    if seeds is not None:
        raise BadSettings("--seeds is for one image; a folder has one result for each.")
    if folders.parallel is not None and server is None:
        raise BadSettings("--parallel is for a server; this machine does one after the other.")
    from cli.folder.run import FolderOptions, run

    options = FolderOptions(
        output_format=(folders.output_format or FolderFormat.png).value,
        recursive=folders.recursive is not False,
        overwrite=folders.overwrite,
        parallel=folders.parallel or PARALLEL,
    )
    run(source, target, choices, options, server=server, api_key=api_key)
