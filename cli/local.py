"""`stablesr upscale` without a server: the pipeline in this process, on this machine's device.

The same defaults and the same decoding and encoding of files as in the worker, so the same
seed gives the same image either way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from cli.checks import check_input, check_output, load, require_torch, valid_parameters
from cli.errors import BadSettings, InputError, JobFailed, translate
from cli.options import UpscaleOptions
from cli.view import Moment, ProgressView, console
from jobs.errors import ImageError
from jobs.settings import Settings
from models.parameters import UpscaleParameters

if TYPE_CHECKING:  # torch takes seconds; what is checked before a model is loaded needs none of it
    from models.pipeline import Progress

__all__ = ["LocalModel", "Written", "parameters_of", "run", "write_aside"]

SPANS = {"encode": (0.0, 0.05), "denoise": (0.05, 0.9), "decode": (0.9, 1.0)}
"""Where each stage lies on the bar; the steps are nearly all of the time."""


@dataclass(frozen=True)
class Written:
    """A result in its file; sides in pixels."""

    width: int
    height: int
    bytes: int


def run(options: UpscaleOptions) -> None:
    """Upscales one file to one result, or to one for each of `--seeds`, which share network calls.

    Raises:
        InputError: the input or output file is at fault.
        NotInstalled: the extra `worker` is missing.
        JobFailed: the preset's weights are not here, or the image cannot be upscaled.
    """
    output_format = check_output(options.target)
    check_input(options.source)
    require_torch()
    settings = load(preset=options.preset, **options.machine())
    parameters = parameters_of(settings, options, output_format)
    targets = options.targets(parameters.seed)
    start = monotonic()
    with ProgressView("loading") as view:
        model = LocalModel(settings, options.decode_tile)
        results = model.upscale(options.source, targets, parameters, view.show)
    time = f"{monotonic() - start:.1f} s on {model.device}."
    lines = [
        f"{path}: {result.width} x {result.height} pixels, {result.bytes} bytes"
        for path, result in zip(targets.values(), results, strict=True)
    ]
    if options.seeds is None:
        lines[0] += f", preset {parameters.preset}, seed {parameters.seed}, {time}"
    else:
        lines = [*(f"{line}." for line in lines), f"Preset {parameters.preset}, {time}"]
    for line in lines:
        console.print(line, soft_wrap=True)


def parameters_of(
    settings: Settings, options: UpscaleOptions, output_format: str
) -> UpscaleParameters:
    """The options as parameters, with all defaults filled in.

    Raises:
        BadSettings: a choice is not possible; the message names each.
    """
    values = {"preset": settings.preset, **options.parameters(), "output_format": output_format}
    with valid_parameters():
        return UpscaleParameters.model_validate(values)


class LocalModel:
    """The settings' preset, loaded on their device; upscales one file after another.

    Raises:
        BadSettings: there is no such device.
        JobFailed: the preset's weights are not here.
    """

    def __init__(self, settings: Settings, decode_tile: int | None = None) -> None:
        from models.errors import ModelError
        from worker.errors import NotStarted
        from worker.loading import load as load_model

        self._max_pixels = settings.max_input_pixels
        with translate({NotStarted: BadSettings, ModelError: JobFailed}):
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
        on_progress: Callable[[Moment], None],
    ) -> list[Written]:
        """Upscales one file from each seed to that seed's target, in their order.

        Raises:
            InputError: the input cannot be decoded, or an output not be written.
            JobFailed: the image cannot be upscaled.
        """
        from models.errors import ModelError
        from worker.images import check_side, decode, rows_of, write

        try:
            content = source.read_bytes()
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error.strerror or error}.") from error
        try:
            image = decode(content, self._max_pixels)
            width, height = (round(side * parameters.scale) for side in image.size)
            check_side(width, height, parameters.output_format)
            results = self._sr.upscale_rows(
                image.rgb, parameters, list(targets), _moments(on_progress)
            )
            written = []
            for target, rows in zip(targets.values(), results, strict=True):
                with write_aside(target) as aside:
                    write(
                        aside,
                        rows_of(image, rows, height, width),
                        width=width,
                        height=height,
                        channels=image.channels,
                        format=parameters.output_format,
                        depth=image.depth,
                    )
                written.append(Written(width, height, target.stat().st_size))
        except ImageError as error:
            raise InputError(f"{source}: {error.detail}") from error
        except ModelError as error:
            raise JobFailed(str(error)) from error
        return written


def _moments(on_progress: Callable[[Moment], None]) -> Callable[[Progress], None]:
    """Turns the pipeline's progress into what a person is shown, with the time left."""
    first_step = 0.0

    def on_step(now: Progress) -> None:
        nonlocal first_step
        low, high = SPANS[now.stage]
        fraction = low + (high - low) * now.step / now.steps
        if now.stage != "denoise":
            on_progress(Moment(now.stage, fraction))
            return
        if now.step == 0:
            first_step = monotonic()
        elapsed = monotonic() - first_step
        eta = elapsed / now.step * (now.steps - now.step) if now.step else None
        on_progress(Moment(now.stage, fraction, now.step + 1, now.steps, eta))

    return on_step


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Gives a path beside `target`, and renames it to `target` when the block ends well.

    Raises:
        InputError: the file cannot be written.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield aside
        aside.replace(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)
