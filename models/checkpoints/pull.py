"""Fetches the released files of a preset from the Hugging Face hub, checks and converts them.

`hf_hub_download` begins each call anew (as of huggingface_hub 2.4). The files here have 6.5 GB, so
what arrives is appended to a part that stays, and the library's `http_get` resumes there.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils.tqdm import disable_progress_bars

from models.checkpoints.convert import convert
from models.checkpoints.files import (
    CONFIG,
    FileSum,
    OnProgress,
    WeightsProgress,
    check_room,
    ignore,
    is_disk_full,
    preset_folder,
    sum_of,
)
from models.checkpoints.sources import Sources
from models.checkpoints.writing import Form, clear_leftovers
from models.errors import DiskFull, DownloadFailed, LicenceNotAccepted
from models.presets import Preset, ReleasedFile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_DOWNLOADS = ".downloads"
_CONVERTED_RATIO = 0.4
"""A converted folder in float16 with its text tower has 0.39 of the size of the released files."""
_ATTEMPTS = 5
"""In a row without a byte."""
_SIZE_TOLERANCE = 0.01
"""The released sizes are known to three digits."""
_REFUSALS = {
    **dict.fromkeys((401, 403), "asks for a login ({}): set HF_TOKEN to a token that may read it"),
    **dict.fromkeys((404, 410), "is not there ({}): the file was moved or removed"),
}


def is_there(preset: Preset, root: Path) -> bool:
    """Whether the preset's folder is in its place, and so is whole. One that a killed process had
    put aside for another is put back first."""
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
) -> Path:
    """Puts the weights of a preset into `root/<preset>`, complete or not at all.

    Downloads are resumed, also those of an earlier process. Of several processes that pull into
    one root, one works and the others wait. The server is HF_ENDPOINT, else the Hugging Face hub;
    HF_TOKEN is sent to it where it is set; the proxy is that of the environment.

    Args:
        preset: whose weights; one that comes with the package has them.
        root: where folders of weights lie.
        accept_licence: whether the person accepts the licence of the release.
        form: how the weights are stored.
        keep: leave the downloaded files in `root/.downloads`.
        again: replace a folder that is there.

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
        total = sum(file.size for file in release.files)
        present = sum(path.stat().st_size for path in downloads.iterdir())
        folder_bytes = int(_CONVERTED_RATIO * total * form.torch_dtype.itemsize / 2)
        check_room(downloads, max(total - present, 0) + folder_bytes)
        sums = {
            downloads / file.name: _download(release.repository, file, downloads, on_progress)
            for file in release.files
        }
        sources = Sources(*sums)
        convert(
            preset, sources, folder, form, replace_folder=again, sums=sums, on_progress=on_progress
        )
        if not keep:
            for path in sums:
                path.unlink()
    return folder


