"""Which presets the live workers serve, and what a request gets that names none.

A worker without the weights it was told to serve may serve another preset instead and says so in
the register. Requests that name no preset follow it, so that a server without weights is of use;
requests that name the missing one are refused, because nobody would ever run them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.workers import WorkerInfo
from service.errors import PresetNotServed
from service.schema import FallbackView

__all__ = ["Serving"]


@dataclass(frozen=True)
class Serving:
    """The workers of one moment, by preset.

    `configured` is the server's own default; `live` are the presets of all workers, `available`
    of those that take jobs now; `compiling` are those of workers that compile, with how far they
    are, where none takes jobs yet; `fallbacks` has the presets that none of them serves although
    one was to.
    """

    configured: str
    live: frozenset[str]
    available: frozenset[str]
    compiling: Mapping[str, str]
    fallbacks: Mapping[str, FallbackView]

    @classmethod
    def of(cls, workers: Sequence[WorkerInfo], configured: str) -> Serving:
        """What these workers serve, to a server whose own default is `configured`."""
        # A worker that starts or stops counts: jobs for its preset need only wait.
        live = frozenset(worker.preset for worker in workers)
        available = frozenset(worker.preset for worker in workers if worker.ready)
        return cls(
            configured=configured,
            live=live,
            available=available,
            compiling={
                worker.preset: f"its worker is {worker.condition}"
                for worker in workers
                if worker.state == "compiling" and worker.preset not in available
            },
            fallbacks={
                worker.instead_of: FallbackView(
                    wanted=worker.instead_of, served=worker.preset, reason=worker.reason or ""
                )
                for worker in workers
                if worker.instead_of is not None and worker.instead_of not in live
            },
        )

    @property
    def fallback(self) -> FallbackView | None:
        """What stands in for the server's own default; None when that stands for itself."""
        return self.fallbacks.get(self.configured)

    @property
    def default(self) -> str:
        """The preset of a request that names none."""
        return self.configured if self.fallback is None else self.fallback.served

    def reason(self, preset: str) -> str | None:
        """Why a worker that is to serve the preset does not; None where that is not known."""
        if (fallback := self.fallbacks.get(preset)) is not None:
            return fallback.reason
        return self.compiling.get(preset)

    def check(self, preset: str) -> None:
        """Raises PresetNotServed when a worker was to serve the preset but cannot.

        A preset that no worker speaks of passes: its worker may be starting again.
        """
        if (fallback := self.fallbacks.get(preset)) is not None:
            raise PresetNotServed(
                f"{fallback.served} is served instead of {preset}: {fallback.reason}.",
                preset=preset,
                served=[*sorted(self.available)],
            )
