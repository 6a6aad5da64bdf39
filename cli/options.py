"""The options of the command that several commands share, and the one table of `upscale`.

An option that says how an image is upscaled has the name of its field in `jobs.schema.Parameters`;
one for this machine has the name of its field in `jobs.settings.Settings`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from jobs.schema import SEED_MAX, ColorFix, OutputFormat, Parameters, Sampler, Start

__all__ = [
    "ApiKey",
    "AsJson",
    "ColorFixOption",
    "Data",
    "DecodeTile",
    "Device",
    "FidelityWeight",
    "Preset",
    "Scale",
    "Server",
    "Steps",
    "TileBatch",
    "UpscaleOptions",
    "with_options",
]

PARALLEL = 4
"""Images of a folder that a server is given at once."""
FOLDERS = "Folders"
MACHINE = "This machine"

Server = Annotated[
    str | None,
    typer.Option(
        envvar="STABLESR_SERVER",
        help="The address of a server; without one this machine does the work.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="STABLESR_API_KEY",
        help="The server's key; better in the environment, where other users cannot see it.",
        show_default=False,
    ),
]
Preset = Annotated[
    str | None, typer.Option(help="Which weights: tiny is shipped.", show_default=False)
]
FidelityWeight = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="0: more invented detail, 1: closer to the input.",
        show_default=False,
    ),
]
Scale = Annotated[
    float | None, typer.Option(min=1.0, max=16.0, help="How much larger.", show_default="4")
]
Steps = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Sampling steps.", show_default="preset's")
]
ColorFixOption = Annotated[
    ColorFix | None, typer.Option(help="Colours from the input.", show_default="adain")
]
TileBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tiles in one network call on this machine.",
        show_default="what memory has room for",
        rich_help_panel=MACHINE,
    ),
]
DecodeTile = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rows of pixels that this machine decodes at once.",
        show_default="what memory has room for",
        rich_help_panel=MACHINE,
    ),
]
Device = Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.", show_default=False)]
Data = Annotated[
    Path | None,
    typer.Option(
        help="The folder of all state; ~/.local/state/stablesr when not given.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@dataclass(frozen=True)
class UpscaleOptions:
    """What `stablesr upscale` was asked for; None leaves a thing to the server or the preset."""

    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="The image, or a folder of images.", show_default=False),
    ]
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The result; .png, .webp, .jpg or .tif says the format. For a folder, a folder.",
            show_default=False,
        ),
    ]
    server: Server = None
    api_key: ApiKey = None
    fidelity_weight: FidelityWeight = None
    scale: Scale = None
    steps: Steps = None
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed, the same image.", show_default="drawn")
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="So many results, from --seed on, in files named OUT-SEED.",
            show_default=False,
        ),
    ] = None
    color_fix: ColorFixOption = None
    sampler: Annotated[
        Sampler | None,
        typer.Option(
            help="dpmpp and unipc need fewer steps than ddpm and ddim.", show_default="ddpm"
        ),
    ] = None
    eta: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Noise of the sampler ddim.", show_default="1"),
    ] = None
    start: Annotated[
        Start | None,
        typer.Option(help="Begin at the noised input, or at noise alone.", show_default="lr"),
    ] = None
    prompt: Annotated[
        str | None, typer.Option(help="What the image shows; tiny reads none.", show_default=False)
    ] = None
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from.", show_default=False)
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            max=20.0,
            help="Above 1: closer to the prompt, twice the work.",
            show_default="1",
        ),
    ] = None
    preset: Preset = None
    output_format: Annotated[
        Literal[OutputFormat, "same"] | None,
        typer.Option(
            "--format",
            help="The results' format; same: each image's own.",
            show_default="png",
            rich_help_panel=FOLDERS,
        ),
    ] = None
    recursive: Annotated[
        bool | None,
        typer.Option(
            "--recursive/--no-recursive",
            help="Sub-folders too.",
            show_default="recursive",
            rich_help_panel=FOLDERS,
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Do again what is done, and replace whatever is in OUT.",
            rich_help_panel=FOLDERS,
        ),
    ] = False
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Images that a server is given at once.",
            show_default=str(PARALLEL),
            rich_help_panel=FOLDERS,
        ),
    ] = None
    tile_batch: TileBatch = None
    decode_tile: DecodeTile = None
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the networks on this machine, which takes minutes at first.",
            show_default="no",
            rich_help_panel=MACHINE,
        ),
    ] = None
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Several devices for every network call, such as cuda:0,cuda:1.",
            show_default="the best one",
            rich_help_panel=MACHINE,
        ),
    ] = None

    def parameters(self) -> dict[str, Any]:
        """The parameters of an image that are not left to a default, without its format."""
        names = Parameters.model_fields.keys() - {"output_format"}
        return {k: v for k, v in vars(self).items() if k in names and v is not None}

    def machine(self) -> dict[str, int | str | None]:
        """How this machine is used, by the names of its settings."""
        return {
            "tile_batch": self.tile_batch,
            "decode_tile": self.decode_tile,
            "compile": None if self.compile is None else "on" if self.compile else "off",
            "devices": self.devices,
        }

    @property
    def has_folder_options(self) -> bool:
        """Whether there is one of those that only a folder has."""
        values = (self.output_format, self.recursive, self.overwrite or None, self.parallel)
        return any(value is not None for value in values)

    def targets(self, seed: int) -> dict[int, Path]:
        """The seeds from `seed` on, each with its file: `out-7.png` for `out.png` and seed 7."""
        if self.seeds is None:
            return {seed: self.target}
        path = self.target
        seeds = [(seed + i) % (SEED_MAX + 1) for i in range(self.seeds)]
        return {seed: path.with_name(f"{path.stem}-{seed}{path.suffix}") for seed in seeds}


Table = TypeVar("Table")


def with_options(table: type[Table]) -> Callable[[Callable[[Table], None]], Callable[..., None]]:
    """Gives a command the fields of a dataclass as its options; it takes an instance of it."""

    def decorator(function: Callable[[Table], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**options: Any) -> None:
            function(table(**options))

        hints = get_type_hints(table, include_extras=True)
        parameters = inspect.signature(table).parameters.values()
        command.__annotations__ = {}
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
            [parameter.replace(annotation=hints[parameter.name]) for parameter in parameters]
        )
        return command

    return decorator
