"""Fetches the released files of a preset, checks them, and converts them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.checkpoints.convert import convert
from models.checkpoints.download import download
from models.checkpoints.files import (
    OnProgress,
    WeightsProgress,
    check_room,
    clear_leftovers,
    ignore,
)
from models.checkpoints.places import CONFIG, preset_folder
from models.checkpoints.sources import Sources
from models.checkpoints.writing import Form
from models.errors import LicenceNotAccepted
from models.presets import Preset, Release

__all__ = ["is_there", "pull"]

_DOWNLOADS = ".downloads"
_HUB, _REVISION = "https://huggingface.co", "main"
# A converted folder in float16 with its text tower has 0.39 of the size of the released files.
_CONVERTED = 0.4


def is_there(preset: Preset, root: Path) -> bool:
    """Whether the preset's folder was put in place; a conversion does that when it is whole. One
    that a killed process had put aside for another is put back first."""
    folder = preset_folder(preset, root)
    if not folder.exists():
        clear_leftovers(folder)
    return (folder / CONFIG).is_file()


def pull(
    preset: Preset,
    root: Path,
    *,
    accept_licence: bool,
    on_progress: OnProgress = ignore,
    form: Form | None = None,
    keep: bool = False,
    again: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Puts the weights of a preset into `root/<preset>`, complete or not at all.

    Downloads are resumed, also those of an earlier process. Of several processes that pull into
    one root, one works and the others wait. The server is HF_ENDPOINT, else the Hugging Face hub;
    HF_TOKEN is sent to it where it is set; the proxy is that of the environment.

    Args:
        preset: whose weights.
        root: where folders of weights lie.
        accept_licence: whether the person accepts the licence of the release.
        on_progress: is called as the work goes on.
        form: how the weights are stored.
        keep: leave the downloaded files in `root/.downloads`; they are removed otherwise, once
            they are converted.
        again: replace a folder that is there.
        pause: waits a number of seconds.

    Returns:
        The folder; of a preset that comes with the package, its own.

    Raises:
        LicenceNotAccepted: `accept_licence` is false, and the weights are not here.
        DownloadFailed: the server cannot be reached, refuses, or sends other files.
        DiskFull: the disk has no room.
        CheckpointError: the files are not what they should be.
    """
    folder, release = preset_folder(preset, root), preset.release
    if release is None or (is_there(preset, root) and not again):
        return folder
    if not accept_licence:
        raise LicenceNotAccepted(
            f"The weights of {preset.name} are under the {preset.licence}, "
            f"{preset.licence_url}: accept it before they are downloaded."
        )
    form = form or Form()
    with _lock(root, preset, on_progress):
        # Another process may have done it meanwhile.
        if is_there(preset, root) and not again:
            return folder
        clear_leftovers(folder)
        downloads = root / _DOWNLOADS
        downloads.mkdir(exist_ok=True)
        _check_room(release, downloads, form)
        endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
        paths = {downloads / file.name: file for file in release.files}
        sums = {
            path: download(
                f"{endpoint}/{release.repository}/resolve/{_REVISION}/{file.name}",
                path,
                file,
                token=os.environ.get("HF_TOKEN"),
                on_progress=on_progress,
                pause=pause,
            )
            for path, file in paths.items()
        }
        convert(
            preset,
            Sources(*paths),
            folder,
            form,
            replace_folder=again,
            sums=sums,
            on_progress=on_progress,
        )
        if not keep:
            for path in paths:
                path.unlink()
    return folder


@contextmanager
def _lock(root: Path, preset: Preset, on_progress: OnProgress) -> Iterator[None]:
    """Holds the root's lock, which ends with the process at the latest."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress(WeightsProgress("wait", preset.name))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_room(release: Release, downloads: Path, form: Form) -> None:
    """Whether everything will fit that is on the disk at once. Raises DiskFull."""
    total = sum(file.size for file in release.files)
    present = sum(path.stat().st_size for path in downloads.iterdir())
    converted = int(_CONVERTED * total * form.dtype.itemsize / 2)
    check_room(downloads, max(total - present, 0) + converted)
