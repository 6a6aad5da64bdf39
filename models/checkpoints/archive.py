"""Torch checkpoints: a zip of one pickle and of the storages that its tensors view.

The layout is that of `torch.save` since 1.6: `<root>/data.pkl`, `<root>/data/<key>`, and where it
says so `<root>/byteorder`. Storages are not compressed, so a tensor is read by seeking; a file that
somebody packed again, compressed, is read too, only slower.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch
from torch import Tensor

from models.checkpoints.pickled import PickledTensor
from models.checkpoints.pickles import read_pickle
from models.checkpoints.stored import (
    MAX_TENSOR_BYTES,
    Checkpoint,
    StoredTensor,
    as_tensor,
    read_at,
)
from models.errors import CheckpointUnreadable

__all__ = ["open_archive"]

_MAX_PICKLE_BYTES = 8 * 2**20
"""The pickles of the released files have about a third of a megabyte."""
_MAX_INFLATED_BYTES = 2**36
"""A tensor of a compressed storage is reached from the storage's beginning, and many views of one
would take hours. Ten times what a released file takes."""
_CHUNK = 2**16
"""Inflates to 64 MB at most."""

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


@dataclass(frozen=True)
class _Member:
    """Where the bytes of a zip's member lie."""

    archive: Path
    name: str
    start: int
    stored: int
    """Bytes in the archive."""
    size: int
    """Bytes once they are inflated."""
    deflated: bool

    def read(self, start: int, count: int) -> bytearray:
        """`count` bytes from `start`."""
        if self.deflated:
            data = self._inflate(start, count)
        else:
            data = read_at(self.archive, self.start + start, count)
        if len(data) < count:
            raise CheckpointUnreadable(
                f"{self.archive} is damaged: {self.name} has fewer bytes than it should; get the "
                "file again."
            )
        return data

    def _inflate(self, start: int, count: int) -> bytearray:
        inflater, out, position = zlib.decompressobj(-15), bytearray(), 0
        with self.archive.open("rb") as file:
            file.seek(self.start)
            left = self.stored
            while len(out) < count and left and not inflater.eof:
                packed = file.read(min(_CHUNK, left))
                if not packed:
                    break
                left -= len(packed)
                try:
                    piece = inflater.decompress(packed)
                except zlib.error:
                    break
                # What of this piece lies between start and the end that is asked for.
                out += piece[max(start - position, 0) :][: count - len(out)]
                position += len(piece)
        return out


def open_archive(path: Path) -> Checkpoint:
    """The tensors of a checkpoint that `torch.save` wrote: of its `state_dict` where it has one.

    Raises:
        CheckpointUnreadable: the file is cut off or damaged, no checkpoint of torch, or would
            take more memory than any StableSR.
    """
    members = _members(path)
    root = _root(path, list(members))
    order = members.get(f"{root}byteorder")
    swapped = order is not None and order.read(0, min(order.size, 8)) == b"big"
    pickled = members[f"{root}data.pkl"]
    if pickled.size > _MAX_PICKLE_BYTES:
        raise CheckpointUnreadable(
            f"{path} is no StableSR checkpoint: its pickle has {pickled.size} bytes, while "
            f"at most {_MAX_PICKLE_BYTES} are read."
        )
    try:
        unpickled = read_pickle(bytes(pickled.read(0, pickled.size)))
    except ValueError as error:
        raise CheckpointUnreadable(f"{path} is damaged: {error}; get the file again.") from error
    value = unpickled.value
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise CheckpointUnreadable(
            f"{path} holds no tensors by name: a checkpoint is a dictionary of tensors, or has one "
            "under state_dict."
        )
    views = {
        name: (tensor, members.get(f"{root}data/{tensor.storage.key}"))
        for name, tensor in value.items()
        if isinstance(tensor, PickledTensor)
    }
    tensors = {name: _stored(path, name, *view, swapped) for name, view in views.items()}
    inflated = sum(member.size for _, member in views.values() if member and member.deflated)
    if inflated > _MAX_INFLATED_BYTES:
        raise CheckpointUnreadable(
            f"{path} is no StableSR checkpoint: {inflated} bytes would have to be inflated to read "
            f"its tensors, while at most {_MAX_INFLATED_BYTES} are."
        )
    return Checkpoint(
        path,
        tensors,
        tuple(name for name in value if name not in tensors),
        tuple(sorted(unpickled.foreign)),
        (path,),
    )


