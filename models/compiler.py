"""Functions of tensors by what `torch.compile` makes of them, one callable for each size of call.

On CUDA each is recorded as a CUDA graph. What was compiled is kept on disk, so that a restart does
not compile again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, cast

import torch
from torch import Tensor

from models.errors import InvalidOption
from models.memory import is_out_of_memory

log = logging.getLogger(__name__)

CompileMode = Literal["auto", "on", "off"]
"""`auto`: where the device is a GPU."""

Function = Callable[..., tuple[Tensor, ...]]

# Compiling is not for two threads at once, whatever devices they are for.
_COMPILER = threading.Lock()


@dataclass(frozen=True)
class CompileOptions:
    """Whether network calls are compiled, and of which sizes they are.

    Raises:
        InvalidOption: `fixed_batch` is below 1.
    """

    mode: CompileMode = "off"
    cache: Path | None = None
    """Folder for what was compiled; None is torch's own (`TORCHINDUCTOR_CACHE_DIR`)"""
    fixed_batch: int | None = None
    """Every call has so many tiles, the missing ones being filled up. A tile is then computed by
    the same kernels whatever else is in the call, so its result does not depend on that."""

    def __post_init__(self) -> None:
        if self.fixed_batch is not None and self.fixed_batch < 1:
            raise InvalidOption(f"fixed_batch is {self.fixed_batch}, but must be at least 1.")

    def suits(self, device: torch.device) -> bool:
        """Whether network calls on that device are compiled."""
        return self.mode == "on" or (self.mode == "auto" and device.type == "cuda")

    def whole_images(self, device: torch.device) -> bool:
        """Whether images of a single tile go through the autoencoder by compiled calls: not on a
        processor, which is busy with a strip, and says between two how far it is; not with a fixed
        batch, since it depends on others whether an image has room to go whole."""
        return device.type == "cuda" and self.suits(device) and self.fixed_batch is None

    def open_cache(self) -> None:
        """Has torch keep what it compiles in `cache`."""
        if self.cache is None:
            return
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning(
                "what is compiled cannot be kept in %s (%s): the next start compiles again",
                self.cache,
                error.strerror,
            )
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.cache)


class CompiledCalls:
    """Compiles at the first call of a size; several threads may call."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # By name and size of call. None: it could not be compiled once, and is not tried again.
        self._callables: dict[tuple[str, int, int, int], Function | None] = {}
        # CUDA graphs belong to the thread that recorded them.
        self._thread = ThreadPoolExecutor(1, "denoiser") if device.type == "cuda" else None

    def __call__(
        self, name: str, function: Function, *arguments: Tensor
    ) -> tuple[Tensor, ...] | None:
        """The function's results, the caller's own; None if this size could not be compiled.

        A name has one function, and a size, which is the first argument's rows, height and width,
        one shape of each argument. They are laid out channels last: another layout would be another
        graph.
        """
        arguments = tuple(
            x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in arguments
        )
        if self._thread is not None:
            return self._thread.submit(self._run, name, function, *arguments).result()
        return self._run(name, function, *arguments)

    @torch.inference_mode()
    def _run(self, name: str, function: Function, *arguments: Tensor) -> tuple[Tensor, ...] | None:
        rows, _, height, width = arguments[0].shape
        key = name, rows, height, width
        with _COMPILER:
            if key not in self._callables:
                run = _compile(function, self._device, f"{name}_{rows}")
                try:
                    results = self._results(run, *arguments)
                # torch raises errors of many kinds for a missing compiler, a full disk, a bug of
                # its own. Where it is none of these but the device's, the eager call meets it too,
                # and raises it.
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    self._callables[key] = None
                    log.warning(
                        "calls of %d tiles could not be compiled (%s); they are computed eagerly: "
                        "%s",
                        rows,
                        name,
                        (str(error).strip() or repr(error)).splitlines()[0],
                        exc_info=log.isEnabledFor(logging.DEBUG),
                    )
                    return None
                self._callables[key] = run
                return results
        call = self._callables[key]
        return None if call is None else self._results(call, *arguments)

    def _results(self, run: Function, *arguments: Tensor) -> tuple[Tensor, ...]:
        if self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # has none
        # The next call writes over what a CUDA graph returns.
        return tuple(result.clone() for result in run(*arguments))


def _compile(function: Function, device: torch.device, name: str) -> Function:
    """For one size of call."""
    assert isinstance(function, FunctionType)
    # Of one piece of code torch compiles 8 sizes, then no more: each gets a piece of its own.
    code = function.__code__.replace(co_name=name)
    own = FunctionType(
        code, function.__globals__, name, function.__defaults__, function.__closure__
    )
    options: dict[str, Any] | None = {"triton.cudagraphs": True} if device.type == "cuda" else None
    # Not typed beyond "a callable".
    return cast("Function", torch.compile(own, fullgraph=True, dynamic=False, options=options))
