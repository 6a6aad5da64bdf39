"""Whole feature maps between two passes: on the device, on the host or on disk.

A map is held in blocks of consecutive rows, allocated when first written and freed as soon as the
pass that reads the map for the last time has gone by. Within a block the layout is rows, columns,
channels: a strip is one contiguous region of it, and a channels-last tensor without a copy.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import BinaryIO, Literal, cast

import torch
from torch import Tensor

from models.errors import ScratchFull
from models.statistics import Statistics

Keep = Literal["device", "host", "disk"]
"""Where feature maps wait between two layers."""

# Granularity in which a map is freed: a 32nd of it, or a strip. Bounds open files, too.
_BLOCKS = 32


@dataclass(frozen=True)
class StripConfig:
    """Height of the strips and where whole feature maps are kept.

    A strip has `height` rows of the larger of a layer's two maps, at every level. A level of half
    the size has half the pixels in a row and up to twice the channels, so strips of one height
    take about the same memory at all levels, and the low levels are cut into few.
    """

    height: int = 64
    """Rows of a feature map that are worked on at once, at least 1; halos come on top."""
    keep: Keep = "device"
    attention_keys: int = 65_536
    """Latent pixels up to which the middle attention is exact; above, keys are averaged."""

    def __post_init__(self) -> None:
        if self.height < 1:
            raise ValueError(f"A strip of {self.height} rows is none; at least 1 is needed.")
        if self.attention_keys < 1:
            raise ValueError(f"{self.attention_keys} attention keys are none; give at least 1.")


class _File:
    """A block on disk, in a file without a name: it is gone when it is closed, or when the process
    dies. Read and written by explicit calls: pages of a mapping would count as the process's."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self._row, self._dtype = shape[1] * shape[2] * dtype.itemsize, dtype
        with _name_when_full():
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # `close` closes it
        self._file = cast(BinaryIO, file)

    def read(self, top: int, out: Tensor) -> None:
        """Fills `out`, (n, width, channels), with the block's rows from `top` on."""
        buffer = torch.empty(out.shape, dtype=self._dtype) if out.is_cuda else out
        rest, offset = _bytes(buffer), top * self._row
        while rest:
            count = os.preadv(self._file.fileno(), [rest], offset)
            if not count:
                raise EOFError(f"The scratch file ends at byte {offset}, inside a feature map.")
            rest, offset = rest[count:], offset + count
        if buffer is not out:
            out.copy_(buffer)

    def write(self, top: int, rows: Tensor) -> None:
        rest, offset = _bytes(rows.cpu().contiguous()), top * self._row
        while rest:
            with _name_when_full():
                count = os.pwritev(self._file.fileno(), [rest], offset)
            rest, offset = rest[count:], offset + count

    def close(self) -> None:
        self._file.close()


@contextmanager
def _name_when_full() -> Iterator[None]:
    """Names the system's folder of temporary files where the system has no room left in it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ScratchFull(
            f"There is no room left in {tempfile.gettempdir()} for the feature maps of "
            f"this image ({error.strerror}); name a folder on a larger disk, or a smaller image."
        ) from error


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host."""
    return tensor.view(-1).view(torch.uint8).numpy().data


