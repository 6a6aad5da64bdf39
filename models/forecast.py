"""What an image would take with weights that need not be here."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from models.checkpoints.folder import preset_folder
from models.config import ModelConfig
from models.estimate import Weights
from models.flops import Flops, image_flops
from models.folding import fold_convolutions, is_worthwhile
from models.memory import Memory, free_memory, resident
from models.networks.bundle import Networks
from models.options import Options
from models.plan import Plan, Resources, plan
from models.planner import room_to_grow
from models.presets import Preset

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True)
class Forecast:
    """One image on one device."""

    plan: Plan
    flops: Flops
    weights: Weights
    memory: Memory
    """Bytes that there were for the plan, weights included"""


def forecast(
    preset: Preset,
    height: int,
    width: int,
    options: Options,
    *,
    dtype: torch.dtype,
    device: torch.device,
    resources: Resources,
) -> Forecast:
    """Plans an image of these sides (px) and counts its arithmetic.

    `resources.memory_limit` is what the device has; then it need not be in this machine. Without
    one, what is free on it now counts.

    Raises:
        InvalidOption: no canvas or no tiles can be made for it.
        NotEnoughMemory: nothing fits.
    """
    config = _config(preset)
    with torch.device("meta"):
        networks = Networks(config)
    memory = _memory(device, resources)
    if is_worthwhile(device, dtype):
        left = memory.host - Weights.of(networks, dtype).all
        fold_convolutions(networks, room_to_grow(resources, left))
    weights = Weights.of(networks, dtype)
    chosen = plan(
        config,
        preset,
        height,
        width,
        options,
        dtype=dtype,
        device=device,
        memory=memory,
        weights=weights,
        resources=resources,
    )
    steps = preset.steps if options.steps is None else options.steps
    flops = image_flops(config, chosen, steps, fusion=options.fidelity_weight > 0)
    return Forecast(chosen, flops, weights, memory)


def _config(preset: Preset) -> ModelConfig:
    """Of the preset's folder; of the released networks where there is none."""
    file = preset_folder(preset) / "config.json"
    if file.is_file():
        return ModelConfig.from_json(json.loads(file.read_text()))
    released = preset.release
    return ModelConfig() if released is None else ModelConfig(prediction=released.prediction)


def _memory(device: torch.device, resources: Resources) -> Memory:
    limit = resources.memory_limit
    if limit is None:
        return free_memory(device, resources.scratch)
    here = free_memory(torch.device("cpu"), resources.scratch)
    if device.type == "cuda":
        return Memory(limit, here.host, here.disk)
    # What Python and the libraries take of it, this process shows.
    return Memory(0, limit - resident(), here.disk)
