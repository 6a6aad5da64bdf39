"""The `stablesr` command: its commands and how it ends; the work is done by the modules named."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from cli import demo, evaluate, keys, plan, stack, status, train, upscale, weights
from cli.checks import load, require_torch
from cli.errors import BadSettings, CliError, translate
from cli.options import Device, Preset, option
from cli.view import console

EXIT_CODES = (
    "Exit codes: 0 success, 1 unforeseen error, 2 wrong option, 3 input or output file, "
    "4 no server answers, 5 refused by the server, 6 the job failed, 7 an extra is not installed, "
    "8 a part did not start, 9 some images of a folder failed, 130 interrupted."
)


class _Group(TyperGroup):
    """Turns the command's own errors into one sentence and an exit code."""

    # Any: the context's class is click's or typer's own copy of it, by typer's version.
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
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
    from jobs.errors import InvalidSettings
    from service.run import main

    with translate({InvalidSettings: BadSettings}):
        main(load(host=host, port=port))


@app.command()
def worker(
    preset: Preset = None,
    device: Device = None,
    slots: Annotated[int | None, option("Jobs run together.")] = None,
) -> None:
    """Run a worker alone; its settings are STABLESR_* environment variables."""
    require_torch()
    from worker.supervisor import main

    raise typer.Exit(main(load(preset=preset, device=device, slots=slots)))


app.command("upscale")(upscale.upscale)
app.command("plan")(plan.plan)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("status")(status.status)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(keys.app, name="keys")
app.add_typer(weights.app, name="weights")
