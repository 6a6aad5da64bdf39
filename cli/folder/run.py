"""`stablesr upscale IN_DIR OUT_DIR` from beginning to end."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic

from rich.markup import escape

from cli.errors import InputError, JobFailed, SomeFailed
from cli.extras import require_torch
from cli.folder import remote
from cli.folder.journal import Journal
from cli.folder.plan import Plan, images, make_plan, printable
from cli.folder.view import FolderView
from cli.folder.work import Work
from cli.local import LocalModel, parameters_of
from cli.options import Choices
from cli.settings import load
from cli.up import ends_as_interrupt
from cli.view import console, duration
from jobs.schema import SEED_MAX

__all__ = ["FolderOptions", "run"]


@dataclass(frozen=True)
class FolderOptions:
    """What concerns a folder only; see the command's help."""

    output_format: str = "png"
    recursive: bool = True
    overwrite: bool = False
    parallel: int = 4


def run(
    source: Path,
    target: Path,
    choices: Choices,
    options: FolderOptions,
    *,
    server: str | None = None,
    api_key: str | None = None,
) -> None:
    """Upscales the images of `source` that are not done yet into `target`.

    Without a seed it is that of the folder's last run, and drawn for the first one: a run that
    goes on gives the images that the first would have given.

    Raises:
        SomeFailed: images failed; all others are done.
        CliError: nothing was begun, or nothing more can be.
    """
    started = monotonic()
    plan = make_plan(
        source, target, output_format=options.output_format, recursive=options.recursive
    )
    if not plan.items and not plan.faults:
        console.print(f"There is no image in {escape(str(source))}{_others(plan)}.")
        return
    # What can be wrong for all images is found out before the first.
    if server is None:
        require_torch()
        settings = load(preset=choices.preset, **choices.host())
        preset: str | None = settings.preset
        for output_format in {item.output_format for item in plan.items}:
            parameters_of(settings, choices, output_format)
    else:
        default = remote.default_preset(server, api_key)
        preset = choices.preset or default
    with ends_as_interrupt(), Journal(target) as journal:
        choices = replace(choices, preset=preset, seed=_seed(choices, journal))
        with FolderView() as view:
            work = Work(plan, journal, view, choices.given(), overwrite=options.overwrite)
            assert choices.seed is not None
            journal.run(choices.seed)
            try:
                work.announce(plan.faults, _first_words(plan, work))
                if work.todo and server is None:
                    _alone(work, choices)
                elif work.todo and server is not None:
                    remote.upscale_all(work, choices, server, api_key, options.parallel)
            except BaseException:
                view.close()
                console.print(f"{_count(work)}. The same command goes on from here.")
                raise
    _conclude(work, choices, monotonic() - started)


def _alone(work: Work, choices: Choices) -> None:
    """One image after another, by one model in this process."""
    settings = load(preset=choices.preset, **choices.host())
    model = LocalModel(settings)
    for item in work.todo:
        if not work.begin(item):
            continue
        parameters = parameters_of(settings, choices, item.output_format)
        try:
            written = model.upscale(item.source, item.target, parameters, partial(work.moved, item))
        except (InputError, JobFailed) as error:
            work.fail(item, str(error))
        # One bad file never stops the rest, whatever a decoder or the device makes of it.
        except Exception as error:
            work.fail(item, f"{type(error).__name__}: {error}")
        else:
            work.end(item, written)


def _seed(choices: Choices, journal: Journal) -> int:
    if choices.seed is not None:
        return choices.seed
    return secrets.randbelow(SEED_MAX + 1) if journal.seed is None else journal.seed


def _first_words(plan: Plan, work: Work) -> str:
    before = f", {work.before} done before" if work.before else ""
    return f"{images(len(work.todo) + len(plan.faults))} to do{before}{_others(plan)}."


def _others(plan: Plan) -> str:
    return f"; {plan.others} other file{'s' * (plan.others != 1)} left alone" * (plan.others > 0)


def _count(work: Work) -> str:
    before = f", {work.before} before" if work.before else ""
    total = len(work.todo) + work.unbegun
    return f"{work.done} of {images(total)} done{before}, {len(work.failed)} failed"


def _conclude(work: Work, choices: Choices, seconds: float) -> None:
    console.print(
        f"{_count(work)}; preset {choices.preset}, seed {choices.seed}, {duration(seconds)}."
    )
    if work.failed:
        names = "\n".join(f"  {printable(fault.name)}: {fault.reason}" for fault in work.failed)
        raise SomeFailed(f"{images(len(work.failed))} failed:\n{names}")
