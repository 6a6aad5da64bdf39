"""Compiled callables, one for each function and size of call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from models.memory import is_out_of_memory

__all__ = ["Graphs"]

log = logging.getLogger(__name__)

_Made = tuple[Tensor, ...]
_Run = Callable[..., _Made]


class Graphs:
    """Calls functions of tensors by what `torch.compile` makes of them; several threads may.

    On CUDA each is recorded as a CUDA graph. What could not be compiled once is not tried again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.deferred = False
        """Whether nothing is compiled or called yet; to be changed between calls only."""
        self._lock = threading.Lock()
        self._compiled: dict[tuple[str, int, int, int], _Run] = {}
        self._failed: set[tuple[str, int, int, int]] = set()
        # CUDA graphs belong to the thread that recorded them.
        self._thread = ThreadPoolExecutor(1, "denoiser") if device.type == "cuda" else None

    def __call__(self, name: str, function: _Run, *arguments: Tensor) -> _Made | None:
        """The function's results, the caller's own; None if this size could not be compiled.

        Args:
            name: of the function.
            function: one and the same at every call of a name.
            arguments: of one shape and layout at every call of a size, which the first one's rows,
                height and width are.
        """
        if self._thread is not None:
            return self._thread.submit(self._run, name, function, *arguments).result()
        return self._run(name, function, *arguments)

    @torch.inference_mode()
    def _run(self, name: str, function: _Run, *arguments: Tensor) -> _Made | None:
        rows, _, height, width = arguments[0].shape
        key = (name, rows, height, width)
        with self._lock:
            if key in self._failed:
                return None
            run = self._compiled.get(key)
            # Compiling is not for two threads at once.
            if run is None:
                return self._first(key, function, *arguments)
        return self._made(run, *arguments)

    def _first(
        self, key: tuple[str, int, int, int], function: _Run, *arguments: Tensor
    ) -> _Made | None:
        name, rows, _, _ = key
        run = _compiled(function, self._device, f"{name}_{rows}")
        try:
            out = self._made(run, *arguments)
        # torch raises errors of many kinds for a missing compiler, a full disk, a bug of its own.
        # Where it is none of these but the device's, the eager call meets it too, and raises it.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._failed.add(key)
            log.warning(
                "calls of %d tiles could not be compiled (%s); they are computed eagerly: %s",
                rows,
                name,
                str(error).strip().splitlines()[0] if str(error).strip() else repr(error),
                exc_info=log.isEnabledFor(logging.DEBUG),
            )
            return None
        self._compiled[key] = run
        return out

    def _made(self, run: _Run, *arguments: Tensor) -> _Made:
        if self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # has none
        # The next call writes over what a CUDA graph returns.
        return tuple(made.clone() for made in run(*arguments))


def _compiled(function: _Run, device: torch.device, name: str) -> _Run:
    """For one size of call."""
    assert isinstance(function, FunctionType)
    # Of one piece of code torch compiles 8 sizes, then no more: each gets a piece of its own.
    own = FunctionType(
        function.__code__.replace(co_name=name),
        function.__globals__,
        name,
        None,
        function.__closure__,
    )
    options: dict[str, str | int | bool | Callable[..., Any]] = {}
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    # Not typed beyond "a callable".
    return cast("_Run", torch.compile(own, fullgraph=True, dynamic=False, options=options or None))