class FeatureMap:
    """One layer's output, (channels, height, width); `with_statistics` if a group norm reads it."""

    def __init__(
        self, store: MapStore, channels: int, height: int, width: int, *, with_statistics: bool
    ) -> None:
        self.channels, self.height, self.width = channels, height, width
        self._store = store
        self._row_nbytes = width * channels * store.dtype.itemsize
        self._block_rows = min(height, max(store.config.height, -(-height // _BLOCKS)))
        self._blocks: dict[int, Tensor | _File] = {}
        self._with_statistics = with_statistics
        self._statistics: dict[int, Statistics] = {}

    @property
    def statistics(self) -> Statistics:
        """Of all rows that were written, for the group norm that reads this map."""
        return reduce(Statistics.merge, self._statistics.values())

    @property
    def nbytes(self) -> int:
        """Of the whole map."""
        return self.height * self._row_nbytes

    @property
    def nbytes_now(self) -> int:
        """Of the blocks that there are."""
        return sum(self._rows(number) for number in self._blocks) * self._row_nbytes

    @property
    def block_nbytes(self) -> int:
        """Of what is allocated and freed at once."""
        return self._block_rows * self._row_nbytes

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows (1, channels, n, width) on the network's device; not to be written to."""
        parts = list(self._parts(top, bottom))
        store = self._store
        number, first, count = parts[0]
        block = self._blocks[number]
        if len(parts) == 1 and store.in_place and isinstance(block, Tensor):
            out = block[first : first + count]
        else:
            shape = (bottom - top, self.width, self.channels)
            out = torch.empty(shape, device=store.device, dtype=store.dtype)
            end = 0
            for number, first, count in parts:
                block, part = self._blocks[number], out[end : end + count]
                if isinstance(block, Tensor):
                    part.copy_(block[first : first + count])
                else:
                    block.read(first, part)
                end += count
        return out.permute(2, 0, 1)[None]

    def write(self, top: int, rows: Tensor) -> None:
        """Rows (1, channels, n, width), from the first to the last; again where that failed: the
        statistics are of what was written last from a row on.

        Raises:
            ScratchFull: they are kept on disk and it has no room.
        """
        pixels = rows[0].permute(1, 2, 0)
        end = 0
        for number, first, count in self._parts(top, top + len(pixels)):
            if number not in self._blocks:
                shape = self._rows(number), self.width, self.channels
                self._blocks[number] = self._store.allocate(shape)
            block, part = self._blocks[number], pixels[end : end + count]
            if isinstance(block, Tensor):
                block[first : first + count].copy_(part)
            else:
                block.write(first, part)
            end += count
        if self._with_statistics:
            self._statistics[top] = Statistics.of(rows)

    def release(self, before: int) -> None:
        """Frees what holds only rows above `before`."""
        for number in list(self._blocks):
            if min((number + 1) * self._block_rows, self.height) <= before:
                block = self._blocks.pop(number)
                if isinstance(block, _File):
                    block.close()
        if before >= self.height:
            self._statistics.clear()

    def _parts(self, top: int, bottom: int) -> Iterator[tuple[int, int, int]]:
        """(block, first row in it, rows) of these rows."""
        while top < bottom:
            number, first = divmod(top, self._block_rows)
            count = min(self._block_rows - first, bottom - top)
            yield number, first, count
            top += count

    def _rows(self, number: int) -> int:
        """Of a block."""
        return min(self._block_rows, self.height - number * self._block_rows)


class MapStore:
    """Where feature maps are kept; closing it frees them all.

    Args:
        config: where, and how many rows are written at once.
        device: where the network runs and where strips are read to.
        dtype: of maps and strips.
    """

    def __init__(self, config: StripConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self._maps: list[FeatureMap] = []

    @property
    def nbytes(self) -> int:
        """Of all maps now."""
        return sum(feature_map.nbytes_now for feature_map in self._maps)

    @property
    def in_place(self) -> bool:
        """Whether maps are kept where strips are read to."""
        keep = self.config.keep
        return keep == "device" or (keep == "host" and self.device.type == "cpu")

    def new(self, channels: int, height: int, width: int, *, with_statistics: bool) -> FeatureMap:
        """A map that takes no room until it is written."""
        feature_map = FeatureMap(self, channels, height, width, with_statistics=with_statistics)
        self._maps.append(feature_map)
        return feature_map

    def allocate(self, shape: tuple[int, int, int]) -> Tensor | _File:
        """Room for (rows, width, channels)."""
        if self.config.keep == "disk":
            return _File(shape, self.dtype)
        device = self.device if self.config.keep == "device" else "cpu"
        return torch.empty(shape, device=device, dtype=self.dtype)

    def close(self) -> None:
        for feature_map in self._maps:
            feature_map.release(feature_map.height)
        self._maps.clear()

    def __enter__(self) -> MapStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
