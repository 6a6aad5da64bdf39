"""`stablesr upscale`: a file or a folder, on this machine or by a server.

What either can make of a folder's images is judged by their headers before any work.
"""

from __future__ import annotations

import math
import os
import sys
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from time import monotonic

from rich.markup import escape

from cli import errors, local, remote
from cli.errors import BadSettings, PartialFailure
from cli.folder import Item, Plan, images, left_alone, make_plan
from cli.journal import Work, open_work
from cli.options import UpscaleOptions, with_options
from cli.processes import ends_as_interrupt
from cli.view import FolderView, console, duration, print_text, printable
from jobs.errors import ImageError, ImageTooLarge, OutputTooLarge
from jobs.formats import examine
from jobs.image_file import check_output
from models.geometry import MAX_CANVAS
from models.parameters import SEED_MAX, UpscaleParameters
from models.presets import PRESETS
from stablesr_client import Models


@with_options
def upscale(options: UpscaleOptions) -> None:
    """Upscale one image, or all images of a folder into another."""
    server = options.server
    if server is not None and any(
        value is not None for value in (options.decode_tile, *options.machine().values())
    ):
        raise BadSettings(
            "--tile-batch, --decode-tile, --compile and --devices are for this machine, not for a "
            "server."
        )
    if server is None and options.handling():
        raise BadSettings("--priority and --expires-in are for a server; see --server.")
    if os.path.isdir(options.source):
        if options.seeds is not None:
            raise BadSettings("--seeds is for one image; a folder has one result for each.")
        if options.parallel is not None and server is None:
            raise BadSettings("--parallel is for a server; this machine does one after the other.")
        _upscale_folder(options)
        return
    if options.has_folder_options:
        raise BadSettings(
            "--format, --recursive, --overwrite, --fit and --parallel are for folders; "
            f"{options.source} is none."
        )
    output_format = errors.check_output(options.target)
    # A seed makes a name longer.
    for target in options.targets(SEED_MAX).values():
        errors.check_output(target)
    errors.check_input(options.source, options.page)
    if server is not None:
        remote.upscale_file(options, output_format, server)
    else:
        local.upscale_file(options, output_format)


def _upscale_folder(options: UpscaleOptions) -> None:
    """The images of a folder that are not done yet."""
    start = monotonic()
    plan = make_plan(options)
    number = len(plan.others)
    others = f"; {number} other file{'s' * (number != 1)} left alone" * bool(number)
    others += f"; {plan.hidden} hidden" * bool(plan.hidden)
    if not plan.items and not plan.faults:
        console.print(f"There is no image in {escape(str(options.source))}{others}.")
        _print_others(plan)
        return
    # What can be wrong for all images is found out before the first.
    if options.server is None:
        errors.require_torch()
        settings = errors.load(preset=options.preset, **options.machine())
        preset: str | None = settings.preset
        limits = Models(
            models=(), max_input_pixels=settings.max_input_pixels, max_output_pixels=MAX_CANVAS
        )
        run: Callable[[Work], None] = partial(local.upscale_folder, settings)
    else:
        # It also tells whether the address is right.
        with remote.connect(options.server, options.api_key) as client:
            limits = client.models()
        preset = options.preset or (None if limits.default is None else limits.default.name)
        run = partial(remote.upscale_folder, options.server)
    parameters = {}
    # A server may have presets that are not known here.
    if preset is not None and preset in PRESETS:
        for name in {item.output_format for item in plan.items}:
            parameters[name] = local.parameters_of(preset, options, name)
    with (
        ends_as_interrupt(),
        FolderView() as view,
        open_work(plan, view, replace(options, preset=preset)) as work,
    ):
        before = f", {work.before} done before" if work.before else ""
        try:
            view.begin(work.total, f"{images(work.total)} to do{before}{others}.")
            for name, reason in plan.faults.items():
                work.note(name, reason)
            would_fit = judge(work, limits, parameters)
            if has_work := bool(work.todo):
                run(work)
        except BaseException:
            view.stop()
            console.print(f"{_count(work)}. The same command goes on from here.")
            raise
    time = duration(monotonic() - start)
    console.print(f"{_count(work)}; preset {preset}, seed {work.options.seed}, {time}.")
    _print_others(plan)
    if work.faults:
        lines = "".join(f"\n  {printable(name)}: {why}" for name, why in work.faults.items())
        # Without work in between they have just been listed.
        end = f":{lines}" if has_work else "."
        hint = "\n--fit makes them as large as is allowed." if would_fit else ""
        raise PartialFailure(f"{images(len(work.faults))} failed{end}{hint}")


def _print_others(plan: Plan) -> None:
    if plan.others:
        print_text(f"Left alone:{left_alone(plan)}")


def _count(work: Work) -> str:
    before = f", {work.before} before" if work.before else ""
    return f"{work.result_count} of {images(work.total)} done{before}, {len(work.faults)} failed"


class OverLimit(Exception):
    """An image cannot be made as asked; `fits` is whether a smaller scale would do."""

    def __init__(self, reason: str, *, fits: bool = False) -> None:
        super().__init__(reason)
        self.fits = fits


def judge(work: Work, limits: Models, parameters: Mapping[str, UpscaleParameters]) -> bool:
    """Takes the images over a limit out of the work and says why of each, or with `--fit` gives
    them the largest scale, in hundredths, that fits. Whether `--fit` would keep some of them.

    `parameters` are what is asked for, by the result's format; where there are none the size of
    the result is not judged. A file that cannot be read is left to what decodes it.
    """
    would_fit, items = False, []
    for item in work.todo:
        work.view.look(item.name)
        request = parameters.get(item.output_format)
        try:
            scale = _scale_of(item, request, limits, work.view if work.options.fit else None)
        except OverLimit as error:
            would_fit |= error.fits
            work.note(item.name, str(error))
        else:
            items.append(replace(item, scale=scale))
    work.todo = items
    return would_fit


def _scale_of(
    item: Item, request: UpscaleParameters | None, limits: Models, view: FolderView | None
) -> float | None:
    """The smaller scale at which an image fits, told to the view; None where it fits as asked.

    Raises OverLimit, without a view also where a smaller scale would do.
    """
    largest = limits.max_upload_bytes
    if largest is not None and item.size > largest:
        raise OverLimit(f"It has {item.size} bytes; at most {largest} are taken.")
    try:
        page = request.page if request else None
        data = item.source.read_bytes()
        width, height = examine(data, limits.max_input_pixels or sys.maxsize, page).upright
    except ImageTooLarge as error:
        raise OverLimit(str(error)) from error
    except (ImageError, OSError):
        return None
    if request is None:
        return None
    try:
        parameters = request.for_image(width, height)
    except ValueError as error:
        raise OverLimit(f"{error}.") from error

    def fault_at(scale: float) -> str:
        candidate = parameters.model_copy(update={"scale": scale})
        try:
            check_output(width, height, candidate, limits.max_output_pixels or sys.maxsize)
        except OutputTooLarge as error:
            return str(error)
        return ""

    if not (fault := fault_at(parameters.scale)):
        return None
    smaller = range(100, math.ceil(100 * parameters.scale))
    count = bisect(smaller, False, key=lambda hundredths: bool(fault_at(hundredths / 100)))
    if view is None or not count:
        # What does not fit at all says so of scale 1.
        raise OverLimit(fault if count else fault_at(1), fits=count > 0)
    scale = smaller[count - 1] / 100
    view.fit(item.name, scale, parameters.scale)
    return scale
