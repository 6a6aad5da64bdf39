"""Whole feature maps between two passes: on the device, on the host or on disk.

A map is held in blocks of consecutive rows, made when first written and dropped as soon as the
pass that reads the map for the last time has gone by. Within a block the layout is rows, columns,
channels: a strip is one contiguous region of it, and a channels-last tensor without a copy.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, cast

import torch
from torch import Tensor

from models.errors import ScratchFull
from models.strips.settings import Keep
from models.strips.statistics import Statistics

__all__ = ["FeatureMap", "MapStore"]

# Granularity in which a map is freed: a 32nd of it, or a strip. Bounds open files, too.
_BLOCKS = 32


class _Block(Protocol):
    """Rows of a map; positions count from the block's first row."""

    def read(self, top: int, out: Tensor) -> None:
        """Fills `out`, (n, width, channels), with rows from `top` on."""

    def write(self, top: int, rows: Tensor) -> None: ...

    def free(self) -> None: ...


class _InMemory:
    def __init__(self, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype):
        self.cells = torch.empty(shape, device=device, dtype=dtype)

    def read(self, top: int, out: Tensor) -> None:
        out.copy_(self.cells[top : top + len(out)])

    def write(self, top: int, rows: Tensor) -> None:
        self.cells[top : top + len(rows)].copy_(rows)

    def free(self) -> None:
        del self.cells


