"""Released files to a folder of our own: one tensor in memory at a time, all or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.checkpoints.containers import Checkpoint, LazyTensor
from models.checkpoints.files import FileSum, OnProgress, ignore, sum_of
from models.checkpoints.folder import IGNORED_PREFIXES, Record, write_config
from models.checkpoints.sources import Sources, open_sources
from models.checkpoints.writing import Form, clear_leftovers, replaced_folder, write_tensors
from models.config import ModelConfig, TextConfig
from models.errors import CheckpointMismatch, WeightsExist, WeightsNotFound
from models.networks.text import TextTower
from models.presets import PRESETS, Preset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    record: Record
    omissions: Mapping[str, int]
    """How many tensors of the files were left out, by what they are."""
    foreign: tuple[str, ...]
    """Classes and functions in the files that were not executed."""


def convert(
    preset: Preset,
    sources: Sources,
    folder: Path,
    form: Form | None = None,
    *,
    replace_folder: bool = False,
    sums: Mapping[Path, FileSum] | None = None,
    on_progress: OnProgress = ignore,
) -> Conversion:
    """Writes `folder` from released files; it is complete, or it is not there.

    Args:
        preset: says what the networks predict, and which files are the wrong ones.
        sources: the files.
        folder: what to write; an older one is replaced if `replace_folder`.
        form: how it is stored.
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
    form, sums = form or Form(), sums or {}
    config, source, omissions = open_sources(sources, preset.release.prediction)
    if source.foreign:
        log.info("names in the files that were not executed: %s", ", ".join(source.foreign))
    origin = tuple(sums.get(path) or sum_of(path, on_progress) for path in source.files)
    _check_origin(preset, origin)
    config, tensors, one_encoder = _contents(config, source, form)
    with replaced_folder(folder) as new:
        files, float32 = write_tensors(new, tensors, form, on_progress)
        record = Record(
            preset=preset.name,
            dtype=form.dtype,
            float32=tuple(float32),
            shared_encoder=one_encoder,
            licence=preset.licence,
            licence_url=preset.licence_url,
            sources=origin,
            files=tuple(sum_of(path, on_progress) for path in files),
        )
        write_config(new, config, record)
    return Conversion(record, omissions, source.foreign)


def _check_origin(preset: Preset, origin: tuple[FileSum, ...]) -> None:
    """Refuses a file of another preset, which the names of tensors do not tell."""
    for file in origin:
        owners = [
            p.name
            for p in PRESETS.values()
            if (release := p.release)
            and file.sha256 in [f.sha256 for f in (*release.files, *release.alternatives)]
        ]
        if owners and preset.name not in owners:
            raise CheckpointMismatch(
                f"{file.name} belongs to {owners[0]}, by its sha256, and not to {preset.name}."
            )


def _contents(
    config: ModelConfig, source: Checkpoint, form: Form
) -> tuple[ModelConfig, dict[str, LazyTensor], bool]:
    """Sizes of the networks, the tensors to write, and whether one VAE encoder serves both."""
    tensors = dict(source.tensors)
    if config.text is None:
        raise CheckpointMismatch(
            f"{source.files[0]} comes without a text tower, which is needed once, for the "
            "embedding of the empty prompt: give a whole diffusion file, or a base that has "
            "text_encoder/ or cond_stage_model.*."
        )
    context = _embed_empty_prompt(config.text, tensors)
    tensors["context"] = LazyTensor(context.dtype, tuple(context.shape), lambda: context)
    if differences := list(_encoder_differences(tensors, form.torch_dtype)):
        log.warning(
            "the VAE encoders of the two files differ in %d tensors (such as %s): both are kept",
            *(len(differences), differences[0]),
        )
    omissions = IGNORED_PREFIXES if differences else ("first_stage.",)
    if not form.text:
        config, omissions = replace(config, text=None), (*omissions, "text.")
    tensors = {name: t for name, t in sorted(tensors.items()) if not name.startswith(omissions)}
    return config, tensors, not differences


def _encoder_differences(tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> Iterator[str]:
    """Tensors of the two files' VAE encoders that would not be written equal."""
    for name, lazy in tensors.items():
        if name.startswith(("first_stage.encoder.", "first_stage.quant_conv.")):
            other = tensors[name.replace("first_stage.", "autoencoder.", 1)]
            if not torch.equal(lazy.read().to(dtype), other.read().to(dtype)):
                yield name.removeprefix("first_stage.")


@torch.inference_mode()
def _embed_empty_prompt(config: TextConfig, tensors: Mapping[str, LazyTensor]) -> Tensor:
    """What the text tower makes of "": (1, tokens, width), float32.

    The tower of the released files takes 1.4 GB in float32; one block of it is in memory at a time.
    """
    with torch.device("meta"):
        tower = TextTower(config)
    # Start and end are the last two words of the vocabulary; OpenCLIP fills up with zeros.
    tokens = torch.zeros(config.tokens, dtype=torch.long)
    tokens[0], tokens[1] = config.vocabulary - 2, config.vocabulary - 1
    words = tensors["text.token_embedding.weight"].read()[tokens[None]].float()
    state = words + tensors["text.positional_embedding"].read().float()
    for i, block in enumerate(tower.blocks):
        state = _call(block, f"text.blocks.{i}", tensors, state)
    return _call(tower.ln_final, "text.ln_final", tensors, state)


def _call(module: nn.Module, name: str, tensors: Mapping[str, LazyTensor], state: Tensor) -> Tensor:
    """What a module on the meta device gives with its numbers, which it does not keep."""
    numbers = {key: tensors[f"{name}.{key}"].read().float() for key in module.state_dict()}
    result: Tensor = functional_call(module, numbers, (state,))
    return result
