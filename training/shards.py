"""Batches that a stage learns from again and again, made once and kept in files.

The teacher's are what another network makes of degraded photographs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.networks.bundle import channels_last
from training.config import DataSettings, RunExists, TeacherSettings
from training.pairs import Pairs, stream
from training.realesrgan import RRDBNet

TEACHER = "teacher"
"""Folder of a run with the teacher's batches, and the name of its images in them."""


class Shards:
    """A folder of `count` batches. Making it can be interrupted at any time and resumed.

    The files are mapped: their pages are memory that the system takes back when it needs it.

    Args:
        folder: of this stage.
        make_batch: makes one, from its number alone.
        count: batches.
        origin: what the tensors follow from; a folder made from something else is refused.

    Raises:
        RunExists: the folder holds other tensors.
    """

    def __init__(
        self,
        folder: Path,
        make_batch: Callable[[int], dict[str, Tensor]],
        count: int,
        origin: dict[str, object],
    ) -> None:
        self._folder, self._make_batch, self._count = folder, make_batch, count
        self._batches: dict[int, dict[str, Tensor]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / "made-from.json"
        text = json.dumps(origin, indent=2, sort_keys=True, default=str)
        if record.exists() and record.read_text(encoding="utf-8") != text:
            raise RunExists(
                f"{folder} was made from other settings or weights ({record.name}): remove it, or "
                "name another --out."
            )
        aside = folder / f".{record.name}.{os.getpid()}"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, record)

    def make(
        self, on_progress: Callable[[str], None], *, rank: int = 0, processes: int = 1
    ) -> None:
        """Makes the batches that are missing, this process its share of them."""
        numbers = range(rank, self._count, processes)
        missing = [number for number in numbers if not self._path(number).exists()]
        for at, number in enumerate(missing):
            if at % 50 == 0:
                count = self._count - len(missing) + at
                on_progress(f"{self._folder}: {count} of {self._count} batches")
            self.batch(number)

    def batch(self, number: int) -> dict[str, Tensor]:
        """One batch, made where it is missing."""
        if number not in self._batches:
            path = self._path(number)
            if not path.exists():
                tensors = {k: v.contiguous().cpu() for k, v in self._make_batch(number).items()}
                aside = path.with_name(f".{path.name}.{os.getpid()}")
                save_file(tensors, aside)
                os.replace(aside, path)
            self._batches[number] = load_file(path)
        return self._batches[number]

    def pick(self, size: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
        """`size` entries at random, each without its batch dimension."""
        numbers = torch.randint(self._count, (size,), generator=generator).tolist()
        places = torch.rand(size, generator=generator).tolist()
        entries = []
        for number, place in zip(numbers, places, strict=True):
            batch = self.batch(number)
            at = int(place * len(next(iter(batch.values()))))
            entries.append({name: part[at] for name, part in batch.items()})
        return entries

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"


def teacher_shards(
    settings: TeacherSettings, data: DataSettings, seed: int, out: Path, device: torch.device
) -> Shards:
    """Batches of `high` and `teacher`, uint8 (n, 3, crop, crop), and `low`, a quarter of the side.

    Raises:
        ModelFileUnreadable: the teacher's weights cannot be read, when a batch is made.
        NoPhotographs: there is nothing to learn from.
        RunExists: the folder holds pairs of other settings.
    """
    seed = stream(seed, TEACHER)
    pairs = Pairs(data, crop=settings.crop, batch=settings.batch, seed=seed, device=device)

    @cache
    def teacher() -> RRDBNet:
        network = RRDBNet.from_model(settings.network).to(device)
        channels_last(network)
        return network

    @torch.inference_mode()
    def make_batch(number: int) -> dict[str, Tensor]:
        network = teacher()
        high, low = pairs.low_resolution(number)
        # One by one: a whole batch of these maps would leave the processor's caches.
        images = torch.cat([network(image) for image in torch.split(low, 1)]).clamp(0, 1)
        batch = {"high": high, "low": low, TEACHER: images}
        return {name: (part * 255).round().to(torch.uint8) for name, part in batch.items()}

    origin = {
        "data": data.model_dump(mode="json"),
        "teacher": settings.model_dump(mode="json", exclude={"batches"}),
        "seed": seed,
    }
    return Shards(out / TEACHER, make_batch, settings.batches, origin)


def crop_alike(
    shards: Shards, names: tuple[str, ...], size: int, side: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """`size` of the teacher's entries at random, of each the same part, turned alike.

    Returns:
        For each name (size, 3, side, side) in [0, 1]; of `low` a quarter of the side.
    """
    entries = shards.pick(size, generator)
    cells = entries[0]["low"].shape[-1] - side // 4
    corners = torch.randint(cells // 2 + 1, (size, 2), generator=generator).mul(2).tolist()
    turns = torch.randint(8, (size,), generator=generator).tolist()
    images = []
    for name in names:
        unit = 1 if name == "low" else 4
        parts = []
        for entry, (y, x), turn in zip(entries, corners, turns, strict=True):
            rows, columns = (slice(unit * at, unit * (at + side // 4)) for at in (y, x))
            part = entry[name][:, rows, columns].rot90(turn % 4, (1, 2))
            parts.append(part.flip(2) if turn >= 4 else part)
        images.append(torch.stack(parts).float() / 255)
    return tuple(images)
