"""The model that the settings name, on its device or over several; what is said without it."""

from __future__ import annotations

from jobs.settings import Settings
from models.checkpoints.places import Absence, preset_folder
from models.data_parallel import DataParallel
from models.denoiser import Denoiser
from models.pipeline import StableSR
from models.presets import get_preset
from worker.device import (
    choose_device,
    choose_dtype,
    compile_options_of,
    devices_of,
    resources_of,
)
from worker.errors import NotStarted

__all__ = ["load", "reason_without_weights", "weights_stamp"]


def load(settings: Settings, *, jobs: int, decode_tile: int | None = None) -> StableSR:
    """Loads the weights for so many jobs at once; compiles nothing yet.

    Raises:
        NotStarted: there is no such device, or it cannot be used so.
        ModelError: the weights are not here, or cannot be used.
    """
    first, *others = map(choose_device, devices_of(settings))
    dtype = choose_dtype(settings.dtype, first)
    compiling = compile_options_of(settings)
    resources = resources_of(settings, jobs=jobs, decode_tile=decode_tile)
    sr = StableSR.from_preset(settings.preset, first, dtype, resources, compiling=compiling)
    if not others:
        return sr
    if sr.offload:
        raise NotStarted(
            "Networks that take turns on the device (offload) cannot compute on several devices: "
            "set STABLESR_OFFLOAD=off, or name one device."
        )
    replicas = (
        StableSR.from_preset(settings.preset, device, dtype, compiling=compiling)
        for device in others
    )
    sr.denoiser = DataParallel([_single(sr), *map(_single, replicas)])
    return sr


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


def _single(sr: StableSR) -> Denoiser:
    assert isinstance(sr.denoiser, Denoiser), "it computes on several devices already"
    return sr.denoiser
