"""`stablesr train`: one stage of the paper's training, or all of them, from a configuration."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path

from rich.markup import escape

from cli.errors import CliError, InputError, JobFailed
from cli.extras import require_training
from cli.settings import BadSettings
from cli.view import console

__all__ = ["Stage", "TrainOptions", "run"]


class Stage(StrEnum):
    """What is trained."""

    VAE = "vae"
    PRIOR = "prior"
    ENCODER = "encoder"
    DECODER = "decoder"
    DISTILL = "distill"
    CFW = "cfw"
    ALL = "all"


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """What the command line says beside the configuration."""

    config: Path
    out: Path | None
    """None: `runs/` and the configuration's name."""
    photographs: Path | None
    """In place of the configuration's."""
    max_steps: int | None
    resume: bool


def run(stage: Stage, options: TrainOptions) -> None:
    """Trains until the end, `max_steps` or a signal.

    Raises:
        NotInstalled: the extra `train` is missing.
        BadSettings: the configuration cannot be followed.
        InputError: there are no photographs, or the folder holds another run.
        JobFailed: the weights to start from cannot be read.
    """
    require_training()
    from models.errors import ModelError
    from training.config import STAGES, InvalidRun, NoPhotographs, RunExists, read_settings
    from training.run import train, train_all

    out = options.out or Path("runs") / options.config.stem
    try:
        settings = read_settings(options.config)
        if options.photographs is not None:
            data = settings.data.model_copy(update={"photographs": options.photographs})
            settings = settings.model_copy(update={"data": data})
        if stage is Stage.ALL:
            ended = train_all(
                settings, out, resume=options.resume, max_steps=options.max_steps, say=_say
            )
        else:
            ended = train(
                next(name for name in STAGES if name == stage.value),
                settings,
                out,
                resume=options.resume,
                max_steps=options.max_steps,
                say=_say,
            )
    except InvalidRun as error:
        raise BadSettings(str(error)) from error
    except (NoPhotographs, RunExists) as error:
        raise InputError(str(error)) from error
    except ModelError as error:
        raise JobFailed(str(error)) from error
    if ended == "stopped":
        raise Stopped("Stopped after a checkpoint; --resume goes on from there.")


class Stopped(CliError):
    """A signal ended it; the exit code is that of an interruption."""

    exit_code = 130


def _say(line: str) -> None:
    console.print(escape(line), soft_wrap=True, highlight=False)
