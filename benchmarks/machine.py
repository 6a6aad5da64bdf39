"""The machine that a benchmark runs on, and the memory that this process takes of it."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def describe(device: torch.device) -> str:
    """Processor or GPU, and the cores used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def resident_peak(process: int | str = "self") -> int:
    """Bytes that a process had resident at most; 0 when it has ended.

    `ru_maxrss` would begin with what the process that started it had.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # In kilobytes. A process that has ended and was not waited for has no such line.
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak_memory(device: torch.device) -> int:
    """Bytes of this process: allocated at most on a GPU, else resident at most."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resident_peak()


def reset_peak_memory(device: torch.device) -> None:
    """Begins the record of `peak_memory` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all its work; clocks mean nothing before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError in the main thread when its block takes longer; None is no limit.

    A call into torch is not interrupted, but the next line of Python is not reached.
    """
    if seconds is None:
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        # Another one's, such as that of a test.
        signal.setitimer(signal.ITIMER_REAL, *timer)
