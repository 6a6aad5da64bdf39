"""The loop every stage shares: AdamW, warm-up and cosine decay, weight averaging, resuming."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Fit", "LoopSettings"]


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast a stage learns."""

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average: float = 0.998
    """Decay of the moving average of the weights, which is what a stage hands on."""
    save_every: int = 200
    log_every: int = 20
    minutes: float = math.inf
    """The decay ends at this time at the latest, even when fewer steps were made."""


class Fit:
    """Trains some parameters of a module; everything else in it stays as it is.

    Args:
        module: holds the parameters; the averaged weights are loaded into it at the end.
        trainable: says by name which parameters learn.
        folder: checkpoints and the log go here; an interrupted run goes on from there.
    """

    def __init__(
        self,
        module: nn.Module,
        trainable: Callable[[str], bool],
        settings: LoopSettings,
        folder: Path,
    ) -> None:
        self.module, self.settings, self.folder = module, settings, folder
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trainable(name))
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("no parameter of the module is trainable in this stage.")
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.99),
        )
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.step = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self) -> bool:
        """Goes on where a checkpoint in the folder ends; False when there is none."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
                self.average[name].copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def save(self) -> None:
        """Writes the checkpoint aside, then renames it."""
        state: dict[str, Any] = {
            "parameters": {n: p.detach() for n, p in self.parameters.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        aside = self.checkpoint.with_suffix(".part")
        torch.save(state, aside)
        os.replace(aside, self.checkpoint)

    @property
    def progress(self) -> float:
        """Fraction of the stage that is over, by steps or by time, whichever is further."""
        s = self.settings
        return min(1.0, max(self.step / s.steps, self.seconds / (60 * s.minutes)))

    def _learning_rate(self) -> float:
        s = self.settings
        warm = min(1.0, (self.step + 1) / s.warmup)
        return (
            s.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        )

    def run(self, loss: Callable[[int], Tensor]) -> float:
        """Trains to the end; `loss(step)` makes a scalar with gradients.

        A step's data must follow from its number alone, so that a resumed run sees what an
        uninterrupted one sees.

        Returns:
            The mean loss of the last logged steps.
        """
        recent: list[float] = []
        last = math.nan
        while self.progress < 1.0:
            began = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate()
            value = loss(self.step)
            value.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._average()
            self.step += 1
            self.seconds += time.monotonic() - began
            recent.append(float(value.detach()))
            if self.step % self.settings.log_every == 0:
                last = sum(recent) / len(recent)
                self._log(last)
                recent.clear()
            if self.step % self.settings.save_every == 0:
                self.save()
        self.save()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.average[name])
        return last

    def _average(self) -> None:
        # Early steps would otherwise weigh the random start for hundreds of steps.
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter, 1 - decay)

    def _log(self, loss: float) -> None:
        line = {
            "step": self.step,
            "loss": round(loss, 5),
            "lr": round(self._learning_rate(), 7),
            "seconds": round(self.seconds, 1),
        }
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)
