"""Opens whatever file a person gives as a checkpoint, and says what is wrong with it if it is none.

The content decides, not the name.
"""

from __future__ import annotations

from pathlib import Path

from models.checkpoints.archive import open_archive
from models.checkpoints.safetensors_file import open_safetensors
from models.checkpoints.stored import Checkpoint, read_at
from models.errors import CheckpointUnreadable

__all__ = ["open_checkpoint"]

_WANTED = "A checkpoint is a .ckpt file written by torch 1.6 or newer, or a .safetensors file."


def open_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a torch checkpoint or a safetensors file.

    Raises:
        CheckpointUnreadable: there is no such file, it cannot be read, or it is no checkpoint; the
            message says what it seems to be.
    """
    try:
        head = bytes(read_at(path, 0, 1024))
        if head.startswith(b"PK\x03\x04"):
            return open_archive(path)
        # A length of less than 4 GB, then the JSON.
        if head[4:9] == b"\0\0\0\0{":
            return open_safetensors(path)
    except FileNotFoundError:
        raise CheckpointUnreadable(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise CheckpointUnreadable(f"{path} is a folder. {_WANTED}") from None
    except OSError as error:
        raise CheckpointUnreadable(f"{path} cannot be read: {error.strerror or error}.") from error
    raise CheckpointUnreadable(f"{path} {_guess(head)}")


def _guess(head: bytes) -> str:
    """What a file that begins like this is."""
    if not head:
        return f"is empty: the download did not begin. {_WANTED}"
    if head.startswith(b"version https://git-lfs"):
        return (
            "is a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`, or "
            "download it from its page."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "is a web page, not the file: what was saved is the page about the download or an "
            "error. Download the file itself."
        )
    if head[0] == 0x80 and head[1:2] <= b"\x05":
        return (
            "is a checkpoint in the old format of torch, before 1.6, a plain pickle, which is not "
            f"read. {_WANTED}"
        )
    try:
        head.decode(errors="strict")
    except UnicodeDecodeError as error:
        # A character that the end of this piece cuts in two is no reason against text.
        if error.start < len(head) - 3:
            return f"is no checkpoint. {_WANTED}"
    if b"\0" in head:
        return f"is no checkpoint. {_WANTED}"
    return f"is a text file, no checkpoint. {_WANTED}"
