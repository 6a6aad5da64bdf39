"""Checkpoint files: zip archives of torch and safetensors, mapped and read tensor by tensor.

Both are read by their own libraries. Of an archive that is `torch.load(weights_only=True)`, which
calls nothing but what rebuilds tensors. The released files also name classes of Lightning: on
torch's allow-list these names stand for a stub that keeps nothing, so nothing is imported or run.
"""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.errors import CheckpointUnreadable

_MAX_PICKLE_BYTES = 8 * 2**20
"""The pickles of the released files have about a third of a megabyte."""
_MAX_UNPACKED_BYTES = 2**33
"""Of a compressed archive, which torch unpacks into memory. The released files have 6.5 GB."""
_MAX_RESIDENT_BYTES = 2**29
"""Read pages of a mapped file count as memory of the process until the file is mapped anew."""
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, *_INTEGERS)
_ZIP_ERRORS = (BadZipFile, NotImplementedError, ValueError, struct.error, EOFError, zlib.error)
"""What the zip module raises for a damaged file."""
_ADVICE = "A checkpoint is a .ckpt file written by torch 1.6 or newer, or a .safetensors file."


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Reads it into memory, contiguous and on the host.

    Raises:
        CheckpointUnreadable: the file has changed since it was opened.
    """


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file or a folder by name; none of them is in memory."""

    path: Path
    tensors: Mapping[str, LazyTensor]
    others: tuple[str, ...] = ()
    """Names that hold something else."""
    foreign: tuple[str, ...] = ()
    """Classes and functions in the file that have nothing to do with tensors."""
    files: tuple[Path, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def open_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a torch checkpoint or a safetensors file; the content decides, not the name.

    Raises:
        CheckpointUnreadable: it cannot be read, or is no checkpoint; the message says what it is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if head.startswith(b"PK\x03\x04"):
            return _open_archive(path)
        # A length of less than 4 GB, then the JSON.
        if head[4:9] == b"\0\0\0\0{":
            return open_safetensors(path)
    except FileNotFoundError:
        raise CheckpointUnreadable(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise CheckpointUnreadable(f"{path} is a folder. {_ADVICE}") from None
    except OSError as error:
        raise CheckpointUnreadable(f"{path} cannot be read: {error.strerror or error}.") from error
    raise CheckpointUnreadable(f"{path} {_guess(head)}")


def open_safetensors(path: Path) -> Checkpoint:
    """The tensors of a safetensors file. Raises CheckpointUnreadable."""
    return _MappedFile(path, lambda: load_file(path)).checkpoint()


def _open_archive(path: Path) -> Checkpoint:
    """The tensors of a file that `torch.save` wrote: of its `state_dict` where it has one."""
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            is_stored = all(member.compress_type == ZIP_STORED for member in members)
            unpacked_bytes = 0 if is_stored else sum(member.file_size for member in members)
            # Torch does not notice damage in what it unpacks.
            if 0 < unpacked_bytes <= _MAX_UNPACKED_BYTES and (name := archive.testzip()):
                raise BadZipFile(f"{name} is damaged")
    except _ZIP_ERRORS as error:
        raise CheckpointUnreadable(
            f"{path} begins as a torch checkpoint and does not end as one ({error}): it was cut "
            "off or is damaged; get the file again."
        ) from error
    pickles = [m for m in members if m.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        names = [m.filename for m in members]
        inside = [name for name in names if name.endswith((".ckpt", ".safetensors", ".pt"))]
        advice = f": unpack it, and give {inside[0]}" if inside else ""
        raise CheckpointUnreadable(
            f"{path} is a zip file and no torch checkpoint, which holds one data.pkl{advice}."
        )
    for what, size, limit in (
        ("its pickle has", pickles[0].file_size, _MAX_PICKLE_BYTES),
        ("unpacked it has", unpacked_bytes, _MAX_UNPACKED_BYTES),
    ):
        if size > limit:
            raise CheckpointUnreadable(
                f"{path} is no StableSR checkpoint: {what} {size} bytes, and at most {limit} are "
                "read."
            )
    with _as_sentence(path):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    stubs: list[Any] = [(_Stub, name) for name in foreign]

    def load() -> Mapping[str, object]:
        with torch.serialization.safe_globals(stubs):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_stored)
        if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
            value = value["state_dict"]
        if not isinstance(value, dict):
            raise CheckpointUnreadable(
                f"{path} holds no tensors by name: a checkpoint is a dictionary of tensors, or has "
                "one under state_dict."
            )
        return {name: item for name, item in value.items() if isinstance(name, str)}

    return _MappedFile(path, load, is_mapped=is_stored).checkpoint(tuple(sorted(foreign)))


class _Stub:
    """Stands for every foreign class and function: takes any arguments and state, keeps none."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _MappedFile:
    """A file of tensors; it is mapped anew when much of it has been read."""

    def __init__(
        self, path: Path, load: Callable[[], Mapping[str, object]], *, is_mapped: bool = True
    ) -> None:
        self._path, self._load, self._is_mapped = path, load, is_mapped
        self._size = path.stat().st_size
        self._map()

    def _map(self) -> None:
        self._resident_bytes = 0
        with _as_sentence(self._path):
            self._items = self._load()

    def checkpoint(self, foreign: tuple[str, ...] = ()) -> Checkpoint:
        """Looks at every tensor, and reads none."""
        tensors: dict[str, LazyTensor] = {}
        for name, item in self._items.items():
            if not isinstance(item, Tensor) or item.is_quantized:
                continue
            # Only tensors whose numbers lie in the file.
            if (item.layout, item.device.type) == (torch.strided, "cpu"):
                self._check(name, item)
                tensors[name] = LazyTensor(item.dtype, tuple(item.shape), partial(self._read, name))
        others = tuple(name for name in self._items if name not in tensors)
        return Checkpoint(self._path, tensors, others, foreign, (self._path,))

    def _check(self, name: str, tensor: Tensor) -> None:
        if tensor.dtype not in _DTYPES:
            raise CheckpointUnreadable(
                f"{self._path}: {name} has the type {tensor.dtype}, which is not read."
            )
        # With stride 0 a few bytes would be a tensor of any size.
        available = tensor.untyped_storage().nbytes() // tensor.itemsize
        if tensor.numel() > available:
            raise CheckpointUnreadable(
                f"{self._path} is damaged: {name} of shape {tuple(tensor.shape)} needs "
                f"{tensor.numel()} numbers, and {available} are there; get the file again."
            )

    def _read(self, name: str) -> Tensor:
        # A page beyond the end of a mapped file would end the process.
        if self._path.stat().st_size != self._size:
            raise CheckpointUnreadable(
                f"{self._path} was cut off while it was read, before {name}."
            )
        if self._is_mapped and self._resident_bytes > _MAX_RESIDENT_BYTES:
            self._items = {}  # lets go of the pages
            self._map()
        tensor = self._items[name]
        assert isinstance(tensor, Tensor)  # as it was when the file was opened
        self._resident_bytes += tensor.nbytes
        return tensor.detach().clone(memory_format=torch.contiguous_format)


@contextmanager
def _as_sentence(path: Path) -> Iterator[None]:
    """Turns the errors of the libraries into one sentence."""
    try:
        yield
    except (CheckpointUnreadable, OSError, MemoryError):
        raise
    # A file that makes no sense makes torch raise errors of almost every kind.
    except Exception as error:
        paragraphs = [part.strip() for part in str(error).split("\n\n") if part.strip()]
        fault = "was cut off or is damaged"
        if isinstance(error, pickle.UnpicklingError):
            fault = "holds what cannot be read without running it"
            # The first one gives the advice to run it.
            paragraphs = paragraphs[1:] or paragraphs
        reason = paragraphs[0].removesuffix(".") if paragraphs else type(error).__name__
        raise CheckpointUnreadable(
            f"{path} {fault} ({reason:.200}); get the file again."
        ) from error


def _guess(head: bytes) -> str:
    """What a file that begins like this is."""
    if not head:
        return f"is empty: the download did not begin. {_ADVICE}"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not the file: download the file itself."
    if head[0] == 0x80 and head[1:2] <= b"\x05":
        return f"is a checkpoint in the old format of torch, a plain pickle. {_ADVICE}"
    # The end of this piece may cut a character in two.
    text = head.decode(errors="ignore")
    if b"\0" in head or len(text.encode()) < len(head) - 3:
        return f"is no checkpoint. {_ADVICE}"
    return f"is a text file, no checkpoint. {_ADVICE}"


def read_index(index: Path) -> list[Path]:
    """The files that an index lists; they need not be there. Raises CheckpointUnreadable: the
    index is damaged, or names something that is not beside it."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        strangers = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointUnreadable(f"{index} is damaged: {error!r:.200}.") from error
    if strangers:
        raise CheckpointUnreadable(f"{index} names {strangers[0]}, which is no file beside it.")
    return [index.parent / name for name in names]


def join(folder: Path, parts: Iterable[Checkpoint]) -> Checkpoint:
    """Several files as one checkpoint."""
    parts = list(parts)
    return Checkpoint(
        folder,
        tensors={name: tensor for part in parts for name, tensor in part.tensors.items()},
        others=tuple(name for part in parts for name in part.others),
        foreign=tuple(sorted({name for part in parts for name in part.foreign})),
        files=tuple(path for part in parts for path in part.files),
    )
