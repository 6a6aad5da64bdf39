"""A GPU of several kinds, played by the CPU: what `torch.cuda` says of it, and what its kernels do.

`serve` is a worker process on it: the real program, but for the networks, which are a `Double`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import structlog
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jobs.settings import Settings
from tests.worker.double import Double
from worker.supervisor import main

ARCHITECTURES = ["sm_75", "sm_80", "sm_90"]
UUID = "5a0e8b52-0000-4000-8000-3e5c3a8b0001"


@dataclass(frozen=True)
class Gpu:
    """`error`: what a kernel ends with; `factor`: what its results are too large by."""

    name: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    error: str = ""
    factor: float = 1.0


HEALTHY = Gpu()
WITHOUT_BFLOAT16 = Gpu("Tesla T4", (7, 5))
WITHOUT_KERNELS = Gpu(
    "Tesla K80", (3, 7), "CUDA error: no kernel image is available for execution on the device"
)
WRONG = Gpu(factor=1.05)
NO_NUMBERS = Gpu(factor=float("nan"))
LOST = Gpu(error="CUDA error: uncorrectable ECC error encountered")


class _OnGpu(Tensor):
    """On the GPU that is played: so is what is computed from it."""


class _Placement(TorchFunctionMode):
    """Has tensors of the device `cuda` on the CPU, and its convolutions end as the GPU's do."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            return args[0].as_subclass(_OnGpu)
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(Tensor)
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        if func is torch.conv2d and isinstance(args[0], _OnGpu):
            if self._gpu.error:
                raise torch.AcceleratorError(f"{self._gpu.error}\nSearch for it in CUDA's manual.")
            return result * self._gpu.factor
        return result


@contextmanager
def playing(gpu: Gpu) -> Iterator[None]:
    """Within this context the thread that is in it has that GPU, and only that one."""
    major, minor = gpu.capability
    properties = SimpleNamespace(
        name=gpu.name, major=major, minor=minor, uuid=UUID, total_memory=16 * 10**9
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_arch_list": lambda: ARCHITECTURES,
        "get_device_capability": lambda device: gpu.capability,
        "get_device_properties": lambda device: properties,
    }
    with patch.multiple(torch.cuda, **answers), _Placement(gpu):
        yield


def serve(settings: Settings, gpu: Gpu | None) -> int:
    """A worker on that GPU, or on a machine that should have one; its networks say in the log on
    what and in which precision they are."""

    def networks(
        preset: str, device: torch.device, dtype: torch.dtype, *rest: Any, **more: Any
    ) -> Double:
        structlog.get_logger("networks").info("loaded", device=str(device), dtype=str(dtype))
        model = Double(marks=settings.blob_root.parent)
        vars(model)["compile"] = lambda on_compile: None
        return model

    machine = playing(gpu) if gpu else patch("torch.version.cuda", "13.0")
    with machine, patch("worker.device.StableSR.from_preset", networks):
        return main(settings)
