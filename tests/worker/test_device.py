from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.settings import Settings
from models.compiler import CompileOptions
from models.plan import Resources
from worker.device import compile_options_of, devices_of, named_device, resources_of
from worker.errors import NotStarted, is_device_lost


def test_what_the_settings_decide_of_memory_reaches_the_plan() -> None:
    settings = Settings(memory_limit="6GB", tile_batch=4, offload="on")
    assert resources_of(settings, jobs=2, decode_tile=32) == Resources(
        memory_limit=6 * 10**9,
        tile_batch=4,
        decode_tile=32,
        offload=True,
        shared=True,
    )
    assert resources_of(Settings(), jobs=1) == Resources()


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
    with pytest.raises(NotStarted, match="has cuda:0 twice"):
        devices_of(Settings(device="cuda:0,cuda:1,cuda:0"))


def test_a_device_can_be_named_that_is_not_here() -> None:
    assert named_device("cuda:3") == torch.device("cuda", 3)
    assert named_device("auto") == torch.device("cpu")
    with pytest.raises(NotStarted, match="'tpu9', but cpu and cuda"):
        named_device("tpu9")


def test_a_gpu_without_memory_is_not_lost_and_one_with_a_fault_is() -> None:
    for said in ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"):
        assert not is_device_lost(RuntimeError(said))
    assert is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
