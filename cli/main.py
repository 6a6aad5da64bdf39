"""The `stablesr` command: its options and their help; the work is done by the modules named.

Everything heavy is imported inside the commands, so that help and a remote upscale start fast
and need no torch.
"""

from __future__ import annotations

from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from cli.errors import CliError
from cli.view import console

__all__ = ["app"]

EXIT_CODES = (
    "Exit codes: 0 success, 1 unforeseen error, 2 wrong option, 3 input or output file, "
    "4 no server answers, 5 refused by the server, 6 the job failed, 7 an extra is not installed, "
    "8 a part did not start, 130 interrupted."
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


class ColorFix(StrEnum):
    """How the result's colours are matched to the input's."""

    adain = "adain"
    wavelet = "wavelet"
    none = "none"


class Sampler(StrEnum):
    """How the diffusion is sampled."""

    ddpm = "ddpm"
    ddim = "ddim"


Preset = Annotated[
    str | None, typer.Option(help="Which weights: tiny is shipped.", show_default=False)
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="The folder of all state; ~/.local/state/stablesr when not given.",
        show_default=False,
    ),
]


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stablesr {version('stablesr-server')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say it, end.")
    ] = False,
) -> None:
    pass


@app.command()
def up(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8000,
    data: Data = None,
    preset: Preset = None,
) -> None:
    """Start Redis, a worker and the service on this machine, until Ctrl-C."""
    from cli import stack
    from cli import up as embedded

    folder = data or stack.default_data_folder()
    embedded.run(folder, host=host, port=port, preset=preset)


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="In place of STABLESR_HOST.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="In place of STABLESR_PORT.", show_default=False)
    ] = None,
) -> None:
    """Run the HTTP service alone; its settings are STABLESR_* environment variables."""
    from cli.settings import BadSettings, load
    from service.errors import OpenAddress
    from service.run import main

    try:
        main(load(host=host, port=port))
    except OpenAddress as error:
        raise BadSettings(error.detail) from error


@app.command()
def worker(
    preset: Preset = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cuda:0 or cpu.", show_default=False)
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Jobs run together.", show_default=False)
    ] = None,
) -> None:
    """Run a worker alone; its settings are STABLESR_* environment variables."""
    from cli.extras import require_torch
    from cli.settings import load

    require_torch()
    from worker.run import main

    raise typer.Exit(main(load(preset=preset, device=device, slots=slots)))


@app.command()
def upscale(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The image.", show_default=False)],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The result; .png, .webp or .jpg says the format.",
            show_default=False,
        ),
    ],
    server: Annotated[
        str | None,
        typer.Option(
            envvar="STABLESR_SERVER",
            help="The address of a server; without one this machine does the work.",
            show_default=False,
        ),
    ] = None,
    fidelity_weight: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="0: more invented detail, 1: closer to the input.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(min=1.0, max=16.0, help="How much larger.", show_default="4")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Sampling steps.", show_default="preset's")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed, the same image.", show_default="drawn")
    ] = None,
    color_fix: Annotated[
        ColorFix | None, typer.Option(help="Colours from the input.", show_default="adain")
    ] = None,
    sampler: Annotated[Sampler | None, typer.Option(show_default="ddpm")] = None,
    preset: Preset = None,
) -> None:
    """Upscale one image."""
    from cli import upscale as work

    choices = work.Choices(
        fidelity_weight=fidelity_weight,
        scale=scale,
        steps=steps,
        seed=seed,
        color_fix=color_fix.value if color_fix else None,
        sampler=sampler.value if sampler else None,
        preset=preset,
    )
    if server is not None:
        work.remote(source, target, server, choices)
    else:
        from cli import local

        local.run(source, target, choices)


@app.command()
def demo(
    image: Annotated[
        Path | None,
        typer.Argument(help="Your own image; without one the bundled one.", show_default=False),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Where upscaled.png and side-by-side.png go.")
    ] = Path(),
    preset: Preset = None,
) -> None:
    """Upscale a photograph through a whole service started for it, and stop that again."""
    from cli import demo as show

    show.run(image, folder, preset=preset)


if __name__ == "__main__":
    app(prog_name="stablesr")
