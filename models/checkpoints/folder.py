"""A folder of our own weights: `config.json`, and `model.safetensors` in one file or in several.

`config.json` says the networks' sizes and, under "weights", where the numbers come from. There is
no date in it: the same files converted in the same way give the same folder, byte for byte.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.containers import Checkpoint, join, open_safetensors, read_index
from models.checkpoints.files import (
    CONFIG,
    INDEX,
    WEIGHTS,
    FileSum,
    OnProgress,
    WeightsProgress,
    ignore,
    replace_text,
    sum_of,
    write_aside,
)
from models.config import ModelConfig
from models.errors import CheckpointMismatch, CheckpointUnreadable, WeightsNotFound
from models.networks.bundle import Networks

IGNORED_PREFIXES = ("first_stage.decoder.", "first_stage.post_quant_conv.")
"""How the names of tensors begin that no step calls: images are decoded by the CFW file's decoder.
Conversions used to keep them."""
_FORMAT, _MAX_FAULTS = 1, 5


@dataclass(frozen=True)
class Record:
    """How a folder came to be."""

    preset: str
    dtype: str
    """Of its tensors, but for those in float32."""
    float32: tuple[str, ...]
    """Tensors kept in float32 because they do not fit the type of the others."""
    shared_encoder: bool
    """Whether one VAE encoder serves both, the two files' being equal."""
    licence: str
    licence_url: str
    sources: tuple[FileSum, ...]
    """What was converted."""
    files: tuple[FileSum, ...]
    """What was written."""
    format: int = _FORMAT


def write_config(folder: Path, config: ModelConfig, record: Record | None = None) -> None:
    """Writes `config.json`; without a record for weights that no conversion made."""
    fields = config.to_json() | ({"weights": asdict(record)} if record else {})
    replace_text(folder / CONFIG, json.dumps(fields, indent=2) + "\n")


def describe(folder: Path) -> tuple[ModelConfig, Record | None]:
    """What the folder's `config.json` says.

    Raises:
        WeightsNotFound: there is none.
        CheckpointUnreadable: it is damaged, or of a version that is not known.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsNotFound(f"There are no weights in {folder}: {CONFIG} is missing.")
    try:
        fields = json.loads(path.read_text())
        record = fields.pop("weights", None)
        return ModelConfig.from_json(fields), record and _record(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointUnreadable(
            f"{path} does not describe weights that this version can read ({error!r:.200}); "
            "convert the weights again, or use the version that wrote it."
        ) from error


def _record(fields: dict[str, Any]) -> Record:
    if fields["format"] != _FORMAT:
        raise ValueError(f"format {fields['format']} instead of {_FORMAT}")
    sums = {key: tuple(FileSum(**item) for item in fields[key]) for key in ("sources", "files")}
    return Record(**{**fields, **sums, "float32": tuple(fields["float32"])})


def save_folder(networks: Networks, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes the folder, each file aside first and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(dtype).contiguous() for k, v in networks.state_dict().items()}
    with write_aside(folder / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors leaves the file to its owner alone
    write_config(folder, networks.config)


def open_folder(folder: Path) -> tuple[Networks, Checkpoint]:
    """Networks without numbers, on the meta device, and where their numbers lie.

    Raises:
        WeightsNotFound: the folder or one of its files is not there.
        CheckpointUnreadable: a file is damaged.
        CheckpointMismatch: tensors are missing, left over or of the wrong shape, by name.
    """
    config, _ = describe(folder)
    checkpoint = join(folder, map(open_safetensors, _files(folder)))
    tensors = {
        name: t for name, t in checkpoint.tensors.items() if not name.startswith(IGNORED_PREFIXES)
    }
    checkpoint = replace(checkpoint, tensors=tensors)
    own = any(name.startswith("first_stage.") for name in tensors)
    with torch.device("meta"):
        networks = Networks(config, first_stage="encoder" if own else None)
    shapes = {name: tensor.shape for name, tensor in networks.state_dict().items()}
    check_names(folder, checkpoint.shapes, shapes, to=f"its {CONFIG}")
    return networks, checkpoint


def _files(folder: Path) -> list[Path]:
    """The files that hold the folder's tensors."""
    single, index = folder / WEIGHTS, folder / INDEX
    files = read_index(index) if index.is_file() and not single.is_file() else [single]
    for path in files:
        if not path.is_file():
            raise WeightsNotFound(f"The weights in {folder} are not complete: {path} is missing.")
    return files


