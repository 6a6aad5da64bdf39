"""`stablesr upscale` without a server: the pipeline in this process, on this machine's device.

The same defaults and the same decoding and encoding of files as in the worker, so the same
seed gives the same image either way.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from pydantic import ValidationError

from cli.errors import InputError, JobFailed
from cli.extras import require_torch
from cli.files import check_input, check_output, write_aside
from cli.settings import BadSettings, load
from cli.upscale import Choices
from cli.view import ProgressView, console
from jobs.errors import ImageError
from jobs.schema import Parameters

__all__ = ["run"]

SHARES = {"encode": (0.0, 0.05), "denoise": (0.05, 0.9), "decode": (0.9, 1.0)}
"""Where each stage lies on the bar; the steps are nearly all of the time."""


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
    settings = load(preset=choices.preset)
    parameters = _parameters({"preset": settings.preset, **choices.given()}, output_format)

    with ProgressView("loading") as view:
        # Imported here: torch takes seconds, and what is checked above needs none of it.
        from models.errors import ModelError
        from models.pipeline import Progress, StableSR
        from worker.device import choose_device, choose_dtype
        from worker.errors import NotStarted
        from worker.images import Picture, check_side, decode, encode
        from worker.options import options_of

        started = monotonic()
        steps_began = 0.0

        def show(now: Progress) -> None:
            nonlocal steps_began
            low, high = SHARES[now.stage]
            fraction = low + (high - low) * now.step / now.steps
            if now.stage != "denoise":
                view.update(now.stage, fraction=fraction)
                return
            if now.step == 0:
                steps_began = monotonic()
            done = monotonic() - steps_began
            eta = done / now.step * (now.steps - now.step) if now.step else None
            view.update(
                now.stage,
                fraction=fraction,
                step=now.step + 1,
                steps=now.steps,
                eta_seconds=eta,
            )

        try:
            device = choose_device(settings.device)
            dtype = choose_dtype(settings.dtype, device)
            sr = StableSR.from_preset(parameters.preset, device, dtype)
            picture = decode(source.read_bytes(), settings.max_input_pixels)
            options = options_of(parameters)
            width, height = (round(side * options.scale) for side in picture.size)
            check_side(width, height, parameters.output_format)
            rgb = sr.upscale(picture.rgb, options, show)
        except ImageError as error:
            raise InputError(f"{source}: {error.detail}") from error
        except NotStarted as error:
            raise BadSettings(str(error)) from error
        except ModelError as error:
            raise JobFailed(str(error)) from error
        height, width = rgb.shape[-2:]
        content = encode(Picture(rgb, picture.alpha_at(height, width)), parameters.output_format)
        with write_aside(target) as aside:
            aside.write_bytes(content)
    console.print(
        f"{target}: {width} x {height} pixels, {len(content)} bytes, preset {parameters.preset}, "
        f"seed {parameters.seed}, {monotonic() - started:.1f} s on {device}.",
        soft_wrap=True,
    )


def _parameters(given: dict[str, float | int | str], output_format: str) -> Parameters:
    try:
        return Parameters.model_validate({**given, "output_format": output_format})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}".removeprefix(": ")
            for fault in error.errors()
        )
        raise BadSettings(faults) from error
