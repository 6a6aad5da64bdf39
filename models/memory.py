"""How much memory there is, whether it has run out, and how to go on with less."""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch

from models.errors import InvalidOption

log = logging.getLogger(__name__)

T = TypeVar("T")
Size = TypeVar("Size")

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_LIBC = None if sys.platform == "win32" else ctypes.CDLL(ctypes.util.find_library("c"))
# Filesystems that are memory: what is written there is taken from the host's.
_IN_MEMORY = ("tmpfs", "ramfs")
# The CPU's allocator, the GPU's driver and its libraries have no exception class of their own.
_SIGNS = (
    "not enough memory",
    "can't allocate memory",
    # CUDA error, CUDA driver error, HIP error
    "error: out of memory",
    # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    # torch's, where it cannot ask NVML who has the memory: on MIG, in containers that lost it
    "NVML_SUCCESS ==",
)
_COUNTING = threading.Lock()
# What no request asks for; eager_offload, eager_prompt and eager_size follow from one.
DEPARTURES = ("tile_batch", "rows", "keep", "image", "eager_failure")
# What is free is not ours alone: other processes grow, and estimates are estimates.
_SHARE = 0.85
# Bytes: what a desktop has free at least; STABLESR_MEMORY_LIMIT is for what has less.
_WINDOWS = 4 * 2**30

Place = Literal["device", "host", "disk"]


class Memory(NamedTuple):
    """Bytes, by where they lie."""

    device: int = 0
    host: int = 0
    disk: int = 0

    def __add__(self, other: Memory) -> Memory:  # type: ignore[override]  # no longer tuple
        return Memory(*map(sum, zip(self, other, strict=True)))


def places(device: torch.device) -> tuple[Place, ...]:
    """Where a tensor of that device can be kept, nearest first."""
    return ("device", "host", "disk") if device.type == "cuda" else ("device", "disk")


