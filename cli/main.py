"""The `stablesr` command: its options and their help; the work is done by the modules named.

Everything heavy is imported inside the commands, so that help and a remote upscale start fast
and need no torch.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from cli import evaluate, keys, weights
from cli.errors import CliError
from cli.options import (
    ApiKey,
    Choices,
    ColorFixOption,
    Compile,
    Data,
    DecodeTile,
    Devices,
    Eta,
    FidelityWeight,
    Format,
    GuidanceScale,
    NegativePrompt,
    Overwrite,
    Parallel,
    Preset,
    Prompt,
    Recursive,
    SamplerOption,
    Scale,
    Seed,
    Seeds,
    Server,
    Source,
    StartOption,
    Steps,
    Target,
    TileBatch,
)
from cli.settings import BadSettings, load
from cli.train import Stage, TrainOptions
from cli.view import console

__all__ = ["app"]

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


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stablesr {version('stablesr-server')}")
        raise typer.Exit


app.add_typer(evaluate.app, name="evaluate")
app.add_typer(keys.app, name="keys")
app.add_typer(weights.app, name="weights")


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

    require_torch()
    from worker.run import main

    raise typer.Exit(main(load(preset=preset, device=device, slots=slots)))


@app.command()
def upscale(
    source: Source,
    target: Target,
    server: Server = None,
    api_key: ApiKey = None,
    fidelity_weight: FidelityWeight = None,
    scale: Scale = None,
    steps: Steps = None,
    seed: Seed = None,
    seeds: Seeds = None,
    color_fix: ColorFixOption = None,
    sampler: SamplerOption = None,
    eta: Eta = None,
    start: StartOption = None,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: GuidanceScale = None,
    preset: Preset = None,
    output_format: Format = None,
    recursive: Recursive = None,
    overwrite: Overwrite = False,
    parallel: Parallel = None,
    tile_batch: TileBatch = None,
    decode_tile: DecodeTile = None,
    compile_: Compile = None,
    devices: Devices = None,
) -> None:
    """Upscale one image, or all images of a folder into another."""
    from cli import upscale as work

    choices = Choices(
        fidelity_weight=fidelity_weight,
        scale=scale,
        steps=steps,
        seed=seed,
        color_fix=color_fix.value if color_fix else None,
        sampler=sampler.value if sampler else None,
        eta=eta,
        start=start.value if start else None,
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        preset=preset,
        tile_batch=tile_batch,
        decode_tile=decode_tile,
        compile=compile_,
        devices=devices,
    )
    work.run(
        source,
        target,
        choices,
        server=server,
        api_key=api_key,
        seeds=seeds,
        folders=work.ForFolders(output_format, recursive, overwrite, parallel),
    )


@app.command()
def plan(
    size: Annotated[str, typer.Argument(metavar="WIDTHxHEIGHT", help="The input's, in pixels.")],
    scale: Scale = None,
    steps: Steps = None,
    preset: Preset = None,
    fidelity_weight: FidelityWeight = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Of tiles, in latent cells.", show_default="the preset's"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda; with --memory it need not be here.", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16.", show_default="the device's"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="What there is on the device, such as 8GB.", show_default="what is free"),
    ] = None,
    tile_batch: TileBatch = None,
    decode_tile: DecodeTile = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what an image would take, before it is computed: tiles, memory, arithmetic."""
    from cli.plan import run

    run(
        size,
        load(
            preset=preset,
            device=device,
            dtype=dtype,
            memory_limit=memory,
            tile_batch=tile_batch,
            decode_tile=decode_tile,
        ),
        scale=scale,
        steps=steps,
        fidelity_weight=fidelity_weight,
        overlap=overlap,
        as_json=as_json,
    )


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


@app.command()
def train(
    stage: Annotated[Stage, typer.Argument(help="What is trained; all: what the file describes.")],
    config: Annotated[Path, typer.Option(help="A TOML file such as configs/tiny.toml.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where it is kept.", show_default="runs/ and the file's name"),
    ] = None,
    photographs: Annotated[
        Path | None, typer.Option(help="In place of the file's.", show_default=False)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after these.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a stage on your own photographs: the guidance (encoder), CFW, the prior, the VAE."""
    from cli import train as work

    work.run(stage, TrainOptions(config, out, photographs, max_steps, resume))


@app.command()
def status(server: Server = None, api_key: ApiKey = None) -> None:
    """Show a server's workers, its queue and what became of its jobs."""
    from cli import status as show

    show.run(server or show.DEFAULT_SERVER, api_key)


if __name__ == "__main__":
    app(prog_name="stablesr")
