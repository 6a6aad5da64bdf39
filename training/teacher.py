"""What another network makes of degraded photographs: made once, then learned from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.networks.layout import channels_last
from training.config import DataSettings, TeacherSettings
from training.pairs import Pairs, stream
from training.realesrgan import RRDBNet
from training.shards import Shards

__all__ = ["TAUGHT", "taught", "teacher_shards"]

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
