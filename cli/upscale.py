"""`stablesr upscale`: a file or a folder, on this machine or by a server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import monotonic

from rich.markup import escape

from cli import errors, local, remote
from cli.errors import BadSettings, PartialFailure
from cli.folder import Plan, images, left_alone, make_plan
from cli.journal import Work, open_work
from cli.limits import Limits, judge
from cli.options import UpscaleOptions, with_options
from cli.processes import ends_as_interrupt
from cli.view import FolderView, console, duration, printable
from models.parameters import SEED_MAX
from models.presets import PRESETS


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
        limits = Limits(input_pixels=settings.max_input_pixels)
        run: Callable[[Work], None] = partial(local.upscale_folder, settings)
    else:
        # It also tells whether the address is right.
        with remote.connect(options.server, options.api_key) as client:
            models = client.models()
        limits, default = Limits.of(models), models.default
        preset = options.preset or (None if default is None else default.name)
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
        console.print(f"Left alone:{left_alone(plan)}", markup=False, soft_wrap=True)


def _count(work: Work) -> str:
    before = f", {work.before} before" if work.before else ""
    return f"{work.result_count} of {images(work.total)} done{before}, {len(work.faults)} failed"
