"""The device that the settings name, and the model on it: its precision, memory and weights."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.settings import Settings, state_folder
from models.checkpoints.files import absence_of, preset_folder
from models.compiler import CompileOptions
from models.data_parallel import DataParallel
from models.denoiser import Denoiser
from models.memory import MemoryBudget, in_words, is_out_of_memory
from models.pipeline import StableSR
from models.presets import get_preset

# What an error says of a call that a device cannot make, in a new process neither: CUDA, ROCm and
# the libraries have no kernel for it, or its driver is too old. Other calls go on.
_NO_KERNEL = ("no kernel image is available", "invalid device function", "ARCH_MISMATCH")
_INCAPABLE = (*_NO_KERNEL, "kernel image is invalid", "unsupported toolchain", "NOT_SUPPORTED")
_LOST = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "HIP error", "cuDNN error")
# Relative to the norm; bfloat16 rounds to 8 bits, three times in a row.
_LARGEST_ERROR = 0.02

log = logging.getLogger(__name__)


class StartupError(Exception):
    """The worker cannot start; the message says what to do."""


class UnfitDevice(StartupError):
    """The device is there but does not compute, which a restart would not change."""


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one.

    Raises:
        StartupError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # torch raises RuntimeError for a name it does not know and for a device that is not there,
    # AssertionError where it was built without CUDA.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise StartupError(
            f"STABLESR_DEVICE is {name!r}, which cannot be used here ({reason}); "
            "auto, cpu or cuda:N can."
        ) from error
    return device


def devices_of(settings: Settings) -> list[str]:
    """The names of the devices that share one image's network calls; mostly one.

    Raises:
        StartupError: a GPU is named twice.
    """
    names = [name.strip() for name in settings.device.split(",")]
    twice = {name for name in names if name.startswith("cuda") and names.count(name) > 1}
    if twice:
        raise StartupError(
            f"STABLESR_DEVICE is {settings.device!r}, but has {', '.join(sorted(twice))} twice; "
            "each GPU can be there once, as in cuda:0,cuda:1."
        )
    return names


def named_device(name: str) -> torch.device:
    """The device of that name, which need not be here; `auto` is the processor. Raises
    StartupError where none is called so."""
    try:
        return torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise StartupError(f"The device is {name!r}, but cpu and cuda are devices.") from error


def choose_dtype(name: str, device: torch.device, *others: torch.device) -> torch.dtype:
    """The precision of that name, of the first device for all. `auto` is bfloat16, which has the
    range of float32, where every GPU has instructions for it, else float16, which overflows in the
    attention of some weights (`models.color.check_finite` sees it). A CPU computes in float32
    whatever the name: few have instructions for half precision. The log says what was not asked
    for."""
    if device.type == "cpu":
        if name not in ("auto", "float32"):
            log.warning("the precision is %s, but a CPU computes in float32", name)
        return torch.float32
    if name == "auto":
        name = "bfloat16"
        if not all(map(_has_bfloat16, (device, *others))):
            log.warning("the precision is float16: bfloat16 takes compute capability 8.0")
            name = "float16"
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    return dtypes[name]


def _has_bfloat16(device: torch.device) -> bool:
    """Whether it has instructions for it; one that is not here is taken to."""
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Logs what a GPU is, and has it compute what the networks are made of once: a list of
    architectures would not tell what its driver compiles anew.

    Raises:
        UnfitDevice: this torch has no kernels for it, or a result is not the CPU's.
        RuntimeError: it is lost, or has no memory left.
    """
    if device.type != "cuda":
        return
    gpu = torch.cuda.get_device_properties(device)
    name = f"{device} ({gpu.name}, compute capability {gpu.major}.{gpu.minor})"
    memory, precision = in_words(gpu.total_memory), str(dtype).removeprefix("torch.")
    log.info("%s, UUID %s, %s, computes in %s", name, gpu.uuid, memory, precision)
    unfit = f"{name} cannot be used by torch {torch.__version__}"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 16, 16, generator=generator).to(dtype)
    weight = (torch.randn(8, 8, 3, 3, generator=generator) / 9).to(dtype)
    expected = _sample_output(x.float(), weight.float())
    try:
        result = _sample_output(x.to(device), weight.to(device)).float().cpu()
    except RuntimeError as error:
        if is_device_lost(error) or is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        if any(sign in reason for sign in _NO_KERNEL):
            reason = f"it has kernels for {', '.join(torch.cuda.get_arch_list())} only"
        raise UnfitDevice(f"{unfit}: {reason}.") from error
    error_of_result = float((result - expected).norm() / expected.norm())
    if not error_of_result < _LARGEST_ERROR:  # nor where it is no number
        raise UnfitDevice(
            f"{unfit}: its convolution and matrix product in {precision} are wrong, by "
            f"{error_of_result:.2g} of the CPU's."
        )


