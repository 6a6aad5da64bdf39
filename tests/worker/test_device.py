from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.settings import Settings
from models.compiler import CompileOptions
from models.memory import MemoryBudget
from worker.device import (
    StartupError,
    budget_of,
    choose_device,
    choose_dtype,
    compile_options_of,
    devices_of,
    is_device_lost,
    load,
    named_device,
)


def test_what_the_settings_decide_of_memory_reaches_the_plan() -> None:
    settings = Settings(memory_limit="6GB", tile_batch=4, offload="on")
    assert budget_of(settings, jobs=2, decode_tile=32) == MemoryBudget(
        memory_limit=6 * 10**9,
        tile_batch=4,
        decode_tile=32,
        offload=True,
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


def test_a_gpu_without_memory_is_not_lost_and_one_with_a_fault_is() -> None:
    for said in ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"):
        assert not is_device_lost(RuntimeError(said))
    assert is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_a_cpu_computes_in_float32_and_a_gpu_in_bfloat16_unless_told_otherwise() -> None:
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
    assert choose_dtype("float16", torch.device("cpu")) is torch.float32
    assert choose_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert choose_dtype("float16", torch.device("cuda")) is torch.float16


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
