"""What machine a benchmark ran on, and how much memory a process used."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

import torch

__all__ = ["describe", "peak_memory", "synchronize"]


def describe(device: torch.device) -> str:
    """One line: processor or GPU, cores used, torch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        model = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.exists():
            found = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
            model = found[0].partition(":")[2].strip() if found else model
        name = f"{model}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}"


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated at most on a GPU, else resident at most in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what was asked; clocks mean nothing before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
