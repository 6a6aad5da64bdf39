"""`stablesr upscale` without a server: the pipeline in this process.

The same defaults and the same decoding and encoding of files as in the worker, so the same
seed gives the same image either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from cli import errors
from cli.errors import BadSettings, InputError, JobFailure, file_errors, translate
from cli.journal import Work
from cli.options import UpscaleOptions
from cli.view import ProgressView, console
from jobs.errors import ImageError
from jobs.settings import Settings
from models.checkpoints.files import write_aside
from models.parameters import UpscaleParameters
from stablesr_client import Progress

if TYPE_CHECKING:  # torch takes seconds; what is checked before a model is loaded needs none of it
    from models.pipeline import Progress as ModelProgress

SPANS = {"encode": (0.0, 0.05), "denoise": (0.05, 0.9), "decode": (0.9, 1.0)}
"""Where each stage lies on the bar; the steps are nearly all of the time."""


def parameters_of(preset: str, options: UpscaleOptions, output_format: str) -> UpscaleParameters:
    """The options as parameters, with all defaults filled in."""
    values = {"preset": preset, **options.parameters(output_format)}
    with errors.valid_parameters():
        return UpscaleParameters.model_validate(values)


def upscale_file(options: UpscaleOptions, output_format: str) -> None:
    """One file here, to one result, or to one for each of `--seeds`, which share network calls."""
    errors.require_torch()
    settings = errors.load(preset=options.preset, **options.machine())
    parameters = parameters_of(settings.preset, options, output_format)
    targets = options.targets(parameters.seed)
    start = monotonic()
    with ProgressView("loading") as view:
        model = LocalModel(settings, options.decode_tile)
        width, height = model.upscale(options.source, targets, parameters, view.show)
    time = f"{monotonic() - start:.1f} s on {model.device}."
    lines = [
        f"{path}: {width} x {height} pixels, {path.stat().st_size} bytes"
        for path in targets.values()
    ]
    if options.seeds is None:
        lines[0] += f", preset {parameters.preset}, seed {parameters.seed}, {time}"
    else:
        lines = [*(f"{line}." for line in lines), f"Preset {parameters.preset}, {time}"]
    for line in lines:
        console.print(line, soft_wrap=True)


def upscale_folder(settings: Settings, work: Work) -> None:
    """One image after another, by one model in this process."""
    model = LocalModel(settings, work.options.decode_tile)
    for item in work.todo:
        parameters = parameters_of(settings.preset, work.options_of(item), item.output_format)
        targets, show = {parameters.seed: item.target}, partial(work.view.show, item.name)
        try:
            work.begin(item)
            size = model.upscale(item.source, targets, parameters, show)
        except (InputError, JobFailure) as error:
            work.fail(item, str(error))
        except OSError as error:
            work.fail(item, error.strerror or str(error))
        # One bad file never stops the rest, whatever a decoder or the device makes of it.
        except Exception as error:
            work.fail(item, f"{type(error).__name__}: {error}")
        else:
            work.end(item, *size)


class LocalModel:
    """The settings' preset, loaded on their device.

    Raises:
        BadSettings: there is no such device.
        JobFailure: the preset's weights are not here.
    """

    def __init__(self, settings: Settings, decode_tile: int | None = None) -> None:
        from models.errors import ModelError
        from worker.device import StartupError
        from worker.device import load as load_model

        self._max_pixels = settings.max_input_pixels
        with translate({StartupError: BadSettings, ModelError: JobFailure}):
            self._sr = load_model(settings, jobs=1, decode_tile=decode_tile)
        self.device = ", ".join(map(str, self._sr.denoiser.devices))

    def upscale(
        self,
        source: Path,
        targets: Mapping[int, Path],
        parameters: UpscaleParameters,
        on_progress: Callable[[Progress], None],
    ) -> tuple[int, int]:
        """Upscales one file from each seed to that seed's target; gives their width and height.

        Raises:
            InputError: the input cannot be decoded, or an output not be written.
            JobFailure: the image cannot be upscaled.
        """
        from models.errors import ModelError
        from worker.images import check_side, decode, metadata_of, rows_of, write

        with file_errors(source, "read"):
            content = source.read_bytes()
        where = f"{source}: "
        with translate({ModelError: JobFailure}), translate({ImageError: InputError}, where):
            image = decode(content, self._max_pixels, parameters.page)
            try:
                parameters = parameters.for_image(*image.size)
            except ValueError as error:
                raise InputError(f"{where}{error}.") from error
            width, height = (round(side * parameters.scale) for side in image.size)
            check_side(width, height, parameters.output_format)
            show = _progress(on_progress)
            results = self._sr.upscale_rows(image.rgb, parameters, list(targets), show)
            for (seed, target), rows in zip(targets.items(), results, strict=True):
                request = parameters.model_copy(update={"seed": seed})
                with file_errors(target, "written"), write_aside(target) as aside:
                    write(
                        aside,
                        rows_of(image, rows, height, width, parameters.alpha),
                        width=width,
                        height=height,
                        channels=image.channels,
                        format=parameters.output_format,
                        depth=image.depth,
                        quality=parameters.quality,
                        metadata=metadata_of(content, image.header, request, width, height),
                    )
        return width, height


def _progress(on_progress: Callable[[Progress], None]) -> Callable[[ModelProgress], None]:
    """Turns the pipeline's progress into what a person is shown, with the time left."""
    first_step = 0.0

    def on_step(now: ModelProgress) -> None:
        nonlocal first_step
        (low, high), step, steps = SPANS[now.stage], now.step, now.steps
        progress = Progress(stage=now.stage, fraction=low + (high - low) * step / steps)
        if now.stage == "denoise":
            first_step = first_step if step else monotonic()
            eta = (monotonic() - first_step) / step * (steps - step) if step else None
            update = {"step": step + 1, "steps": steps, "eta_seconds": eta}
            progress = progress.model_copy(update=update)
        on_progress(progress)

    return on_step
