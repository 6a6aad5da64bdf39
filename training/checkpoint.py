"""What a stage keeps: how far it is, its log, the average of its weights, and checkpoints.

accelerate keeps optimizers, random numbers of every process and the loss scale; of the networks
only what learns is kept, for the rest is the same as at the start.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from training.config import LoopSettings

__all__ = ["Average", "Checkpoints", "Log", "Progress", "blended"]

_FLOOR = 0.02  # of the learning rate, where a cosine ends


class Progress:
    """Kept in checkpoints. The rate follows from it alone, and the number of steps changes at
    checkpoints alone, so that a resumed run learns at the rates of an uninterrupted one."""

    def __init__(self, settings: LoopSettings) -> None:
        self._settings = settings
        self.step = 0
        self.seconds = 0.0
        self.total = settings.steps
        self.recent: dict[str, list[float]] = {}
        """Losses since the last line of the log, by name."""

    def replan(self) -> None:
        """Lowers (or raises again) the number of steps to what fits into the minutes."""
        minutes = self._settings.minutes
        # What is over is not begun again, however much time its last steps left.
        if minutes is not None and self.step and not self.over:
            left = max(0.0, 60 * minutes - self.seconds)
            self.total = min(self._settings.steps, self.step + int(left * self.step / self.seconds))

    @property
    def over(self) -> bool:
        return self.step >= self.total

    @property
    def learning_rate(self) -> float:
        """Of the step that comes."""
        s = self._settings
        rate = s.learning_rate * min(1.0, (self.step + 1) / (s.warmup + 1))
        if s.schedule == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.total)))
            rate *= _FLOOR + (1 - _FLOOR) * share
        return rate

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("step", "seconds", "total", "recent")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Log:
    """`log.jsonl` and TensorBoard's events in a folder.

    Args:
        step: where the run goes on; later lines are of steps that were lost, and are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "log.jsonl"
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            aside = self._path.with_suffix(".part")
            kept = [li for li in lines if li.endswith("\n") and json.loads(li)["step"] <= step]
            aside.write_text("".join(kept), encoding="utf-8")
            aside.replace(self._path)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name after `step` steps."""
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_NAME = "checkpoint-"
_WEIGHTS = "learned-{}.safetensors"


class Average:
    """Exponential, of some parameters.

    Args:
        parameters: by name; they are read, and for a while exchanged, never kept.
        decay: of the average in one step.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._tensors = {n: p.detach().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, counted from 0."""
        # Early steps would otherwise weigh the start for hundreds of steps.
        decay = min(self._decay, (1 + step) / (10 + step))
        # One kernel for all of them where there is one.
        torch._foreach_lerp_(
            list(self._tensors.values()), list(self._parameters.values()), 1 - decay
        )

    def in_place(self) -> AbstractContextManager[None]:
        """Meanwhile the networks hold the average."""
        return _exchanged(self._parameters, self._tensors)

    def apply(self) -> None:
        """The networks hold the average from now on."""
        _copy(self._parameters, self._tensors)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])


@torch.no_grad()
def blended(
    parameters: Mapping[str, nn.Parameter], start: Mapping[str, Tensor], share: float
) -> AbstractContextManager[None]:
    """Meanwhile the parameters lie between `start` and themselves, `share` of the way (arXiv
    2109.01903, section 3)."""
    return _exchanged(parameters, {n: start[n].lerp(p, share) for n, p in parameters.items()})


@contextmanager
def _exchanged(
    parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> Iterator[None]:
    """Meanwhile the parameters hold `tensors`; after it their own values, bit for bit."""
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    _copy(parameters, tensors)
    try:
        yield
    finally:
        _copy(parameters, own)


@torch.no_grad()
def _copy(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


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

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        for at, learned in enumerate(self._learned):
            _copy(learned, load_file(Path(folder) / _WEIGHTS.format(at)))
        models.clear()
