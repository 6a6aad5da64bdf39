"""The model that the settings name, on its device or over several; what is said without it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from jobs.settings import Settings
from models.checkpoints.places import Absence, preset_folder
from models.compiled import Compiling, Denoises
from models.pipeline import StableSR
from models.presets import get_preset
from models.spread import Peers, Spread, start
from worker.device import choose_device, choose_dtype, compiling_of, devices_of, resources_of
from worker.errors import NotStarted

__all__ = ["Loaded", "load", "reason_without_weights", "weights_stamp"]


@dataclass(frozen=True)
class Loaded:
    """A model, and the processes of further devices that make its network calls with it."""

    sr: StableSR
    peers: Peers | None
    """None where there is one device"""

    @property
    def devices(self) -> list[str]:
        """Where it computes."""
        return [str(self.sr.device), *(self.peers.names if self.peers is not None else ())]

    def close(self) -> None:
        """Ends these processes."""
        if self.peers is not None:
            self.peers.close()


def load(settings: Settings, *, jobs: int) -> Loaded:
    """Loads the weights for so many jobs at once; compiles nothing yet.

    Raises:
        NotStarted: there is no such device, or it cannot be used so.
        ModelError: the weights are not here, or cannot be used.
    """
    first, *others = map(choose_device, devices_of(settings))
    if others and settings.reuse_every > 1:
        raise NotStarted(
            f"STABLESR_REUSE_EVERY is {settings.reuse_every}, but must be 1 with several devices: "
            "deep features stay where they were computed."
        )
    dtype = choose_dtype(settings.dtype, first)
    compiling = compiling_of(settings)
    resources = resources_of(settings, jobs=jobs)
    sr = StableSR.from_preset(settings.preset, first, dtype, resources, compiling=compiling)
    if not others:
        return Loaded(sr, None)
    if sr.planner.resources.offload:
        raise NotStarted(
            "Networks that take turns on the device (offload) cannot be spread over several: "
            "set STABLESR_OFFLOAD=off, or name one device."
        )
    load_there = partial(_denoiser, settings.preset, dtype, compiling)
    peers = start([str(device) for device in others], load_there)
    sr.denoiser = Spread(sr.denoiser, peers)
    return Loaded(sr, peers)


def weights_stamp(preset: str) -> tuple[int, int] | None:
    """Tells one set of weights from the next in the same place; None where there is none.

    `config.json` is written last or comes with its folder, so the weights are whole once it is
    there.
    """
    try:
        status = (preset_folder(get_preset(preset)) / "config.json").stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def reason_without_weights(preset: str) -> str:
    """Why a preset that could not be loaded is not served: a clause that clients may read."""
    if weights_stamp(preset) is not None:
        return "its weights on the worker's machine cannot be used"
    absence = Absence.of(get_preset(preset))
    return "its weights are not on the worker's machine" if absence is None else absence.reason


def _denoiser(
    preset: str, dtype: torch.dtype, compiling: Compiling, device: torch.device
) -> Denoises:
    sr = StableSR.from_preset(preset, device, dtype, compiling=compiling)
    return sr.denoiser
