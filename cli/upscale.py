"""`stablesr upscale`: a file or a folder, on this machine or by a server."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import monotonic

from rich.markup import escape

from cli import remote
from cli.checks import check_input, check_output, load, require_torch
from cli.errors import BadSettings, InputError, JobFailure, PartialFailure
from cli.folder import images, make_plan
from cli.journal import Journal, Work
from cli.local import LocalModel, parameters_of
from cli.options import UpscaleOptions, with_options
from cli.processes import ends_as_interrupt
from cli.view import FolderView, ProgressView, console, duration, printable
from jobs.settings import Settings
from models.parameters import SEED_MAX


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
    if options.source.is_dir():
        if options.seeds is not None:
            raise BadSettings("--seeds is for one image; a folder has one result for each.")
        if options.parallel is not None and server is None:
            raise BadSettings("--parallel is for a server; this machine does one after the other.")
        _upscale_folder(options)
        return
    if options.has_folder_options:
        raise BadSettings(
            "--format, --recursive, --overwrite and --parallel are for folders; "
            f"{options.source} is none."
        )
    output_format = check_output(options.target)
    check_input(options.source)
    if server is not None:
        remote.upscale_file(options, output_format, server)
    else:
        _upscale_file(options, output_format)


def _upscale_file(options: UpscaleOptions, output_format: str) -> None:
    """One file here, to one result, or to one for each of `--seeds`, which share network calls."""
    require_torch()
    settings = load(preset=options.preset, **options.machine())
    parameters = parameters_of(settings, options, output_format)
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


def _upscale_folder(options: UpscaleOptions) -> None:
    """The images of a folder that are not done yet.

    Without a seed it is that of the folder's last run, and drawn for the first one: a run that
    resumes gives the images that the first would have given.
    """
    start = monotonic()
    plan = make_plan(options)
    others = f"; {plan.others} other file{'s' * (plan.others != 1)} left alone" * bool(plan.others)
    if not plan.items and not plan.faults:
        console.print(f"There is no image in {escape(str(options.source))}{others}.")
        return
    # What can be wrong for all images is found out before the first.
    if options.server is None:
        require_torch()
        settings = load(preset=options.preset, **options.machine())
        preset: str | None = settings.preset
        for output_format in {item.output_format for item in plan.items}:
            parameters_of(settings, options, output_format)
        run: Callable[[Work, UpscaleOptions], None] = partial(_upscale_here, settings)
    else:
        # It also tells whether the address is right.
        with remote.connect(options.server, options.api_key) as client:
            default = client.models().default
        preset = options.preset or (None if default is None else default.name)
        run = partial(remote.upscale_folder, options.server)
    with ends_as_interrupt(), Journal(options.target) as journal:
        seed = journal.seed if options.seed is None else options.seed
        seed = secrets.randbelow(SEED_MAX + 1) if seed is None else seed
        options = replace(options, preset=preset, seed=seed)
        with FolderView() as view:
            work = Work(plan, journal, view, options)
            journal.write("run", seed=seed)
            before = f", {work.before} done before" if work.before else ""
            try:
                view.begin(work.total, f"{images(work.total)} to do{before}{others}.")
                for name, reason in plan.faults.items():
                    work.note(name, reason)
                if work.todo:
                    run(work, options)
            except BaseException:
                view.stop()
                console.print(f"{_count(work)}. The same command goes on from here.")
                raise
    time = duration(monotonic() - start)
    console.print(f"{_count(work)}; preset {preset}, seed {seed}, {time}.")
    if work.faults:
        lines = "\n".join(f"  {printable(name)}: {why}" for name, why in work.faults.items())
        raise PartialFailure(f"{images(len(work.faults))} failed:\n{lines}")


def _upscale_here(settings: Settings, work: Work, options: UpscaleOptions) -> None:
    """One image after another, by one model in this process."""
    model = LocalModel(settings, options.decode_tile)
    for item in work.todo:
        parameters = parameters_of(settings, options, item.output_format)
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


def _count(work: Work) -> str:
    before = f", {work.before} before" if work.before else ""
    return f"{work.result_count} of {images(work.total)} done{before}, {len(work.faults)} failed"
