"""The `stablesr` command: its commands and how it ends; the work is done by the modules named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from typer.core import TyperGroup

from cli import demo, errors, evaluate, jobs, operations, plan, stack, upscale, weights
from cli.options import Device, Preset, option
from cli.processes import require_posix
from cli.view import console, print_text

EXIT_CODES = (
    "Exit codes: 0 success, 1 unforeseen error, 2 wrong option, 3 input or output file, "
    "4 no server answers, 5 refused by the server, 6 the job failed, 7 an extra is not installed, "
    "8 a part did not start, 9 some images of a folder failed, 130 interrupted."
)

# The stages of `training.config`, which is not imported here: it needs torch.
Stage = Literal["vae", "prior", "encoder", "decoder", "distill", "cfw", "all"]


class _Group(TyperGroup):
    """Turns the command's own errors into one sentence and an exit code."""

    # Any: the context's class is click's or typer's own copy of it, by typer's version.
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except errors.CliError as error:
            console.print(f"[bold red]Error:[/bold red] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            console.print("Interrupted.")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="stablesr",
    cls=_Group,
    help="Upscale images with StableSR: alone, through a server, or as the server itself.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"stablesr {version('stablesr-server')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say it, end.")
    ] = False,
) -> None:
    pass


app.command("up")(stack.up)


@app.command()
def serve(
    host: Annotated[str | None, option("In place of STABLESR_HOST.")] = None,
    port: Annotated[int | None, option("In place of STABLESR_PORT.")] = None,
) -> None:
    """Run the HTTP service alone; its settings are STABLESR_* environment variables."""
    require_posix("serve")
    from jobs.errors import InvalidSettings
    from service.run import main

    with errors.translate({InvalidSettings: errors.BadSettings}):
        main(errors.load(host=host, port=port))


@app.command()
def worker(
    preset: Preset = None,
    device: Device = None,
    slots: Annotated[int | None, option("Jobs run together.")] = None,
) -> None:
    """Run a worker alone; its settings are STABLESR_* environment variables."""
    require_posix("worker")
    errors.require_torch()
    from worker.supervisor import main

    raise typer.Exit(main(errors.load(preset=preset, device=device, slots=slots)))


app.command("drain")(operations.drain)
app.command("upscale")(upscale.upscale)
app.command("plan")(plan.plan)
app.command("demo")(demo.demo)


@app.command()
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
    errors.require("train", "Training")
    from models.errors import ModelError
    from training import run
    from training.config import InvalidRun, NoPhotographs, RunExists, read_settings

    out = out or Path("runs") / config.stem
    kinds = dict.fromkeys((NoPhotographs, RunExists), errors.InputError)
    with errors.translate({InvalidRun: errors.BadSettings, **kinds, ModelError: errors.JobFailure}):
        settings = read_settings(config)
        if photographs is not None:
            data = settings.data.model_copy(update={"photographs": photographs})
            settings = settings.model_copy(update={"data": data})
        start: Callable[..., str] = run.train_all if stage == "all" else partial(run.train, stage)
        end = start(settings, out, resume=resume, max_steps=max_steps, on_progress=print_text)
    if end == "stopped":
        console.print("Stopped after a checkpoint; --resume goes on from there.")
        raise typer.Exit(130)


app.command("status")(operations.status)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(jobs.app, name="jobs")
app.add_typer(operations.keys, name="keys")
app.add_typer(operations.queue, name="queue")
app.add_typer(weights.app, name="weights")