def _sample_output(x: Tensor, weight: Tensor) -> Tensor:
    """By kernels of cuDNN, torch and cuBLAS: (n, c, h, w) -> (n, c, c)."""
    y = F.silu(F.conv2d(x, weight, padding=1)).flatten(2)
    return y @ y.mT


def budget_of(settings: Settings, *, jobs: int, decode_tile: int | None = None) -> MemoryBudget:
    """What the settings decide of the memory that so many jobs at once have."""
    return MemoryBudget(
        memory_limit=settings.memory_limit,
        tile_batch=settings.tile_batch,
        decode_tile=decode_tile,
        concurrent=jobs > 1,
    )


def compile_options_of(settings: Settings) -> CompileOptions:
    """Whether and how the settings have network calls compiled."""
    return CompileOptions(settings.compile, state_folder() / "compiled", settings.fixed_batch)


def memory_in_use(device: str) -> dict[str, int]:
    """Bytes by kind: of a GPU what is allocated now and was at most, what this process holds and
    what there is; elsewhere the most that this process had resident."""
    if not device.startswith("cuda"):
        import resource  # Windows has none, and no worker

        # Linux counts it in KiB.
        return {"resident_peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "allocated_peak": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        # Known on the host: nothing here waits for a device that hangs.
        "total": torch.cuda.get_device_properties(device).total_memory,
    }


def is_device_lost(error: BaseException) -> bool:
    """Whether every further call on this process's device will fail too: after an asynchronous
    error (an illegal access, a failed assertion, a bus fault) its context is gone for good, as it
    is when the GPU is (an Xid, memory that cannot be corrected)."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    said = str(error)
    return any(sign in said for sign in _LOST) and not any(sign in said for sign in _INCAPABLE)


def load(settings: Settings, *, jobs: int, decode_tile: int | None = None) -> StableSR:
    """Loads the weights for so many jobs at once; compiles nothing yet.

    Raises:
        StartupError: there is no such device, or it cannot be used so.
        UnfitDevice: one of them does not compute.
        ModelError: the weights are not here, or cannot be used.
    """
    first, *others = map(choose_device, devices_of(settings))
    dtype = choose_dtype(settings.dtype, first, *others)
    for device in (first, *others):
        check_device(device, dtype)
    compiling = compile_options_of(settings)
    budget = budget_of(settings, jobs=jobs, decode_tile=decode_tile)
    sr = StableSR.from_preset(settings.preset, first, dtype, budget, compiling=compiling)
    if not others:
        return sr
    if sr.offload:
        raise StartupError(
            "Networks that take turns on the device (offload) cannot compute on several devices: "
            "raise STABLESR_MEMORY_LIMIT, or name one device."
        )
    replicas = (
        StableSR.from_preset(settings.preset, device, dtype, compiling=compiling)
        for device in others
    )
    sr.denoiser = DataParallel([_single(sr), *map(_single, replicas)])
    return sr


def weights_stamp(preset: str) -> tuple[int, int] | None:
    """Tells one set of weights from the next in the same place; None where there is none.

    Weights are whole once there is a `config.json`, which is written last or comes with them.
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
    return absence_of(get_preset(preset)) or "its weights are not on the worker's machine"


def _single(sr: StableSR) -> Denoiser:
    assert isinstance(sr.denoiser, Denoiser), "it computes on several devices already"
    return sr.denoiser
