"""Which device a worker computes on, and in which precision."""

from __future__ import annotations

import torch

from worker.errors import NotStarted

__all__ = ["choose_device", "choose_dtype"]


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one.

    Raises:
        NotStarted: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # torch raises RuntimeError for a name it does not know and for a device that is not there,
    # AssertionError where it was built without CUDA.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise NotStarted(
            f"STABLESR_DEVICE is {name!r}, which cannot be used here ({reason}); "
            "auto, cpu or cuda:N can."
        ) from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of that name; `auto` is float32 on a CPU and bfloat16 on a GPU.

    bfloat16 has the range of float32: float16 overflows in the attention of some of the weights.
    """
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return dtypes[name]
