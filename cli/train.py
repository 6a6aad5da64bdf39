"""`stablesr train`: one stage of the paper's training, or all of them, from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from cli.checks import require
from cli.errors import BadSettings, InputError, JobFailure, translate
from cli.options import option
from cli.view import console

# The stages of `training.config`, which is not imported here: it needs torch.
Stage = Literal["vae", "prior", "encoder", "decoder", "distill", "cfw", "all"]


def train(
    stage: Annotated[Stage, typer.Argument(help="What is trained; all: what the file describes.")],
    config: Annotated[Path, typer.Option(help="A TOML file such as configs/tiny.toml.")],
    out: Annotated[
        Path | None, option("Where it is kept.", default="runs/ and the file's name")
    ] = None,
    photographs: Annotated[Path | None, option("In place of the file's.")] = None,
    max_steps: Annotated[int | None, option("Stop after these.", min=1)] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a stage on your own photographs: the guidance (encoder), CFW, the prior, the VAE."""
    require("train", "Training")
    from models.errors import ModelError
    from training import run
    from training.config import InvalidRun, NoPhotographs, RunExists, read_settings

    out = out or Path("runs") / config.stem
    faults = dict.fromkeys((NoPhotographs, RunExists), InputError)
    with translate({InvalidRun: BadSettings, **faults, ModelError: JobFailure}):
        settings = read_settings(config)
        if photographs is not None:
            data = settings.data.model_copy(update={"photographs": photographs})
            settings = settings.model_copy(update={"data": data})
        start: Callable[..., str] = run.train_all if stage == "all" else partial(run.train, stage)
        end = start(settings, out, resume=resume, max_steps=max_steps, on_progress=_print)
    if end == "stopped":
        console.print("Stopped after a checkpoint; --resume goes on from there.")
        raise typer.Exit(130)


def _print(line: str) -> None:
    console.print(escape(line), soft_wrap=True, highlight=False)