@dataclass(frozen=True)
class MemoryBudget:
    """What a process may take, and what is decided in the plan's place; None: the plan does.

    Raises:
        InvalidOption: a number below 1.
    """

    memory_limit: int | None = None
    """Bytes that this process may take, in total, of the memory that it computes in"""
    tile_batch: int | None = None
    """Tiles in one network call"""
    decode_tile: int | None = None
    """Rows (px) that the autoencoder works on at once"""
    offload: bool | None = None
    """Whether networks that do not work wait on the host"""
    concurrent: bool = False
    """Whether other images are denoised while one is encoded or decoded, and small ones step in
    between the strips of a large one"""

    def __post_init__(self) -> None:
        for name in ("memory_limit", "tile_batch", "decode_tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOption(f"{name} is {value}, but must be at least 1.")

    def free(self, device: torch.device) -> Memory:
        """Bytes that the process may still take to compute there: a share of what is free.

        With the CPU as the device, its memory is the host's, and `device` is 0.
        """
        disk = free_disk()
        host = int(min([_available(), *_left_in_groups()]) * _SHARE)
        limit = sys.maxsize if self.memory_limit is None else self.memory_limit
        if device.type != "cuda":
            return Memory(0, min(host, limit - resident()), disk)
        free, _ = torch.cuda.mem_get_info(device)
        in_use = torch.cuda.memory_allocated(device)
        # What the allocator keeps for the next tensor is as good as free.
        free += torch.cuda.memory_reserved(device) - in_use
        return Memory(min(int(free * _SHARE), limit - in_use), host, disk)


class Fallbacks(Counter[str]):
    """How often, by what, memory ran out or a call was computed eagerly: DEPARTURES and others."""

    def add(self, what: str) -> None:
        """Counts one; several threads may."""
        with _COUNTING:
            self[what] += 1

    def note(self, what: str, before: object, after: object) -> None:
        """Counts and logs that memory ran out."""
        self.add(what)
        log.warning("plan changed, out of memory: %s was %s and is %s now", what, before, after)


def until_it_fits(
    run: Callable[[Size], T],
    size: Size,
    smaller: Callable[[Size], Size | None],
    on_change: Callable[[Size, Size], None],
) -> tuple[T, Size]:
    """What `run(size)` returns, and its size: each time that memory runs out it is run again with
    less. `smaller` gives the next size, or None where there is none: then the error is raised.
    `on_change` is called with the size that failed and the next one."""
    while True:
        try:
            return run(size), size
        except (MemoryError, RuntimeError) as error:
            after = smaller(size) if is_out_of_memory(error) else None
            if after is None:
                raise
        # Only here: the error held what was computed so far.
        trim()
        torch.cuda.empty_cache()
        on_change(size, after)
        size = after


def half(size: int) -> int | None:
    """For `until_it_fits`: down to 1."""
    return size // 2 or None


def in_words(size: int) -> str:
    """Bytes for a person: 3.42 GB, 118 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device had no memory left for this call."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def room_to_grow(free: int) -> int:
    """Bytes of the host's memory that loaded weights may take besides, where it makes them faster:
    a third of what is free beside them; the rest is for images."""
    return max(0, free // 3)


def resident() -> int:
    """Bytes of this process that lie in the host's memory; 0 where the system does not say."""
    lines = _lines("self/statm")
    return int(lines[0].split()[1]) * os.sysconf("SC_PAGE_SIZE") if lines else 0


def trim() -> None:
    """Gives the memory that the C library keeps of freed tensors back to the system.

    glibc holds on to freed blocks below a size that grows with use; after a stage of many sizes
    that is a good part of the stage's peak, and the next stage's comes on top.
    """
    if _LIBC is not None and hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def free_disk() -> int:
    """Bytes that maps may take in the folder for temporary files, a share of what is free: none
    where it lies in memory, because keeping maps there would save none, and on Windows, which has
    no calls for it."""
    if sys.platform == "win32":
        return 0
    folder = Path(tempfile.gettempdir()).resolve()
    depth, kind = -1, ""
    # "... 4: mount point ... - type source options"; the last mount of the longest point is on top.
    for line in _lines("self/mountinfo"):
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if folder.is_relative_to(point) and len(point.parts) >= depth:
            depth, kind = len(point.parts), after.split()[0]
    return 0 if kind in _IN_MEMORY else int(shutil.disk_usage(folder).free * _SHARE)


def _lines(name: str) -> list[str]:
    """Of a file of /proc; none where it is missing, as on other systems than Linux."""
    try:
        return (_PROC / name).read_text().splitlines()
    except FileNotFoundError:
        return []


def _available() -> int:
    for line in _lines("meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _WINDOWS
    # Not Linux. Half of what is built in is a guess that errs on the safe side.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_groups() -> Iterator[int]:
    """What each memory limit of this process's control groups (a container's) leaves, of either
    version of them."""
    for line in _lines("self/cgroup"):
        _, controllers, path = line.split(":", 2)
        root, names = _CGROUPS, ("memory.max", "memory.current")
        if "memory" in controllers.split(","):
            root, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif controllers:
            continue
        group = root / path.lstrip("/")
        # Every ancestor may set a limit. In a container the path may be the host's, which is not
        # mounted there; its own group is then the root of the mount.
        for folder in (group, *group.parents):
            yield from _left_in(folder, *names)
            if folder == root:
                break


def _left_in(group: Path, limit: str, usage: str) -> Iterator[int]:
    """Bytes below the limit of a group; nothing where it has none."""
    try:
        most, in_use = (group / limit).read_text().strip(), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return
    if most != "max":
        # Pages of files are dropped when memory is asked for; with version 1 the totals of the
        # groups below are what the usage counts.
        prefix = "total_" if "total_active_file" in stat else ""
        files = int(stat[f"{prefix}active_file"]) + int(stat[f"{prefix}inactive_file"])
        yield max(int(most) - in_use + files, 0)
