"""`stablesr upscale` without a server: the pipeline in this process.

The same defaults and the same decoding and encoding of files as in the worker, so the same
seed gives the same image either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from cli.checks import valid_parameters
from cli.errors import BadSettings, InputError, JobFailure, file_errors, translate
from cli.options import UpscaleOptions
from jobs.errors import ImageError
from jobs.settings import Settings
from models.checkpoints.files import write_aside
from models.parameters import UpscaleParameters
from stablesr_client import Progress

if TYPE_CHECKING:  # torch takes seconds; what is checked before a model is loaded needs none of it
    from models.pipeline import Progress as ModelProgress

SPANS = {"encode": (0.0, 0.05), "denoise": (0.05, 0.9), "decode": (0.9, 1.0)}
"""Where each stage lies on the bar; the steps are nearly all of the time."""


def parameters_of(
    settings: Settings, options: UpscaleOptions, output_format: str
) -> UpscaleParameters:
    """The options as parameters, with all defaults filled in."""
    values = {"preset": settings.preset, **options.parameters(output_format)}
    with valid_parameters():
        return UpscaleParameters.model_validate(values)


class LocalModel:
    """The settings' preset, loaded on their device; upscales one file after another.

    Raises:
        BadSettings: there is no such device.
        JobFailure: the preset's weights are not here.
    """

    def __init__(self, settings: Settings, decode_tile: int | None = None) -> None:
        from models.errors import ModelError
        from worker.device import load as load_model
        from worker.errors import StartupError

        self._max_pixels = settings.max_input_pixels
        with translate({StartupError: BadSettings, ModelError: JobFailure}):
            self._sr = load_model(settings, jobs=1, decode_tile=decode_tile)

    @property
    def device(self) -> str:
        """Where it computes."""
        return ", ".join(map(str, self._sr.denoiser.devices))

    def upscale(
        self,
        source: Path,
        targets: Mapping[int, Path],
        parameters: UpscaleParameters,
        on_progress: Callable[[Progress], None],
    ) -> tuple[int, int]:
        """Upscales one file from each seed to that seed's target, in their order.

        Returns:
            Width and height of the results (px).

        Raises:
            InputError: the input cannot be decoded, or an output not be written.
            JobFailure: the image cannot be upscaled.
        """
        from models.errors import ModelError
        from worker.images import check_side, decode, rows_of, write

        with file_errors(source, "read"):
            content = source.read_bytes()
        where = f"{source}: "
        with translate({ModelError: JobFailure}), translate({ImageError: InputError}, where):
            image = decode(content, self._max_pixels)
            width, height = (round(side * parameters.scale) for side in image.size)
            check_side(width, height, parameters.output_format)
            results = self._sr.upscale_rows(
                image.rgb, parameters, list(targets), _progress(on_progress)
            )
            for target, rows in zip(targets.values(), results, strict=True):
                with file_errors(target, "written"), write_aside(target) as aside:
                    write(
                        aside,
                        rows_of(image, rows, height, width),
                        width=width,
                        height=height,
                        channels=image.channels,
                        format=parameters.output_format,
                        depth=image.depth,
                    )
        return width, height


def _progress(on_progress: Callable[[Progress], None]) -> Callable[[ModelProgress], None]:
    """Turns the pipeline's progress into what a person is shown, with the time left."""
    first_step = 0.0

    def on_step(now: ModelProgress) -> None:
        nonlocal first_step
        low, high = SPANS[now.stage]
        fraction = low + (high - low) * now.step / now.steps
        progress = Progress(stage=now.stage, fraction=fraction)
        if now.stage == "denoise":
            if now.step == 0:
                first_step = monotonic()
            seconds = monotonic() - first_step
            eta = seconds / now.step * (now.steps - now.step) if now.step else None
            steps = {"step": now.step + 1, "steps": now.steps, "eta_seconds": eta}
            progress = progress.model_copy(update=steps)
        on_progress(progress)

    return on_step