class _OnDisk:
    """A file without a name: it is gone when it is closed, or when the process dies.

    Read and written by explicit calls, because pages of a mapping would count as the process's.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, folder: Path | None):
        self._row = shape[1] * shape[2] * dtype.itemsize
        self._dtype = dtype
        self._folder = folder
        with _room(folder):
            made = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # `free` closes it
        self._file = cast(BinaryIO, made)

    def read(self, top: int, out: Tensor) -> None:
        buffer = torch.empty(out.shape, dtype=self._dtype) if out.is_cuda else out
        left, at = _bytes(buffer), top * self._row
        while left:
            got = os.preadv(self._file.fileno(), [left], at)
            if not got:
                raise EOFError(f"The scratch file ends at byte {at}, inside a feature map.")
            left, at = left[got:], at + got
        if buffer is not out:
            out.copy_(buffer)

    def write(self, top: int, rows: Tensor) -> None:
        left, at = _bytes(rows.cpu().contiguous()), top * self._row
        while left:
            with _room(self._folder):
                put = os.pwritev(self._file.fileno(), [left], at)
            left, at = left[put:], at + put

    def free(self) -> None:
        self._file.close()


@contextmanager
def _room(folder: Path | None) -> Iterator[None]:
    """Names the folder where the system has no room left in it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ScratchFull(
            f"There is no room left in {folder or tempfile.gettempdir()} for the feature maps of "
            f"this image ({error.strerror}); name a folder on a larger disk, or a smaller image."
        ) from error


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host."""
    return tensor.view(-1).view(torch.uint8).numpy().data


class FeatureMap:
    """One layer's output, (channels, height, width)."""

    def __init__(
        self, store: MapStore, channels: int, height: int, width: int, *, normalized: bool
    ) -> None:
        self.channels, self.height, self.width = channels, height, width
        self._store = store
        self._normalized = normalized
        self._block_rows = min(height, max(store.rows, -(-height // _BLOCKS)))
        self._blocks: dict[int, _Block] = {}
        self._statistics: Statistics | None = None

    @property
    def statistics(self) -> Statistics:
        """Of all rows written so far, for the group norm that reads this map."""
        assert self._statistics is not None, "nothing is written, or no norm was announced"
        return self._statistics

    @property
    def nbytes(self) -> int:
        """Of the whole map."""
        return self.height * self.width * self.channels * self._store.itemsize

    @property
    def block_bytes(self) -> int:
        """Of what is made and freed at once."""
        return self._block_rows * self.width * self.channels * self._store.itemsize

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows (1, channels, n, width) on the network's device; not to be written to."""
        shape = (bottom - top, self.width, self.channels)
        parts = list(self._parts(top, bottom))
        store = self._store
        number, at, count = parts[0]
        block = self._blocks[number]
        if len(parts) == 1 and isinstance(block, _InMemory) and store.in_place:
            out = block.cells[at : at + count]
        else:
            out = torch.empty(shape, device=store.device, dtype=store.dtype)
            filled = 0
            for number, at, count in parts:
                self._blocks[number].read(at, out[filled : filled + count])
                filled += count
        return out.permute(2, 0, 1)[None]

    def rehearse(self) -> None:
        """Passes for a map that is written, without holding anything."""
        self._statistics = Statistics.unknown(self.height * self.width, self.channels)

    def write(self, top: int, rows: Tensor) -> None:
        """Rows (1, channels, n, width), from the first to the last; again where that failed.

        Raises:
            ScratchFull: they are kept on disk and it has no room.
        """
        cells = rows[0].permute(1, 2, 0)
        written = 0
        for number, at, count in self._parts(top, top + len(cells)):
            if number not in self._blocks:
                self._blocks[number] = self._store.block(self._shape(number))
            self._blocks[number].write(at, cells[written : written + count])
            written += count

    def counted(self, rows: Tensor) -> Statistics | None:
        """The statistics with these rows among them, for `count`; None if no norm reads them."""
        if not self._normalized:
            return None
        found = Statistics.of(rows)
        return self._statistics.merged(found) if self._statistics else found

    def count(self, statistics: Statistics | None) -> None:
        """Takes what `counted` gave. It cannot fail, so that a strip is counted once or not."""
        self._statistics = statistics

    def release(self, before: int) -> None:
        """Frees what holds only rows above `before`."""
        for number in list(self._blocks):
            if min((number + 1) * self._block_rows, self.height) <= before:
                self._drop(number)

    def free(self) -> None:
        """Frees all that is left."""
        for number in list(self._blocks):
            self._drop(number)

    def _drop(self, number: int) -> None:
        self._blocks.pop(number).free()
        self._store.returned(self._shape(number))

    def _parts(self, top: int, bottom: int) -> Iterator[tuple[int, int, int]]:
        """(block, first row in it, rows) of the rows asked for."""
        while top < bottom:
            number, at = divmod(top, self._block_rows)
            count = min(self._block_rows - at, bottom - top)
            yield number, at, count
            top += count

    def _shape(self, number: int) -> tuple[int, int, int]:
        rows = min(self._block_rows, self.height - number * self._block_rows)
        return rows, self.width, self.channels


class MapStore:
    """Where feature maps are kept; closing it frees them all.

    Args:
        keep: on the device, on the host or on disk.
        device: where the network runs and where strips are read to.
        dtype: of maps and strips.
        rows: of a strip, at most.
        scratch: folder for the files; None is the system's.
    """

    def __init__(
        self, keep: Keep, device: torch.device, dtype: torch.dtype, rows: int, scratch: Path | None
    ) -> None:
        self.device, self.dtype, self.rows = device, dtype, rows
        self._keep: Keep = keep
        self._scratch = scratch
        self._maps: list[FeatureMap] = []
        self.held = 0
        """Bytes of maps held now."""
        self.peak = 0
        """Bytes of maps held at most so far."""

    @property
    def in_place(self) -> bool:
        """Whether maps are kept where strips are wanted."""
        return self._keep == "device" or (self._keep == "host" and self.device.type == "cpu")

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    def new(self, channels: int, height: int, width: int, *, normalized: bool) -> FeatureMap:
        """A map that takes no room until it is written; `normalized` if a group norm reads it."""
        made = FeatureMap(self, channels, height, width, normalized=normalized)
        self._maps.append(made)
        return made

    def block(self, shape: tuple[int, int, int]) -> _Block:
        """Room for (rows, width, channels)."""
        made: _Block
        if self._keep == "disk":
            made = _OnDisk(shape, self.dtype, self._scratch)
        else:
            device = self.device if self._keep == "device" else torch.device("cpu")
            made = _InMemory(shape, device, self.dtype)
        self.held += self._size(shape)
        self.peak = max(self.peak, self.held)
        return made

    def returned(self, shape: tuple[int, int, int]) -> None:
        """A block of this shape was freed."""
        self.held -= self._size(shape)

    def close(self) -> None:
        """Frees all maps."""
        for feature_map in self._maps:
            feature_map.free()
        self._maps.clear()

    def __enter__(self) -> MapStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _size(self, shape: tuple[int, int, int]) -> int:
        return shape[0] * shape[1] * shape[2] * self.itemsize
