"""`stablesr upscale` without a server: the pipeline in this process, on this machine's device.

The same defaults and the same decoding and encoding of files as in the worker, so the same
seed gives the same image either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from pydantic import ValidationError

from cli.errors import InputError, JobFailed
from cli.extras import require_torch
from cli.files import check_input, check_output, write_aside
from cli.options import Choices
from cli.settings import BadSettings, load
from cli.view import Moment, ProgressView, console
from jobs.errors import ImageError
from jobs.schema import Parameters
from jobs.settings import Settings

if TYPE_CHECKING:  # torch takes seconds; what is checked before a model is loaded needs none of it
    from models.pipeline import Progress

__all__ = ["LocalModel", "Written", "parameters_of", "run"]

SHARES = {"encode": (0.0, 0.05), "denoise": (0.05, 0.9), "decode": (0.9, 1.0)}
"""Where each stage lies on the bar; the steps are nearly all of the time."""


@dataclass(frozen=True)
class Written:
    """A result that was written; sides in pixels."""

    width: int
    height: int
    bytes: int


def run(source: Path, target: Path, choices: Choices) -> None:
    """Upscales `source` to `target`.

    Raises:
        InputError: the input or output file is at fault.
        NotInstalled: the extra `worker` is missing.
        JobFailed: the preset's weights are not here, or the image cannot be upscaled.
    """
    output_format = check_output(target)
    check_input(source)
    require_torch()
    settings = load(preset=choices.preset, **choices.host())
    parameters = parameters_of(settings, choices, output_format)
    started = monotonic()
    with ProgressView("loading") as view:
        model = LocalModel(settings)
        written = model.upscale(source, target, parameters, view.show)
    console.print(
        f"{target}: {written.width} x {written.height} pixels, {written.bytes} bytes, "
        f"preset {parameters.preset}, seed {parameters.seed}, "
        f"{monotonic() - started:.1f} s on {model.device}.",
        soft_wrap=True,
    )


def parameters_of(settings: Settings, choices: Choices, output_format: str) -> Parameters:
    """The choices with all defaults filled in.

    Raises:
        BadSettings: a choice is not possible; the message names each.
    """
    given = {"preset": settings.preset, **choices.given(), "output_format": output_format}
    try:
        return Parameters.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}".removeprefix(
                ": Value error, "
            )
            for fault in error.errors()
        )
        raise BadSettings(faults) from error


class LocalModel:
    """The settings' preset, loaded on their device; upscales one file after another.

    Raises:
        BadSettings: there is no such device.
        JobFailed: the preset's weights are not here.
    """

    def __init__(self, settings: Settings) -> None:
        from models.errors import ModelError
        from worker.errors import NotStarted
        from worker.loading import load as load_model

        self._settings = settings
        try:
            self._sr = load_model(settings, jobs=1)
        except NotStarted as error:
            raise BadSettings(str(error)) from error
        except ModelError as error:
            raise JobFailed(str(error)) from error

    @property
    def device(self) -> str:
        """Where it computes."""
        return ", ".join(map(str, self._sr.denoiser.devices))

    def upscale(
        self, source: Path, target: Path, parameters: Parameters, show: Callable[[Moment], None]
    ) -> Written:
        """Upscales one file; `show` hears every stage and step.

        Raises:
            InputError: the input cannot be decoded, or the output not be written.
            JobFailed: the image cannot be upscaled.
        """
        [written] = self.upscale_seeds(source, {parameters.seed: target}, parameters, show)
        return written

    def upscale_seeds(
        self,
        source: Path,
        targets: Mapping[int, Path],
        parameters: Parameters,
        show: Callable[[Moment], None],
    ) -> list[Written]:
        """Upscales one file from each seed to that seed's target, in their order.

        Raises:
            InputError: the input cannot be decoded, or an output not be written.
            JobFailed: the image cannot be upscaled.
        """
        from models.errors import ModelError
        from worker.images import check_side, decode, rows_of, write
        from worker.options import options_of

        try:
            picture = decode(_read(source), self._settings.max_input_pixels)
            options = options_of(parameters)
            width, height = (round(side * options.scale) for side in picture.size)
            check_side(width, height, parameters.output_format)
            written = []
            results = self._sr.upscale_rows(picture.rgb, options, list(targets), _Narrator(show))
            for target, rows in zip(targets.values(), results, strict=True):
                with write_aside(target) as aside:
                    write(
                        aside,
                        rows_of(picture, rows, height, width),
                        width=width,
                        height=height,
                        channels=picture.channels,
                        format=parameters.output_format,
                        depth=picture.depth,
                    )
                written.append(Written(width, height, target.stat().st_size))
        except ImageError as error:
            raise InputError(f"{source}: {error.detail}") from error
        except ModelError as error:
            raise JobFailed(str(error)) from error
        return written


class _Narrator:
    """Turns the pipeline's progress into what a person is shown, with the time left."""

    def __init__(self, show: Callable[[Moment], None]) -> None:
        self._show = show
        self._steps_began = 0.0

    def __call__(self, now: Progress) -> None:
        low, high = SHARES[now.stage]
        fraction = low + (high - low) * now.step / now.steps
        if now.stage != "denoise":
            self._show(Moment(now.stage, fraction))
            return
        if now.step == 0:
            self._steps_began = monotonic()
        done = monotonic() - self._steps_began
        eta = done / now.step * (now.steps - now.step) if now.step else None
        self._show(Moment(now.stage, fraction, now.step + 1, now.steps, eta))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
