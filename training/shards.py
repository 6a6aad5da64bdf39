"""Batches that a stage learns from again and again, made once and kept in files.

The teacher's are what another network makes of degraded photographs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.networks.bundle import channels_last
from training.config import DataSettings, RunExists, TeacherSettings
from training.pairs import Pairs, stream
from training.realesrgan import RRDBNet

__all__ = ["TAUGHT", "Shards", "taught", "teacher_shards"]

# Bytes of batches that are kept in memory as well: opening a file for every entry took longer
# than a small network's step on a GPU.
_MOST_HELD = 2 * 10**9


class Shards:
    """A folder of `count` batches. Making it can be interrupted at any time and goes on after.

    Args:
        folder: of this stage.
        batch: makes one, from its number alone.
        count: batches.
        of: what the tensors follow from; a folder made from something else is refused.

    Raises:
        RunExists: the folder holds other tensors.
    """

    def __init__(
        self,
        folder: Path,
        batch: Callable[[int], dict[str, Tensor]],
        count: int,
        of: dict[str, object],
    ) -> None:
        self._folder, self._batch, self._count = folder, batch, count
        self._held: dict[int, dict[str, Tensor]] = {}
        self._bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        told = folder / "made-from.json"
        said = json.dumps(of, indent=2, sort_keys=True, default=str)
        if told.exists() and told.read_text(encoding="utf-8") != said:
            raise RunExists(
                f"{folder} was made from other settings or weights ({told.name}): remove it, or "
                "name another --out."
            )
        aside = folder / f".{told.name}.{os.getpid()}"
        aside.write_text(said, encoding="utf-8")
        os.replace(aside, told)

    def make(self, say: Callable[[str], None], *, rank: int = 0, processes: int = 1) -> None:
        """Makes the batches that are missing, this process its share of them."""
        missing = [n for n in range(rank, self._count, processes) if not self._path(n).exists()]
        for done, number in enumerate(missing):
            if done % 50 == 0:
                say(f"{self._folder}: {self._count - len(missing) + done} of {self._count} batches")
            self._made(number)

    def whole(self, number: int) -> dict[str, Tensor]:
        """One batch, made where it is missing."""
        return load_file(self._made(number))

    def pick(self, size: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
        """`size` entries at random, each without its batch dimension."""
        picked = []
        numbers = torch.randint(self._count, (size,), generator=generator).tolist()
        places = torch.rand(size, generator=generator).tolist()
        for number, place in zip(numbers, places, strict=True):
            if (held := self._in_memory(number)) is not None:
                at = int(place * len(next(iter(held.values()))))
                picked.append({name: part[at] for name, part in held.items()})
                continue
            with safe_open(self._made(number), "pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
                at = int(place * next(iter(slices.values())).get_shape()[0])
                picked.append({name: part[at] for name, part in slices.items()})
        return picked

    def _in_memory(self, number: int) -> dict[str, Tensor] | None:
        """A batch that is held, or may be from now on."""
        if number not in self._held:
            path = self._made(number)
            if self._bytes + path.stat().st_size > _MOST_HELD:
                return None
            self._bytes += path.stat().st_size
            self._held[number] = load_file(path)
        return self._held[number]

    def _made(self, number: int) -> Path:
        path = self._path(number)
        if not path.exists():
            tensors = {k: v.contiguous().cpu() for k, v in self._batch(number).items()}
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            save_file(tensors, aside)
            os.replace(aside, path)
        return path

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"


TAUGHT = "teacher"
"""Folder of a run that holds them."""


def teacher_shards(
    settings: TeacherSettings, data: DataSettings, seed: int, out: Path, device: torch.device
) -> Shards:
    """Batches of `high` and `teacher`, uint8 (n, 3, crop, crop), and `low`, a quarter of the side.

    Raises:
        ModelFileUnreadable: the teacher's weights cannot be read.
        NoPhotographs: there is nothing to learn from.
        RunExists: the folder holds pairs of other settings.
    """
    network: RRDBNet | None = None
    of = stream(seed, TAUGHT)
    pairs = Pairs(data, crop=settings.crop, batch=settings.batch, seed=of, device=device)

    @torch.inference_mode()
    def batch(number: int) -> dict[str, Tensor]:
        nonlocal network
        if network is None:
            network = RRDBNet.from_model(settings.network).to(device)
            channels_last(network)
        high, low = pairs.reduced(number)
        # One by one: a whole batch of these maps would leave the processor's caches.
        images = [network(one) for one in torch.split(low, 1)]
        made = {"high": high, "low": low, "teacher": torch.cat(images).clamp(0, 1)}
        return {name: (part * 255).round().to(torch.uint8) for name, part in made.items()}

    return Shards(
        out / TAUGHT,
        batch,
        settings.batches,
        {
            "data": data.model_dump(mode="json"),
            "teacher": settings.model_dump(mode="json", exclude={"batches"}),
            "seed": of,
        },
    )


def taught(
    shards: Shards, names: tuple[str, ...], size: int, side: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """`size` entries at random, of each the same part of `side` x `side` pixels, turned alike.

    Returns:
        For each name (size, 3, side, side) in [0, 1]; of `low` a quarter of the side.
    """
    entries = shards.pick(size, generator)
    cells = entries[0]["low"].shape[-1] - side // 4
    corners = torch.randint(cells // 2 + 1, (size, 2), generator=generator).mul(2).tolist()
    turns = torch.randint(8, (size,), generator=generator).tolist()
    made = []
    for name in names:
        unit = 1 if name == "low" else 4
        parts = []
        for entry, (y, x), turn in zip(entries, corners, turns, strict=True):
            rows, columns = (slice(unit * at, unit * (at + side // 4)) for at in (y, x))
            part = entry[name][:, rows, columns].rot90(turn % 4, (1, 2))
            parts.append(part.flip(2) if turn >= 4 else part)
        made.append(torch.stack(parts).float() / 255)
    return tuple(made)
