"""What the worker asks of a pipeline, and the one that its settings name.

The protocol is there so that the worker's processes can be tested without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from jobs.settings import Settings
from models.checkpoints.places import Absence, preset_folder
from models.data_parallel import DataParallel
from models.denoiser import Denoiser
from models.pipeline import StableSR
from models.presets import get_preset
from models.sampling import Sampler, StepRequest
from worker.device import (
    choose_device,
    choose_dtype,
    compile_options_of,
    devices_of,
    resources_of,
)
from worker.errors import StartupError

if TYPE_CHECKING:
    from models.options import Options

__all__ = ["EncodedImage", "Upscaler", "load", "reason_without_weights", "weights_stamp"]


class EncodedImage(Protocol):
    """An image between its encoding and its decoding; holds memory or files until it is closed."""

    @property
    def summary(self) -> Mapping[str, object]:
        """How it is to go through the memory there is, for the log."""

    def close(self) -> None:
        """Frees what only the decoder would read; may be called again."""


class Upscaler(Protocol):
    """A pipeline in its parts; `models.pipeline.StableSR` is the one there is.

    No method keeps anything between calls: several jobs go through one object at once.
    """

    @property
    def tile_batch(self) -> int:
        """Tiles that a network call has room for."""

    @property
    def offload(self) -> bool:
        """Whether autoencoder and denoiser take turns on the device."""

    @property
    def departures(self) -> Mapping[str, int]:
        """How often it has gone another way than planned since it was loaded, by what: strips or
        calls made smaller, maps kept further away, calls not compiled."""

    def steps_in(self, image: Tensor, options: Options) -> bool:
        """Whether an image (1, 3, H, W) is small enough to be prepared and decoded between the
        strips of a larger one, where `on_progress` is called."""

    # Any: what it returns is handed back as it is, to methods that know more of it.
    def prepare(
        self, image: Tensor, options: Options, on_progress: Callable[[float], None], /
    ) -> Any:
        """Upsample, pad and encode (1, 3, H, W) in [0, 1]; a EncodedImage.

        `on_progress` is called between strips with the fraction done, and may raise to end it.
        """

    def sample(self, image: Any, options: Options, /) -> Sampler:
        """The sampling loop, one yield a step. Closing the generator ends it."""

    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        """One network call for all tiles of all requests; a (n, C, h, w) for each request."""

    def rows(
        self,
        image: Any,
        latent: Tensor,
        options: Options,
        on_progress: Callable[[float], None],
        /,
    ) -> Iterator[Tensor]:
        """The image, decoded when this returns: (3, n, round(scale * W)) float32 in [0, 1] on
        the CPU, from top to bottom, in total round(scale * H) rows. `on_progress` as above."""


def load(settings: Settings, *, jobs: int) -> StableSR:
    """Loads the weights for so many jobs at once; compiles nothing yet.

    Raises:
        StartupError: there is no such device, or it cannot be used so.
        ModelError: the weights are not here, or cannot be used.
    """
    first, *others = map(choose_device, devices_of(settings))
    dtype = choose_dtype(settings.dtype, first)
    compiling = compile_options_of(settings)
    resources = resources_of(settings, jobs=jobs)
    sr = StableSR.from_preset(settings.preset, first, dtype, resources, compiling=compiling)
    if not others:
        return sr
    if sr.offload:
        raise StartupError(
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
