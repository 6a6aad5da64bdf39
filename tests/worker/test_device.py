"""The device and its precision; and whole workers on GPUs of several kinds, played by the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.schema import JobState
from jobs.settings import Settings
from models.compiler import CompileOptions
from models.memory import MemoryBudget
from tests.worker.double import DEVICE_ERROR
from tests.worker.gpu_double import (
    HEALTHY,
    LOST,
    NO_NUMBERS,
    UUID,
    WITHOUT_BFLOAT16,
    WITHOUT_KERNELS,
    WRONG,
    Gpu,
    playing,
    serve,
)
from tests.worker.processes import House, WorkerProcess, wait_for
from worker.device import (
    StartupError,
    UnfitDevice,
    budget_of,
    check_device,
    choose_device,
    choose_dtype,
    compile_options_of,
    devices_of,
    is_device_lost,
    load,
    named_device,
)
from worker.supervisor import EXIT_DEVICE_LOST


def test_what_the_settings_decide_of_memory_reaches_the_plan() -> None:
    settings = Settings(memory_limit="6GB", tile_batch=4)
    assert budget_of(settings, jobs=2, decode_tile=32) == MemoryBudget(
        memory_limit=6 * 10**9,
        tile_batch=4,
        decode_tile=32,
        concurrent=True,
    )
    assert budget_of(Settings(), jobs=1) == MemoryBudget()


def test_what_the_settings_decide_of_compiling_reaches_the_network_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    cache = tmp_path / "stablesr" / "compiled"
    settings = Settings(compile="on", fixed_batch=3)
    assert compile_options_of(settings) == CompileOptions("on", cache, 3)
    assert compile_options_of(Settings()) == CompileOptions("off", cache, None)


def test_one_image_goes_over_one_device_or_those_that_are_named() -> None:
    assert devices_of(Settings(device="cuda:1")) == ["cuda:1"]
    assert devices_of(Settings(device="cuda:0, cuda:2")) == ["cuda:0", "cuda:2"]
    with pytest.raises(StartupError, match="has cuda:0 twice"):
        devices_of(Settings(device="cuda:0,cuda:1,cuda:0"))


def test_a_device_can_be_named_that_is_not_here() -> None:
    assert named_device("cuda:3") == torch.device("cuda", 3)
    assert named_device("auto") == torch.device("cpu")
    with pytest.raises(StartupError, match="'tpu9', but cpu and cuda"):
        named_device("tpu9")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: device-side assert triggered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "CUDA error: unknown error",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`",
        "CUDA driver error: unknown error",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "HIP error: unspecified launch failure",
    ],
)
def test_a_gpu_with_a_fault_is_lost(said: str) -> None:
    assert is_device_lost(torch.AcceleratorError(f"{said}\nFor debugging consider ..."))
    assert not is_device_lost(ValueError(said))


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp",
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: the provided PTX was compiled with an unsupported toolchain.",
        "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`",
        "HIP error: invalid device function",
    ],
)
def test_a_gpu_that_has_no_memory_or_no_kernel_for_a_call_is_not_lost(said: str) -> None:
    assert not is_device_lost(RuntimeError(said))


def test_a_cpu_computes_in_float32_and_a_gpu_in_bfloat16_unless_told_otherwise() -> None:
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
    assert choose_dtype("float16", torch.device("cpu")) is torch.float32
    assert choose_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert choose_dtype("float16", torch.device("cuda")) is torch.float16


def test_gpus_of_which_one_has_no_bfloat16_compute_in_float16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (7, 5) if device == old else (8, 0)
    )
    assert choose_dtype("auto", new) is torch.bfloat16
    assert choose_dtype("bfloat16", old) is torch.bfloat16
    assert choose_dtype("auto", torch.device("cuda", 2)) is torch.bfloat16, "it is not here"
    assert caplog.messages == []
    assert choose_dtype("auto", new, old) is torch.float16
    assert caplog.messages == ["the precision is float16: bfloat16 takes compute capability 8.0"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_makes_no_device_unfit(dtype: torch.dtype) -> None:
    with playing(HEALTHY):
        check_device(torch.device("cuda", 0), dtype)


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (WITHOUT_KERNELS, r"\(Tesla K80, compute capability 3.7\) .* sm_75, sm_80, sm_90 only\.$"),
        (WRONG, r"\(NVIDIA H200, compute capability 9.0\) .* in float32 are wrong, by 0\.1"),
        (NO_NUMBERS, "are wrong, by nan"),
        (Gpu(error="no engine for it"), r": no engine for it\.$"),
    ],
)
def test_a_gpu_that_does_not_compute_is_refused_in_one_sentence(gpu: Gpu, message: str) -> None:
    with playing(gpu), pytest.raises(UnfitDevice, match=message) as refusal:
        check_device(torch.device("cuda", 0), torch.float32)
    assert "\n" not in str(refusal.value)


def test_gpus_have_the_numbers_of_nvidia_smi_unless_the_environment_says_otherwise() -> None:
    code = "import os, worker; print(os.environ['CUDA_DEVICE_ORDER'])"
    env = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_ORDER"}

    def order(**more: str) -> str:
        command = [sys.executable, "-c", code]
        return (
            subprocess.run(command, env=env | more, check=True, stdout=subprocess.PIPE)
            .stdout.decode()
            .strip()
        )

    assert order() == "PCI_BUS_ID"
    assert order(CUDA_DEVICE_ORDER="FASTEST_FIRST") == "FASTEST_FIRST"


def test_a_device_that_does_not_exist_is_refused_in_one_sentence() -> None:
    with pytest.raises(StartupError, match=r"^STABLESR_DEVICE is 'abacus', which cannot be used"):
        choose_device("abacus")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "cpu,nonsense"}, "'nonsense', which cannot be used here"),
        ({"device": "cuda:1,cuda:1"}, "has cuda:1 twice"),
    ],
)
def test_what_several_devices_cannot_do_is_refused_in_a_sentence(
    values: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.device.StableSR", None)
    with pytest.raises(StartupError, match=message):
        load(Settings(**values), jobs=1)


def test_tiles_go_over_all_cpus_that_are_named_in_float32_which_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sr = load(Settings(dtype="bfloat16", device="cpu,cpu"), jobs=1)
    assert list(map(str, sr.denoiser.devices)) == ["cpu", "cpu"]
    assert sr.upscale(torch.rand(1, 3, 24, 24)).shape == (1, 3, 96, 96)
    assert sr.dtype is torch.float32
    assert caplog.messages == ["the precision is bfloat16, but a CPU computes in float32"]


def start(house: House, gpu: Gpu | None, **settings: Any) -> WorkerProcess:
    changed = house.settings.model_copy(update={"device": "cuda:0", **settings})
    return WorkerProcess(serve, changed, house.folder / "log", gpu)


def lines(house: House) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (house.folder / "log").read_text().splitlines()]


@pytest.mark.parametrize(("gpu", "dtype"), [(HEALTHY, "bfloat16"), (WITHOUT_BFLOAT16, "float16")])
def test_a_worker_says_what_its_gpu_is_and_computes_in_what_that_can(
    house: House, gpu: Gpu, dtype: str
) -> None:
    with start(house, gpu) as worker:
        assert house.ended(house.submit()).state is JobState.SUCCEEDED
        assert [info.device for info in house.queue.capacity().workers] == ["cuda:0"]
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    said = [line["event"] for line in lines(house)]
    name = "{} ({}, compute capability {}.{})".format("cuda:0", gpu.name, *gpu.capability)
    assert f"{name}, UUID {UUID}, 16.00 GB, computes in {dtype}" in said
    assert ("the precision is float16" in " ".join(said)) == (dtype == "float16")
    assert [line["dtype"] for line in lines(house) if line["event"] == "loaded"] == [
        f"torch.{dtype}"
    ]


def test_a_worker_that_finds_no_gpu_says_that_the_cpu_computes(house: House) -> None:
    with start(house, None, device="auto"):
        house.ready()
    [line] = [line for line in lines(house) if line["level"] == "warning"]
    assert line["event"] == "there is no GPU, the CPU computes"
    assert [line["device"] for line in lines(house) if line["event"] == "loaded"] == ["cpu"]


@pytest.mark.parametrize(
    ("gpu", "fault"),
    [(WITHOUT_KERNELS, "it has kernels for sm_75, sm_80, sm_90 only"), (WRONG, "are wrong, by 0.")],
)
def test_a_worker_whose_gpu_does_not_compute_stays_and_says_why(
    house: House, gpu: Gpu, fault: str
) -> None:
    with start(house, gpu) as worker:
        wait_for(
            lambda: [info.state for info in house.queue.capacity().workers] == ["not_ready"],
            "the worker is not ready",
        )
        [info] = house.queue.capacity().workers
        assert (info.reason or "").startswith(f"its worker's device cuda:0 ({gpu.name}, compute ")
        assert fault in (info.reason or "")
        assert not (info.reason or "").endswith(".")
        job_id = house.submit()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    [line] = [line for line in lines(house) if line["event"] == "worker not ready"]
    assert fault in line["reason"]
    assert house.job(job_id).state is JobState.QUEUED


def test_a_worker_whose_gpu_is_lost_at_its_start_ends_with_the_code_of_a_lost_one(
    house: House,
) -> None:
    with start(house, LOST) as worker:
        assert worker.wait() == EXIT_DEVICE_LOST
    assert [line["event"] for line in lines(house)][-1] == "device lost, ending the process"
    assert "Traceback" not in (house.folder / "log").read_text()
    assert house.queue.capacity().workers == []


def test_a_gpu_lost_in_mid_run_ends_its_worker_and_the_next_one_does_the_job(house: House) -> None:
    with start(house, HEALTHY) as worker:
        job_id = house.submit(seed=DEVICE_ERROR)
        assert worker.wait() == EXIT_DEVICE_LOST
    assert house.job(job_id).state is JobState.QUEUED
    with start(house, HEALTHY):
        job = house.ended(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
