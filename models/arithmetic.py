"""Half precision on processors that have no instructions for it.

There the libraries emulate bfloat16 and float16, at a third to a twentieth of float32's speed.
Weights and maps stay in half precision, which is what it is wanted
for there; each convolution and each linear layer is computed in float32, in copies of what it
reads, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["arithmetic", "is_widened"]

_CPUINFO = Path("/proc/cpuinfo")
# As Linux names what x86 and Arm processors have.
_INSTRUCTIONS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}
_PRODUCTS: frozenset[Callable[..., Any]] = frozenset([F.conv2d, F.linear])


def is_widened(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of this dtype are computed in float32 on this device."""
    if device.type != "cpu" or dtype not in _INSTRUCTIONS:
        return False
    flags = _flags()
    # Elsewhere than on Linux nothing is known, and nothing changed.
    return bool(flags) and not flags & _INSTRUCTIONS[dtype]


def arithmetic(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Within, on this thread, networks of this dtype are computed as this device does it best."""
    return _Widened(dtype) if is_widened(device, dtype) else nullcontext()


class _Widened(TorchFunctionMode):
    """Computes products of tensors of one dtype in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype != self._dtype:
            return func(*args, **kwargs)
        wide = {name: self._wide(value) for name, value in kwargs.items()}
        return func(*map(self._wide, args), **wide).to(self._dtype)

    def _wide(self, value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == self._dtype else value


@cache
def _flags() -> frozenset[str]:
    """What the processor can do; nothing where nobody says."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except FileNotFoundError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
