"""Checkpoints of a stage: all that a step depends on, written aside and renamed.

accelerate keeps optimizers, random numbers of every process and the loss scale; of the networks
only what learns is kept, for the rest is the same as at the start.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["Checkpoints"]

_NAME = "checkpoint-"
_WEIGHTS = "learned-{}.safetensors"


class Checkpoints:
    """The folder of a stage's checkpoints; the newest is kept.

    Args:
        accelerator: with everything prepared and registered.
        learned: the parameters to keep, a mapping for each network.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        learned: tuple[Mapping[str, nn.Parameter], ...],
    ) -> None:
        self._folder, self._accelerator, self._learned = folder, accelerator, learned
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def newest(self) -> Path | None:
        """The one to go on from."""
        whole = [p for p in self._folder.glob(f"{_NAME}*") if p.suffix != ".part"]
        return max(whole, key=lambda p: p.name, default=None)

    def save(self, step: int) -> None:
        """Called by every process."""
        path = self._folder / f"{_NAME}{step:09d}"
        aside = path.with_suffix(".part")
        accelerator = self._accelerator
        if accelerator.is_main_process:
            for left in self._folder.glob(f"{_NAME}*.part"):
                shutil.rmtree(left)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(aside), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if path.exists():
                shutil.rmtree(path)
            aside.rename(path)
            for old in self._folder.glob(f"{_NAME}*"):
                if old != path:
                    shutil.rmtree(old)

    def load(self, path: Path) -> None:
        self._accelerator.load_state(str(path))

    def _save_weights(self, models: list[nn.Module], weights: list[object], folder: str) -> None:
        if self._accelerator.is_main_process:
            for at, learned in enumerate(self._learned):
                tensors = {n: p.detach().contiguous() for n, p in learned.items()}
                save_file(tensors, Path(folder) / _WEIGHTS.format(at))
        weights.clear()  # accelerate would write whole networks, the frozen ones too

    @torch.no_grad()
    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        for at, learned in enumerate(self._learned):
            found: dict[str, Tensor] = load_file(Path(folder) / _WEIGHTS.format(at))
            for name, parameter in learned.items():
                parameter.copy_(found[name])
        models.clear()
