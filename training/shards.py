"""Batches that a stage learns from again and again, made once and kept in files.

The teacher's are what another network makes of degraded photographs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.networks.bundle import channels_last
from training.checkpoint import write_aside
from training.config import DataSettings, RunExists, TeacherSettings
from training.pairs import Pairs, stream, turn
from training.realesrgan import RRDBNet

TEACHER = "teacher"
"""Folder of a run with the teacher's batches, and the name of its images in them."""


class Shards:
    """A folder of `count` batches, made of their numbers. That can be interrupted and resumed.

    The files are mapped: their pages are memory that the system takes back when it needs it.

    Raises:
        RunExists: the folder holds what follows from another `origin`.
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
        write_aside(record, lambda path: path.write_text(text, encoding="utf-8"))

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

    def batch(self, number: int) -> dict[str, Tensor]:
        """One batch, made where it is missing."""
        if number not in self._batches:
            path = self._path(number)
            if not path.exists():
                tensors = {k: v.contiguous().cpu() for k, v in self._make_batch(number).items()}
                write_aside(path, partial(save_file, tensors))
            self._batches[number] = load_file(path)
        return self._batches[number]

    def crops(
        self,
        count: int,
        units: Mapping[str, int],
        side: int,
        generator: torch.Generator,
        *,
        step: int = 1,
        orientations: int = 1,
    ) -> dict[str, Tensor]:
        """Entries at random, of each the same part of all its tensors: by name
        (count, c, unit * side, unit * side), those in 8 bits in [0, 1].

        Args:
            count: entries.
            units: names of tensors, and for each how many of its pixels one unit has.
            side: of the part in units.
            generator: all is drawn from it.
            step: in units; a part begins at multiples of it.
            orientations: of eight, those that a part is turned to.
        """
        numbers = torch.randint(self._count, (count,), generator=generator).tolist()
        places = torch.rand(count, generator=generator).tolist()
        batches = [self.batch(number) for number in numbers]
        name, unit = next(iter(units.items()))
        room = batches[0][name].shape[-1] // unit - side
        corners = torch.randint(room // step + 1, (count, 2), generator=generator) * step
        ways = torch.randint(orientations, (count,), generator=generator).tolist()
        crops = {}
        for name, unit in units.items():
            parts = []
            for batch, place, corner, way in zip(batches, places, corners, ways, strict=True):
                entry = batch[name][int(place * len(batch[name]))]
                rows, columns = (slice(unit * at, unit * (at + side)) for at in corner.tolist())
                parts.append(turn(entry[:, rows, columns], way))
            stack = torch.stack(parts)
            crops[name] = stack.float() / 255 if stack.dtype == torch.uint8 else stack
        return crops

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


def teacher_crops(
    shards: Shards, names: tuple[str, ...], count: int, side: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The teacher's images and others of its entries, turned alike: by name (count, 3, side, side)
    in [0, 1]; of `low` a quarter of the side. Each begins with a latent pixel."""
    units = {name: 1 if name == "low" else 4 for name in names}
    return shards.crops(count, units, side // 4, generator, step=2, orientations=8)
