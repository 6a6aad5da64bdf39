"""Tensors of our networks, and how each one is read from the files that are converted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.checkpoints.keys import SCHEDULE_KEYS, Entry, from_released, to_released
from models.checkpoints.mismatch import check_names
from models.checkpoints.stored import Checkpoint, StoredTensor
from models.config import ModelConfig
from models.errors import CheckpointMismatch
from models.networks.bundle import Networks

__all__ = ["Piece", "build_on_meta", "dropped_names", "released_pieces"]

_DROPPED_PREFIXES = {
    "model_ema.": "moving averages of the weights",
    "loss.": "the loss that the autoencoder was trained with",
}
"""What else training leaves in a state dict. Nothing is dropped that is not named here."""


@dataclass(frozen=True)
class Piece:
    """One tensor of ours."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def dropped_names(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Names in a released file that no network has, by what they are."""
    dropped: dict[str, list[str]] = {}
    for name in (*checkpoint.tensors, *checkpoint.others):
        what = next((w for p, w in _DROPPED_PREFIXES.items() if name.startswith(p)), None)
        if name in SCHEDULE_KEYS:
            what = "tables of the noise schedule"
        if what is not None:
            dropped.setdefault(what, []).append(name)
    return dropped


def build_on_meta(config: ModelConfig) -> dict[str, Tensor]:
    """Every tensor of the networks of that size, all of the first stage included, without numbers.

    Raises:
        CheckpointMismatch: there are no networks of that size.
    """
    try:
        with torch.device("meta"):
            return Networks(config, first_stage="whole").state_dict()
    # What layers say of sizes that do not go together.
    except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise CheckpointMismatch(
            f"no networks have the sizes of these tensors ({error}): {config}"
        ) from error


def released_pieces(
    checkpoint: Checkpoint,
    entries: Iterable[Entry],
    ours: Mapping[str, Tensor],
    heads: int,
) -> dict[str, Piece]:
    """Our tensors that a file in the released naming holds.

    Args:
        checkpoint: must hold exactly the tensors of `entries`, beside what is dropped.
        entries: what the file is to hold.
        ours: as `build_on_meta` gives them.
        heads: of the time-aware encoder.

    Raises:
        CheckpointMismatch: tensors are missing, left over or of the wrong shape, by name.
    """
    used = [entry for entry in entries if entry.ours]
    ignored = {entry.released for entry in entries if not entry.ours}
    ignored.update(*dropped_names(checkpoint).values())
    check_names(
        checkpoint.path,
        {name: shape for name, shape in checkpoint.shapes.items() if name not in ignored},
        {e.released: to_released(e, ours, heads).shape for e in used},
        others=(name for name in checkpoint.others if name not in ignored),
    )
    return {
        name: Piece(tuple(ours[name].shape), partial(_read, stored, entry, name, heads))
        for entry in used
        for name, stored in ((n, checkpoint.tensors[entry.released]) for n in entry.ours)
    }


def _read(stored: StoredTensor, entry: Entry, name: str, heads: int) -> Tensor:
    return from_released(entry, stored.read(), heads)[name]