def _members(path: Path) -> dict[str, _Member]:
    try:
        with ZipFile(path) as archive:
            end = path.stat().st_size
            return {info.filename: _member(path, info, end) for info in archive.infolist()}
    # The kinds of errors that the zip module gives for a damaged directory.
    except (BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
        raise CheckpointUnreadable(
            f"{path} begins as a torch checkpoint and does not end as one ({error}): it was cut "
            f"off after {path.stat().st_size} bytes, or is damaged; get the file again."
        ) from error


def _member(path: Path, info: ZipInfo, end: int) -> _Member:
    if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is encrypted or packed in a way that torch never uses")
    header = read_at(path, info.header_offset, 30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"{info.filename} is not where the directory says")
    name, extra = struct.unpack("<2H", header[26:30])
    start = info.header_offset + 30 + name + extra
    if start + info.compress_size > end:
        raise ValueError(f"{info.filename} reaches over the end of the file")
    deflated = info.compress_type == ZIP_DEFLATED
    if not deflated and info.compress_size != info.file_size:
        raise ValueError(f"{info.filename} has two sizes")
    return _Member(path, info.filename, start, info.compress_size, info.file_size, deflated)


def _root(path: Path, names: list[str]) -> str:
    """What the members' names begin with: "archive/", or the file's name when it was saved."""
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    roots += [""] if "data.pkl" in names else []
    if len(roots) != 1:
        inside = next((n for n in names if n.endswith((".ckpt", ".safetensors", ".pt"))), None)
        advice = f": unpack it, and give {inside}" if inside else ""
        raise CheckpointUnreadable(
            f"{path} is a zip file and no torch checkpoint, which holds one data.pkl{advice}."
        )
    return roots[0]


def _stored(
    path: Path, name: str, tensor: PickledTensor, member: _Member | None, swapped: bool
) -> StoredTensor:
    """Checks a tensor against the member that holds its storage."""
    kind = tensor.storage.kind.rpartition(".")[2].removesuffix("Storage")
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise CheckpointUnreadable(
            f"{path}: {name} holds numbers of the kind {kind!r}; known are {', '.join(_DTYPES)}."
        )
    if member is None:
        raise CheckpointUnreadable(
            f"{path} is damaged: the numbers of {name} are missing; get the file again."
        )
    count, span = math.prod(tensor.shape), _span(tensor)
    held = min(member.size // dtype.itemsize, tensor.storage.count)
    # The count, too: with stride 0 a few bytes would be a tensor of any size.
    if tensor.offset + span > held or count > held:
        raise CheckpointUnreadable(
            f"{path} is damaged: {name} of shape {tensor.shape} needs "
            f"{max(tensor.offset + span, count)} numbers, and {held} are there; get the file again."
        )
    if max(count, span) * dtype.itemsize > MAX_TENSOR_BYTES:
        raise CheckpointUnreadable(
            f"{path}: {name} of shape {tensor.shape} is larger than any tensor of StableSR."
        )
    return StoredTensor(dtype, tensor.shape, partial(_read, tensor, member, dtype, swapped))


def _span(tensor: PickledTensor) -> int:
    """Numbers of the storage from the tensor's first to its last."""
    if math.prod(tensor.shape) == 0:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))


def _read(tensor: PickledTensor, member: _Member, dtype: torch.dtype, swapped: bool) -> Tensor:
    span = _span(tensor)
    if span == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    data = member.read(tensor.offset * dtype.itemsize, span * dtype.itemsize)
    if swapped:
        by_number = as_tensor(data, torch.uint8, (span, dtype.itemsize))
        numbers = by_number.flip(1).view(dtype).reshape(span)
    else:
        numbers = as_tensor(data, dtype, (span,))
    return numbers.as_strided(tensor.shape, tensor.stride).contiguous()
