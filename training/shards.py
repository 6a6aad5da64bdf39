"""Batches that a stage learns from again and again, made once and kept in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from models.checkpoints.files import replace_text, write_aside
from training.config import RunExists
from training.pairs import Batch, turn


class Shards:
    """A folder of `count` batches, made of their numbers. That can be interrupted and resumed.

    The files are mapped: their pages are memory that the system takes back when it needs it.

    Args:
        units: names of tensors, and for each how many of its pixels one unit has.
        step: in units; a part of an entry begins at multiples of it.
        orientations: of eight, those that a part is turned to.

    Raises:
        RunExists: the folder holds what follows from another `origin`.
    """

    def __init__(
        self,
        folder: Path,
        make_batch: Callable[[int], Batch],
        count: int,
        origin: dict[str, object],
        units: Mapping[str, int],
        *,
        step: int = 1,
        orientations: int = 1,
    ) -> None:
        self._folder, self._make_batch, self._count = folder, make_batch, count
        self._units, self._step, self._orientations = units, step, orientations
        self._batches: dict[int, Batch] = {}
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / "made-from.json"
        text = json.dumps(origin, indent=2, sort_keys=True, default=str)
        if record.exists() and record.read_text(encoding="utf-8") != text:
            raise RunExists(
                f"{folder} was made from other settings or weights ({record.name}): remove it, or "
                "name another --out."
            )
        replace_text(record, text)

    def make(self, accelerator: Accelerator, on_progress: Callable[[str], None]) -> None:
        """Makes the batches that are missing, each process its share, and waits for the others."""
        numbers = range(accelerator.process_index, self._count, accelerator.num_processes)
        missing = [number for number in numbers if not self._path(number).exists()]
        for at, number in enumerate(missing):
            if at % 50 == 0:
                count = self._count - len(missing) + at
                on_progress(f"{self._folder}: {count} of {self._count} batches")
            self.batch(number)
        accelerator.wait_for_everyone()

    def batch(self, number: int) -> Batch:
        """One batch, made where it is missing."""
        if number not in self._batches:
            path = self._path(number)
            if not path.exists():
                tensors = {k: v.contiguous().cpu() for k, v in self._make_batch(number).items()}
                with write_aside(path) as aside:
                    save_file(tensors, aside)
            self._batches[number] = load_file(path)
        return self._batches[number]

    def crops(
        self, names: Sequence[str], count: int, side: int, generator: torch.Generator
    ) -> Batch:
        """Entries at random, of each the same part of these of its tensors: by name
        (count, c, unit * side, unit * side), those in 8 bits in [0, 1]. The generator alone decides
        what is drawn; `side` is in units."""
        numbers = torch.randint(self._count, (count,), generator=generator).tolist()
        places = torch.rand(count, generator=generator).tolist()
        batches = [self.batch(number) for number in numbers]
        room = batches[0][names[0]].shape[-1] // self._units[names[0]] - side
        corners = (
            torch.randint(room // self._step + 1, (count, 2), generator=generator) * self._step
        )
        ways = torch.randint(self._orientations, (count,), generator=generator).tolist()
        crops = {}
        for name in names:
            unit, parts = self._units[name], []
            for batch, place, corner, way in zip(batches, places, corners, ways, strict=True):
                entry = batch[name][int(place * len(batch[name]))]
                rows, columns = (slice(unit * at, unit * (at + side)) for at in corner.tolist())
                parts.append(turn(entry[:, rows, columns], way))
            stack = torch.stack(parts)
            crops[name] = stack.float() / 255 if stack.dtype == torch.uint8 else stack
        return crops

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"
