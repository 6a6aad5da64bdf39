"""What a stage keeps: how far it is, its log, and checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter

from models.checkpoints.files import replace_text
from training.config import LoopSettings

_FLOOR = 0.02  # of the learning rate, where a cosine ends
_NAME = "checkpoint-"


class Progress:
    """Kept in checkpoints. The rate follows from it alone, and the number of steps changes at
    checkpoints alone, so that a resumed run learns at the rates of an uninterrupted one."""

    def __init__(self, settings: LoopSettings) -> None:
        self._settings = settings
        self.step = 0
        self.seconds = 0.0
        self.total = settings.steps
        self.recent: dict[str, list[float]] = {}  # losses since the last line of the log

    def replan(self) -> None:
        """Lowers (or raises again) the number of steps to what fits into the minutes."""
        minutes = self._settings.minutes
        # What is over is not begun again, however much time its last steps left.
        if minutes is not None and self.step and not self.over:
            rest = max(0.0, 60 * minutes - self.seconds)
            self.total = min(self._settings.steps, self.step + int(rest * self.step / self.seconds))

    @property
    def over(self) -> bool:
        return self.step >= self.total

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
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
    """`log.jsonl` and TensorBoard's events in a folder, without those after `step`, where the run
    resumes."""

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "log.jsonl"
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            lines = [li for li in lines if li.endswith("\n") and json.loads(li)["step"] <= step]
            replace_text(self._path, "".join(lines))
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name after `step` steps."""
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Checkpoints:
    """The folder of a stage's checkpoints; the newest is kept.

    Optimizers, random numbers of every process, the loss scale and what is registered are in it.
    Of the networks it has nothing else: what does not learn is the same as at the start.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self._folder, self._accelerator = folder, accelerator
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    def newest(self) -> Path | None:
        """The one to resume from."""
        paths = [p for p in self._folder.glob(f"{_NAME}*") if p.suffix != ".part"]
        return max(paths, key=lambda p: p.name, default=None)

    def save(self, step: int) -> None:
        """Called by every process. Killed meanwhile, it leaves the checkpoint before."""
        path = self._folder / f"{_NAME}{step:09d}"
        aside = path.with_suffix(".part")
        accelerator = self._accelerator
        if accelerator.is_main_process:
            for rest in self._folder.glob(f"{_NAME}*.part"):
                shutil.rmtree(rest)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(aside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            aside.rename(path)
            for old in self._folder.glob(f"{_NAME}*"):
                if old != path:
                    shutil.rmtree(old)
