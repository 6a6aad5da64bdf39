"""What stands for torch's compiler, which takes minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., tuple[Tensor, ...]]


class Compiler:
    """Notes what is compiled and the sizes that are called.

    Args:
        error: raised by every call.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.made: list[str] = []
        self.sizes: list[int] = []

    def __call__(self, run: Run, **options: Any) -> Run:
        assert options["fullgraph"]
        assert options["dynamic"] is False
        self.made.append(run.__code__.co_name)

        def compiled(*arguments: Tensor) -> tuple[Tensor, ...]:
            self.sizes.append(len(arguments[0]))
            if self.error is not None:
                raise self.error
            assert {len(argument) for argument in arguments} == {len(arguments[0])}
            return run(*arguments)

        return compiled


class Tracer:
    """Traces as torch's compiler does, and then runs the graph as it is. To be made while
    `torch.compile` is torch's own."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []
        self._compile = torch.compile

    def __call__(self, run: Run, **options: Any) -> Run:
        return self._compile(run, backend=self._take, fullgraph=True, dynamic=False)

    def _take(self, graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward
