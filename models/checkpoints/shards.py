"""Weights in several files, with an index beside them, as on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from models.checkpoints.stored import Checkpoint
from models.errors import CheckpointUnreadable

__all__ = ["join", "read_index", "shard_name", "split", "write_index"]


def shard_name(number: int, count: int) -> str:
    """The name of a file of several, counted from 1."""
    return f"model-{number:05}-of-{count:05}.safetensors"


def split(sizes: Mapping[str, int], limit: int | None) -> list[list[str]]:
    """Names of tensors in files of at most `limit` bytes; a larger tensor has one of its own."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or (limit is not None and size > room):
            shards.append([])
            room = limit or 0
        shards[-1].append(name)
        room -= size
    return shards


def read_index(index: Path) -> list[Path]:
    """The files that an index lists; they need not be there.

    Raises:
        CheckpointUnreadable: the index is damaged, or names something that is not beside it.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        strangers = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointUnreadable(f"{index} is damaged: {error!r:.200}.") from error
    if strangers:
        raise CheckpointUnreadable(f"{index} names {strangers[0]}, which is no file beside it.")
    return [index.parent / name for name in names]


def write_index(index: Path, shards: Mapping[str, Iterable[str]], size: int) -> None:
    """Lists the names of tensors of each file; `size` is that of all tensors, in bytes."""
    listed = {name: file for file, names in shards.items() for name in names}
    index.write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": listed}, indent=2) + "\n"
    )


def join(folder: Path, parts: Iterable[Checkpoint]) -> Checkpoint:
    """Several files as one checkpoint."""
    opened = list(parts)
    return Checkpoint(
        folder,
        {name: tensor for part in opened for name, tensor in part.tensors.items()},
        tuple(name for part in opened for name in part.others),
        tuple(sorted({name for part in opened for name in part.foreign})),
        tuple(path for part in opened for path in part.files),
    )
