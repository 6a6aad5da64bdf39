"""How much memory there is, on a machine and in a container."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import memory
from models.memory import (
    Memory,
    MemoryBudget,
    half,
    in_words,
    is_out_of_memory,
    resident,
    until_it_fits,
)

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc and a /sys/fs/cgroup of our own: 1000 MiB available, no limit, disks only."""
    for name in ("proc/self", "cgroup"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: {4000 * 1024} kB\nMemAvailable: {1000 * 1024} kB\n"
    )
    (tmp_path / "proc/self/cgroup").write_text("0::/app/worker\n")
    (tmp_path / "proc/self/statm").write_text("9 100 3 4 0 6 0\n")
    (tmp_path / "proc/self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_SHARE", 1.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def group(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def test_without_a_limit_it_is_what_the_system_has_available(machine: Path) -> None:
    assert MemoryBudget().free(CPU).host == 1000 * MIB


def test_a_containers_limit_counts_and_cached_files_do_not(machine: Path) -> None:
    stat = f"anon 1\nactive_file {30 * MIB}\ninactive_file {20 * MIB}"
    used = {"memory.max": 300 * MIB, "memory.current": 200 * MIB, "memory.stat": stat}
    group(machine / "cgroup/app/worker", used)
    assert MemoryBudget().free(CPU).host == (300 - 200 + 50) * MIB


def test_a_limit_of_a_group_further_up_counts_too(machine: Path) -> None:
    stat = "active_file 0\ninactive_file 0"
    unlimited = {"memory.max": "max", "memory.current": 5, "memory.stat": stat}
    limited = {"memory.max": 100 * MIB, "memory.current": 40 * MIB, "memory.stat": stat}
    group(machine / "cgroup/app/worker", unlimited)
    group(machine / "cgroup/app", limited)
    assert MemoryBudget().free(CPU).host == 60 * MIB


def test_control_groups_of_the_first_version_are_read(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("5:cpu,cpuacct:/\n4:memory:/elsewhere/on/the/host\n")
    stat = f"active_file 1\ninactive_file 1\ntotal_active_file 0\ntotal_inactive_file {MIB}"
    names = {"memory.limit_in_bytes": 80 * MIB, "memory.usage_in_bytes": 31 * MIB}
    group(machine / "cgroup/memory", {**names, "memory.stat": stat})
    assert MemoryBudget().free(CPU).host == 50 * MIB


def test_a_limit_is_for_what_the_process_has_already_too(machine: Path) -> None:
    assert MemoryBudget(500 * MIB).free(CPU).host == 500 * MIB - resident()
    assert resident() > 0
    assert MemoryBudget(10**15).free(CPU).host == 1000 * MIB


def test_a_scratch_folder_in_memory_is_no_room(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MemoryBudget().free(CPU).disk > 0
    with (machine / "proc/self/mountinfo").open("a") as file:
        file.write(f"2 1 0:9 / {machine} rw - tmpfs tmpfs rw\n")
    monkeypatch.setattr("tempfile.tempdir", str(machine / "proc"))
    assert MemoryBudget().free(CPU).disk == 0
    with (machine / "proc/self/mountinfo").open("a") as file:
        file.write(f"3 2 8:2 / {machine / 'cgroup'} rw - xfs /dev/vdb rw\n")
    monkeypatch.setattr("tempfile.tempdir", str(machine / "cgroup"))
    assert MemoryBudget().free(CPU).disk > 0


def test_the_processors_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    for said in (
        "CUDA error: out of memory",
        "HIP error: out of memory",
        "CUDA driver error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp",
    ):
        assert is_out_of_memory(RuntimeError(said)), said
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_what_runs_out_of_memory_is_halved_until_it_fits() -> None:
    changes: list[tuple[int, int]] = []

    def run(size: int) -> str:
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return "done"

    def note(before: int, after: int) -> None:
        changes.append((before, after))

    assert until_it_fits(run, 13, half, note) == ("done", 3)
    assert changes == [(13, 6), (6, 3)]
    with pytest.raises(MemoryError):
        until_it_fits(lambda _: bytes(2**62), 2, half, note)
    assert changes[2:] == [(2, 1)]
    with pytest.raises(RuntimeError, match="illegal"):
        until_it_fits(faulty, 8, half, note)
    assert len(changes) == 3


def faulty(size: int) -> None:
    raise RuntimeError(f"CUDA error: an illegal memory access at {size}")


def test_bytes_are_told_in_words() -> None:
    assert in_words(3_420_000_000) == "3.42 GB"
    assert in_words(118_400_000) == "118 MB"
    assert Memory(1, 2, 3)._asdict() == {"device": 1, "host": 2, "disk": 3}