@contextmanager
def _lock(root: Path, preset: Preset, on_progress: OnProgress) -> Iterator[None]:
    """Holds the root's lock, which ends with the process."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress(WeightsProgress("wait", preset.name))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(
    repository: str, file: ReleasedFile, folder: Path, on_progress: OnProgress
) -> FileSum:
    """Downloads a file, which is whole and checked then, or not there.

    What an attempt got is kept beside it under the file's sum (or ETag, where the sum is not
    known), so that the next one resumes, and not from a part of another file.
    """
    target = folder / file.name
    if target.exists():
        existing = sum_of(target, on_progress)
        if file.sha256 in (None, existing.sha256):
            return existing
        target.unlink()
    disable_progress_bars("huggingface_hub.http_get")
    # Its own handler would write a second line for each one of the log.
    logging.getLogger("huggingface_hub").handlers.clear()
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    url = hf_hub_url(repository, file.name, endpoint=endpoint)
    with _as_sentence(url):
        # False: the library would take one from the user's files, too.
        token = os.environ.get("HF_TOKEN") or False
        metadata = get_hf_file_metadata(url, token=token, retry_on_errors=True)
    if metadata.size and abs(metadata.size - file.size) > _SIZE_TOLERANCE * file.size:
        raise DownloadFailed(
            f"{url} is not the released file: the server has {metadata.size} bytes, and "
            f"{file.name} has about {file.size}."
        )
    # Only letters and digits: an ETag may have others.
    revision = re.sub(r"\W", "", file.sha256 or metadata.etag or "")
    part = target.with_name(f"{target.name}.{revision}.part")
    longest = metadata.size or (1 + _SIZE_TOLERANCE) * file.size
    for other in folder.glob(f"{target.name}.*part*"):
        if other != part or not revision or other.stat().st_size > longest:
            other.unlink()
    _fetch(url, part, metadata.size, file, on_progress)
    actual = sum_of(part, lambda now: on_progress(replace(now, name=file.name)))
    if re.fullmatch("[0-9a-f]{64}", revision) and revision != actual.sha256:
        part.unlink()
        raise DownloadFailed(
            f"{file.name} from {url} is not the released file: its sha256 is {actual.sha256} and "
            f"should be {revision}. What came was removed; try again, or use another source."
        )
    part.rename(target)
    return FileSum(target.name, actual.bytes, actual.sha256)


class _Part(io.FileIO):
    """A file that is appended to, with progress."""

    def __init__(self, path: Path, progress: WeightsProgress, on_progress: OnProgress) -> None:
        super().__init__(path, "ab")
        self._progress, self._on_progress = progress, on_progress

    def write(self, chunk: ReadableBuffer, /) -> int:
        count = super().write(chunk)
        self._on_progress(replace(self._progress, position=self.tell()))
        return count


def _fetch(url: str, path: Path, size: int | None, file: ReleasedFile, report: OnProgress) -> None:
    """Appends to a part what is missing. Raises DownloadFailed and DiskFull."""
    headers = {"Accept-Encoding": "identity"}
    if token := os.environ.get("HF_TOKEN"):
        # Not sent on to another host that a redirect leads to.
        headers["Authorization"] = f"Bearer {token}"
    progress, failures = WeightsProgress("download", file.name, 0, size or file.size), 0
    with _Part(path, progress, report) as part:
        while True:
            position = part.tell()
            try:
                with _as_sentence(url, part):
                    http_get(url, part, resume_size=position, headers=headers, expected_size=size)
                return
            except DownloadFailed as error:
                failures = 0 if part.tell() > position else failures + 1
                cause = error.__cause__
                if _status(cause) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    # Nothing comes after what is here; its sum tells whether it is the file.
                    return
                # The other faults of a connection are repeated by the library.
                may_pass = isinstance(cause, httpx2.ReadError) or _status(cause) >= 500
                if failures >= _ATTEMPTS or not may_pass:
                    raise
                time.sleep(2**failures)


def _status(error: BaseException | None) -> int:
    """The status that a server answered, or 0."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else 0


@contextmanager
def _as_sentence(url: str, part: _Part | None = None) -> Iterator[None]:
    """Turns the library's errors into DownloadFailed, and those of a full disk into DiskFull."""
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise DownloadFailed(f"{url} is no address to download from: {error}.") from error
    except (httpx2.HTTPError, OSError) as error:
        size, status = part.tell() if part else 0, _status(error)
        if isinstance(error, OSError) and is_disk_full(error):
            raise DiskFull(f"The disk ran full after {size} bytes of {url}.") from error
        if isinstance(error, OSError) and error.errno:  # of the part, not of the server
            raise
        if status in _REFUSALS:
            raise DownloadFailed(f"{url} {_REFUSALS[status].format(status)}.") from error
        reason = f"the server answers {status}" if status else str(error) or type(error).__name__
        rest = f" {size} bytes of it are kept for the next try." if size else ""
        raise DownloadFailed(f"{url} could not be downloaded: {reason}.{rest}") from error