def check_names(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    reference: Mapping[str, Sequence[int]],
    *,
    others: Iterable[str] = (),
    to: str = "the networks",
) -> None:
    """Whether the names and shapes of tensors are exactly those of `reference`.

    `others` are names that hold no tensor; `path` and `to` say in the message what does not fit.

    Raises:
        CheckpointMismatch: with the first few names of what is missing, left over or of the wrong
            shape.
    """
    faults = [f"missing {name}" for name in sorted(reference.keys() - shapes.keys())]
    faults += [f"left over {name}" for name in sorted({*shapes, *others} - reference.keys())]
    faults += [
        f"{name} has shape {tuple(shapes[name])} instead of {tuple(reference[name])}"
        for name in sorted(reference.keys() & shapes.keys())
        if tuple(reference[name]) != tuple(shapes[name])
    ]
    if faults:
        more = f" and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        first = "; ".join(faults[:_MAX_FAULTS])
        raise CheckpointMismatch(f"{path} does not fit {to}: {first}{more}.")


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Networks:
    """Networks of a folder, in evaluation mode, on the device.

    Raises:
        WeightsNotFound: the folder or one of its files is not there.
        CheckpointUnreadable: a file is damaged.
        CheckpointMismatch: tensors are missing, left over or of the wrong shape, or do not fit
            into `dtype`, by name.
    """
    networks, checkpoint = open_folder(folder)
    tensors: dict[str, Tensor] = {}
    for name, lazy in checkpoint.tensors.items():
        # Read, not mapped: mapped pages count as free memory, and plans add what is loaded.
        tensors[name] = lazy.read().to(device=device, dtype=dtype)
        # Conversion keeps what float16 cannot hold in float32.
        narrow = (lazy.dtype, dtype) == (torch.float32, torch.float16)
        if narrow and not is_finite(tensors[name]):
            raise CheckpointMismatch(
                f"{name} in {folder} has values that float16 cannot hold: use bfloat16 or float32."
            )
    networks.load_state_dict(tensors, assign=True)
    return networks.eval().requires_grad_(False)


def random_networks(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Networks:
    """Networks with random weights of sensible size: for timing, where values do not matter."""
    with torch.device("meta"):
        networks = Networks(config)
    networks = networks.to(dtype).to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in networks.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, 0.9 / fan_in**0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return networks.eval().requires_grad_(False)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; without a mask of the tensor's size."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in torch.aminmax(tensor))


@dataclass(frozen=True)
class Verification:
    """What a folder without fault holds."""

    bytes: int
    dtypes: Mapping[str, int]
    """How many tensors have each type."""
    record: Record | None
    """With the sums that the files were compared with; None where none were recorded."""


def verify(folder: Path, on_progress: OnProgress = ignore) -> Verification:
    """Reads all of a folder: every tensor there and finite, and the files as they were written.

    Raises:
        WeightsNotFound: the folder or one of its files is not there.
        CheckpointUnreadable: a file is damaged, or not what was written.
        CheckpointMismatch: tensors are missing, left over, of the wrong shape or not finite.
    """
    _, record = describe(folder)
    _, checkpoint = open_folder(folder)
    for file in record.files if record else ():
        current = sum_of(folder / file.name, on_progress)
        if current != file:
            raise CheckpointUnreadable(
                f"{folder / file.name} is not what was written: its sha256 is {current.sha256} and "
                f"was {file.sha256}. Pull or convert the weights again."
            )
    total = sum(path.stat().st_size for path in checkpoint.files)
    position, dtypes = 0, Counter[str]()
    for name, lazy in checkpoint.tensors.items():
        tensor = lazy.read()
        if not is_finite(tensor):
            raise CheckpointMismatch(f"{name} in {folder} has values that are no numbers.")
        dtypes[str(tensor.dtype).removeprefix("torch.")] += 1
        position += tensor.nbytes
        on_progress(WeightsProgress("verify", folder.name, position, total))
    return Verification(total, dtypes, record)
