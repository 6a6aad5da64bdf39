"""`stablesr upscale --seeds N`: one image from several seeds, each result in a file of its own."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from time import monotonic

from cli.extras import require_torch
from cli.files import check_input, check_output
from cli.local import LocalModel, parameters_of
from cli.options import Choices
from cli.remote import cancel, connected, follow, form
from cli.settings import load
from cli.view import ProgressView, console
from jobs.schema import SEED_MAX

__all__ = ["run_here", "run_remotely", "targets_of"]


def targets_of(target: Path, first: int, count: int) -> dict[int, Path]:
    """`count` seeds from `first` on, each with its file: `out-7.png` for `out.png` and seed 7."""
    seeds = [(first + i) % (SEED_MAX + 1) for i in range(count)]
    return {seed: target.with_name(f"{target.stem}-{seed}{target.suffix}") for seed in seeds}


def run_here(source: Path, target: Path, choices: Choices, count: int) -> None:
    """Upscales `source` from `count` seeds in this process, the seeds sharing network calls.

    Raises:
        CliError: as `cli.local.run` does.
    """
    output_format = check_output(target)
    check_input(source)
    require_torch()
    settings = load(preset=choices.preset, **choices.host())
    parameters = parameters_of(settings, choices, output_format)
    targets = targets_of(target, parameters.seed, count)
    started = monotonic()
    with ProgressView("loading") as view:
        model = LocalModel(settings)
        written = model.upscale_seeds(source, targets, parameters, view.show)
    for path, result in zip(targets.values(), written, strict=True):
        console.print(
            f"{path}: {result.width} x {result.height} pixels, {result.bytes} bytes.",
            soft_wrap=True,
        )
    console.print(
        f"Preset {parameters.preset}, {monotonic() - started:.1f} s on {model.device}.",
        soft_wrap=True,
    )


def run_remotely(
    source: Path, target: Path, server: str, api_key: str | None, choices: Choices, count: int
) -> None:
    """Upscales `source` from `count` seeds through a server: as many jobs, all submitted at once.

    Whatever ends this early cancels those that have not ended.

    Raises:
        CliError: as `cli.remote.run` does.
    """
    output_format = check_output(target)
    check_input(source)
    first = secrets.randbelow(SEED_MAX + 1) if choices.seed is None else choices.seed
    targets = targets_of(target, first, count)
    with connected(server, api_key) as http, ProgressView("uploading") as view:
        jobs = {}
        try:
            for seed in targets:
                fields = form(replace(choices, seed=seed), output_format)
                jobs[seed] = http.submit(source, **fields)
            for seed, path in targets.items():
                http.download(follow(http, jobs[seed], view), path)
                del jobs[seed]
        except BaseException:
            # Also an interruption: nobody waits for the other results any more.
            for job in jobs.values():
                cancel(http, job)
            raise
    for path in targets.values():
        console.print(f"{path}", soft_wrap=True)
