"""Released files to a folder of our own: one tensor in memory at a time, all or nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.checkpoints.description import Description, FileSum, Record, sum_of
from models.checkpoints.empty_prompt import embed_empty_prompt
from models.checkpoints.folder import UNUSED
from models.checkpoints.leftovers import clear_leftovers
from models.checkpoints.pieces import Piece
from models.checkpoints.places import CONFIG
from models.checkpoints.progress import Listener, ignore
from models.checkpoints.sources import Opened, Sources, open_sources
from models.checkpoints.writing import Form, folder_aside, write_tensors
from models.config import ModelConfig
from models.errors import CheckpointMismatch, WeightsExist, WeightsNotFound
from models.presets import PRESETS, Preset, Release

__all__ = ["Converted", "convert"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    folder: Path
    bytes: int
    tensors: int
    record: Record
    dropped: Mapping[str, int]
    """How many tensors of the files were left out, by what they are."""
    foreign: tuple[str, ...]
    """Names of classes and functions in the files that were not executed."""


def convert(
    preset: Preset,
    sources: Sources,
    folder: Path,
    form: Form | None = None,
    *,
    replace_folder: bool = False,
    sums: Mapping[Path, FileSum] | None = None,
    progress: Listener = ignore,
) -> Converted:
    """Writes `folder` from released files; it is complete, or it is not there.

    Args:
        preset: says what the networks predict, and which files are the wrong ones.
        sources: the files.
        folder: what to write.
        form: how it is stored.
        replace_folder: whether an older folder may be replaced.
        sums: of files whose sums are known already; the others are read once more.

    Raises:
        WeightsExist: there is such a folder.
        WeightsNotFound: the preset is shipped with the package and made from no files.
        CheckpointUnreadable: a file is missing, damaged or no checkpoint.
        CheckpointMismatch: a file is not what it was given as, belongs to another preset, or has
            tensors that are missing, left over, of the wrong shape or not finite.
        DiskFull: the disk has no room.
    """
    if preset.release is None:
        raise WeightsNotFound(f"{preset.name} comes with the package: there is nothing to convert.")
    clear_leftovers(folder)
    if folder.exists() and not replace_folder:
        raise WeightsExist(f"{folder} is there already: remove it, or ask for it to be replaced.")
    form = form or Form()
    opened = open_sources(sources, preset.release.prediction)
    if opened.foreign:
        log.info("names in the files that were not executed: %s", ", ".join(opened.foreign))
    origin = _sums(opened.files, sums or {}, progress)
    _check_origin(preset, origin)
    config, pieces, shared = _contents(opened, form)
    with folder_aside(folder) as aside:
        written, kept = write_tensors(aside, pieces, form, progress)
        record = Record(
            preset=preset.name,
            dtype=form.name,
            float32=tuple(kept),
            shared_encoder=shared,
            licence=preset.release.licence,
            licence_url=preset.release.licence_url,
            sources=origin,
            files=_sums(written, {}, progress),
        )
        described = Description(config, record).to_json()
        (aside / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    size = sum(file.bytes for file in record.files)
    return Converted(folder, size, len(pieces), record, opened.dropped, opened.foreign)


def _sums(
    paths: tuple[Path, ...], known: Mapping[Path, FileSum], progress: Listener
) -> tuple[FileSum, ...]:
    return tuple(known.get(path) or sum_of(path, progress) for path in paths)


def _check_origin(preset: Preset, origin: tuple[FileSum, ...]) -> None:
    """Whether a file is known to belong to another preset: their tensors have the same names."""
    for file in origin:
        owners = [p for p in PRESETS.values() if p.release and file.sha256 in _known(p.release)]
        if owners and preset.name not in (owner.name for owner in owners):
            raise CheckpointMismatch(
                f"{file.name} belongs to {owners[0].name}, by its sha256, and not to {preset.name}."
            )


def _known(release: Release) -> set[str | None]:
    return {file.sha256 for file in (*release.files, *release.alternatives)} - {None}


def _contents(opened: Opened, form: Form) -> tuple[ModelConfig, dict[str, Piece], bool]:
    """Sizes of the networks, the tensors to write, and whether one VAE encoder serves both."""
    config, pieces = opened.config, dict(opened.pieces)
    if config.text is None:
        raise CheckpointMismatch(
            f"{opened.files[0]} comes without a text tower, which is needed once, for the "
            "embedding of the empty prompt: give a whole diffusion file, or a base that has "
            "text_encoder/ or cond_stage_model.*."
        )
    context = embed_empty_prompt(config.text, pieces)
    pieces["context"] = Piece(tuple(context.shape), lambda: context)
    differing = list(_differing(pieces, form.dtype))
    if differing:
        log.warning(
            "the VAE encoders of the two files differ in %d tensors (such as %s): both are kept",
            len(differing),
            differing[0],
        )
    if not form.text:
        config = replace(config, text=None)
    left_out = (*(UNUSED if differing else ["first_stage."]), *([] if form.text else ["text."]))
    kept = {name: piece for name, piece in sorted(pieces.items()) if not name.startswith(left_out)}
    return config, kept, not differing


def _differing(pieces: Mapping[str, Piece], dtype: torch.dtype) -> Iterator[str]:
    """Tensors of the two files' VAE encoders that would not be written equal."""
    for name, piece in pieces.items():
        if name.startswith(("first_stage.encoder.", "first_stage.quant_conv.")):
            other = pieces[name.replace("first_stage.", "autoencoder.", 1)]
            if not torch.equal(piece.read().to(dtype), other.read().to(dtype)):
                yield name.removeprefix("first_stage.")
