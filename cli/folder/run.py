"""`stablesr upscale IN_DIR OUT_DIR` from beginning to end."""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from time import monotonic

from rich.markup import escape

from cli.checks import load, require_torch
from cli.errors import InputError, JobFailed, SomeFailed
from cli.folder import remote
from cli.folder.journal import Journal, Work
from cli.folder.plan import Plan, images, make_plan
from cli.local import LocalModel, parameters_of
from cli.options import UpscaleOptions
from cli.processes import ends_as_interrupt
from cli.view import FolderView, console, duration, printable
from jobs.settings import Settings
from models.parameters import SEED_MAX

__all__ = ["run"]


def run(options: UpscaleOptions) -> None:
    """Upscales the images of a folder that are not done yet.

    Without a seed it is that of the folder's last run, and drawn for the first one: a run that
    goes on gives the images that the first would have given.

    Raises:
        SomeFailed: images failed; all others are done.
        CliError: nothing was begun, or nothing more can be.
    """
    start = monotonic()
    plan = make_plan(
        options.source,
        options.target,
        output_format=options.output_format or "png",
        recursive=options.recursive is not False,
    )
    if not plan.items and not plan.faults:
        console.print(f"There is no image in {escape(str(options.source))}{_others(plan)}.")
        return
    # What can be wrong for all images is found out before the first.
    settings: Settings | None = None
    if options.server is None:
        require_torch()
        settings = load(preset=options.preset, **options.machine())
        preset: str | None = settings.preset
        for output_format in {item.output_format for item in plan.items}:
            parameters_of(settings, options, output_format)
    else:
        default = remote.default_preset(options.server, options.api_key)
        preset = options.preset or default
    with ends_as_interrupt(), Journal(options.target) as journal:
        seed = journal.seed if options.seed is None else options.seed
        seed = secrets.randbelow(SEED_MAX + 1) if seed is None else seed
        options = replace(options, preset=preset, seed=seed)
        with FolderView() as view:
            work = Work(plan, journal, view, options.parameters(), overwrite=options.overwrite)
            journal.write("run", seed=seed)
            try:
                work.announce(plan.faults, _summary(plan, work))
                if work.todo and settings is not None:
                    _here(work, options, settings)
                elif work.todo and options.server is not None:
                    remote.upscale_all(work, options, options.server)
            except BaseException:
                view.stop()
                console.print(f"{_count(work)}. The same command goes on from here.")
                raise
    time = duration(monotonic() - start)
    console.print(f"{_count(work)}; preset {preset}, seed {seed}, {time}.")
    if work.failed:
        names = "\n".join(f"  {printable(fault.name)}: {fault.reason}" for fault in work.failed)
        raise SomeFailed(f"{images(len(work.failed))} failed:\n{names}")


def _here(work: Work, options: UpscaleOptions, settings: Settings) -> None:
    """One image after another, by one model in this process."""
    model = LocalModel(settings, options.decode_tile)
    for item in work.todo:
        if not work.begin(item):
            continue
        parameters = parameters_of(settings, options, item.output_format)
        targets = {parameters.seed: item.target}
        try:
            [written] = model.upscale(item.source, targets, parameters, partial(work.moved, item))
        except (InputError, JobFailed) as error:
            work.fail(item, str(error))
        # One bad file never stops the rest, whatever a decoder or the device makes of it.
        except Exception as error:
            work.fail(item, f"{type(error).__name__}: {error}")
        else:
            work.end(item, written)


def _summary(plan: Plan, work: Work) -> str:
    before = f", {work.before} done before" if work.before else ""
    return f"{images(len(work.todo) + len(plan.faults))} to do{before}{_others(plan)}."


def _others(plan: Plan) -> str:
    return f"; {plan.others} other file{'s' * (plan.others != 1)} left alone" * (plan.others > 0)


def _count(work: Work) -> str:
    before = f", {work.before} before" if work.before else ""
    total = len(work.todo) + work.unbegun
    return f"{work.done} of {images(total)} done{before}, {len(work.failed)} failed"
