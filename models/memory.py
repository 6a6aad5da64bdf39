"""How much memory there is, and whether it has run out."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["Memory", "free_memory", "in_words", "is_out_of_memory", "resident", "trim"]

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
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
)
# What is free is not ours alone: other processes grow, and estimates are estimates.
_SHARE = 0.85


class Memory(NamedTuple):
    """Bytes."""

    device: int
    host: int
    disk: int


def in_words(size: int) -> str:
    """Bytes for a person: 3.42 GB, 118 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device had no memory left for this call."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def free_memory(device: torch.device, scratch: Path | None, limit: int | None = None) -> Memory:
    """Bytes that this process may still take: a share of what is free on `device`, on the host
    and in the folder `scratch` (None: the system's for temporary files).

    With the CPU as the device, its memory is the host's, and `device` is 0. A scratch folder that
    lies in memory has no room: keeping maps there would save none.

    Args:
        device: the networks'.
        scratch: where maps go that are kept on disk.
        limit: bytes that this process may have taken in all on the device that computes.
    """
    folder = scratch or Path(tempfile.gettempdir())
    disk = 0 if _lies_in_memory(folder) else int(shutil.disk_usage(folder).free * _SHARE)
    host = int(_free_host() * _SHARE)
    if device.type != "cuda":
        return Memory(0, host if limit is None else min(host, limit - resident()), disk)
    free, _ = torch.cuda.mem_get_info(device)
    taken = torch.cuda.memory_allocated(device)
    # What the allocator keeps for the next tensor is as good as free.
    on_device = int((free + torch.cuda.memory_reserved(device) - taken) * _SHARE)
    return Memory(on_device if limit is None else min(on_device, limit - taken), host, disk)


def resident() -> int:
    """Bytes of this process that lie in the host's memory; 0 where nobody says."""
    try:
        fields = (_PROC / "self/statm").read_text().split()
    except FileNotFoundError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Gives the memory that the C library keeps of freed tensors back to the system.

    glibc holds on to freed blocks below a size that grows with use; after a stage of many sizes
    that is a good part of the stage's peak, and the next stage's comes on top.
    """
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


_LIBC = ctypes.CDLL(ctypes.util.find_library("c"))


def _free_host() -> int:
    """Bytes: the system's, or what a control group (a container's limit) leaves of it."""
    return min([_available(), *_free_in_groups()])


def _available() -> int:
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
    except FileNotFoundError:
        # Not Linux. Half of what is built in is a guess that errs on the safe side.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    kilobytes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(kilobytes["MemAvailable"].split()[0]) * 1024


def _free_in_groups() -> list[int]:
    """What each memory limit on this process leaves, of either version of control groups."""
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / path.lstrip("/")
        # Every ancestor may set a limit. In a container the path may be the host's, which is not
        # mounted there; its own group is then the root of the mount.
        for folder in (group, *group.parents):
            if (left := _left_in(folder, *names)) is not None:
                found.append(left)
            if folder == root:
                break
    return found


def _left_in(group: Path, limit: str, usage: str) -> int | None:
    """Bytes below the limit of a group, None where it has none."""
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        fields = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if most == "max":
        return None
    # Pages of files are dropped when memory is asked for; with version 1 the totals of the
    # groups below are what the usage counts.
    stat = {name: int(value) for name, value in fields}
    prefix = "total_" if "total_active_file" in stat else ""
    files = stat[f"{prefix}active_file"] + stat[f"{prefix}inactive_file"]
    return max(int(most) - used + files, 0)


def _lies_in_memory(folder: Path) -> bool:
    """Whether the folder's filesystem keeps its files in memory."""
    try:
        lines = (_PROC / "self/mountinfo").read_text().splitlines()
    except FileNotFoundError:
        return False
    place = folder.resolve()
    # "... 4: mount point ... - type source options"; the last mount of the longest point is on top.
    mounts = []
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if place.is_relative_to(point):
            mounts.append((len(point.parts), after.split()[0]))
    deepest = max(depth for depth, _ in mounts)
    return [kind for depth, kind in mounts if depth == deepest][-1] in _IN_MEMORY
