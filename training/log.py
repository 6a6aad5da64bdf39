"""A stage's log: JSON lines to read by program, TensorBoard to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

__all__ = ["Log"]


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
