"""The options of the command that several commands share, and the one table of `upscale`.

An option that says how an image is upscaled has the name, the bounds and the default of its field
in `models.parameters.UpscaleParameters`; one for this machine has the name of its field in
`jobs.settings.Settings`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

from models.parameters import (
    SEED_MAX,
    Alpha,
    Init,
    MetadataChoice,
    OutputFormat,
    SamplerName,
    UpscaleParameters,
)
from models.presets import ColorFix

PARALLEL = 4
"""Images of a folder that a server is given at once."""
SIDE = "Of the result, px, in place of --scale."
ROOM = "what memory has room for"


def option(help: str, *names: str, default: str | bool = False, **more: Any) -> Any:
    """An option that may be left out; `default` says in the help what is taken then."""
    return typer.Option(*names, help=help, show_default=default, **more)


def argument(help: str, metavar: str | None = None) -> Any:
    """An argument that has no default to show."""
    return typer.Argument(metavar=metavar, help=help, show_default=False)


def parameter(name: str, help: str = "", default: str = "") -> Any:
    """An option for a field of UpscaleParameters; `help` in place of the field's description."""
    field = UpscaleParameters.model_fields[name]
    bounds: dict[type, Any] = {type(limit): limit for limit in field.metadata}
    number = float if "float" in str(field.annotation) else int
    limits = {}
    if Ge in bounds:
        limits = {"min": number(bounds[Ge].ge), "max": number(bounds[Le].le)}
    if not default and field.default is not None:
        default = f"{field.default:g}" if number is float and limits else str(field.default)
    return option(help or f"{field.description}.", default=default or False, **limits)


def parser(kind: Any, what: str) -> Callable[[str], Any]:
    """Reads an option's text as pydantic reads that type; `what` says what it would be."""

    def parse(text: str) -> Any:
        try:
            return TypeAdapter(kind).validate_python(text)
        except ValidationError as error:
            raise typer.BadParameter(f"{text!r} is no {what}.") from error

    return parse


_folder = functools.partial(option, rich_help_panel="Folders")
_machine = functools.partial(option, rich_help_panel="This machine")

Server = Annotated[
    str | None,
    option(
        "The address of a server; without one this machine does the work.", envvar="STABLESR_SERVER"
    ),
]
ApiKey = Annotated[
    str | None,
    option(
        "The server's key; better in the environment, where other users cannot see it.",
        envvar="STABLESR_API_KEY",
    ),
]
Preset = Annotated[str | None, option("Which weights: tiny is shipped.")]
FidelityWeight = Annotated[
    float | None,
    parameter(
        "fidelity_weight", "0: more invented detail, 1: closer to the input.", default="preset's"
    ),
]
Scale = Annotated[float | None, parameter("scale", "How much larger.")]
Steps = Annotated[int | None, parameter("steps", "Sampling steps.", default="preset's")]
ColorFixOption = Annotated[ColorFix | None, parameter("color_fix", "Colours from the input.")]
TileBatch = Annotated[
    int | None, _machine("Tiles in one network call on this machine.", default=ROOM, min=1)
]
DecodeTile = Annotated[
    int | None, _machine("Rows of pixels that this machine decodes at once.", default=ROOM, min=1)
]
Device = Annotated[str | None, option("Such as cuda:0 or cpu.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@dataclass(frozen=True)
class UpscaleOptions:
    """What `stablesr upscale` was asked for; None leaves a thing to the server or the preset."""

    source: Annotated[Path, argument("The image, or a folder of images.", "IN")]
    target: Annotated[
        Path,
        argument(
            "The result; .png, .webp, .avif, .jpg or .tif says the format. For a folder, a folder.",
            "OUT",
        ),
    ]
    server: Server = None
    api_key: ApiKey = None
    fidelity_weight: FidelityWeight = None
    scale: Scale = None
    width: Annotated[int | None, parameter("width", SIDE)] = None
    height: Annotated[int | None, parameter("height", SIDE)] = None
    megapixels: Annotated[
        float | None, parameter("megapixels", "Of the result, in place of --scale.")
    ] = None
    page: Annotated[int | None, parameter("page")] = None
    steps: Steps = None
    seed: Annotated[
        int | None, parameter("seed", "The same seed, the same image.", default="drawn")
    ] = None
    seeds: Annotated[
        int | None,
        option("So many results, from --seed on, in files named OUT-SEED.", min=1, max=1000),
    ] = None
    color_fix: ColorFixOption = None
    sampler: Annotated[
        SamplerName | None,
        parameter("sampler", "dpmpp and unipc need fewer steps than ddpm and ddim."),
    ] = None
    eta: Annotated[float | None, parameter("eta", "Noise of the sampler ddim.", default="1")] = None
    start: Annotated[Init | None, parameter("start")] = None
    prompt: Annotated[str | None, parameter("prompt", "What the image shows; tiny reads none.")] = (
        None
    )
    negative_prompt: Annotated[str | None, parameter("negative_prompt")] = None
    guidance_scale: Annotated[
        float | None, parameter("guidance_scale", "Above 1: closer to the prompt, twice the work.")
    ] = None
    preset: Preset = None
    priority: Annotated[
        Literal["normal", "low"] | None,
        option("At a server; low: when nothing else waits.", default="normal"),
    ] = None
    expires_in: Annotated[
        int | None,
        option("Seconds that a server has for each image.", default="a week", min=1, max=604800),
    ] = None
    output_format: Annotated[
        Literal[OutputFormat, "same"] | None,
        _folder("The results' format; same: each image's own.", "--format", default="png"),
    ] = None
    alpha: Annotated[Alpha | None, parameter("alpha")] = None
    quality: Annotated[int | None, parameter("quality", default="95")] = None
    # The files are the user's own, and often an archive: here nothing is lost unless asked for.
    metadata: Annotated[
        MetadataChoice, parameter("metadata", "Of the input; all: where it was taken, too.", "keep")
    ] = "keep"
    recursive: Annotated[
        bool | None, _folder("Sub-folders too.", "--recursive/--no-recursive", default="recursive")
    ] = None
    overwrite: Annotated[
        bool,
        _folder(
            "Do again what is done, and replace whatever is in OUT.", "--overwrite", default=True
        ),
    ] = False
    fit: Annotated[
        bool,
        _folder("Make what is too large at the largest scale that fits.", "--fit", default=True),
    ] = False
    parallel: Annotated[
        int | None,
        _folder("Images that a server is given at once.", default=str(PARALLEL), min=1, max=64),
    ] = None
    tile_batch: TileBatch = None
    decode_tile: DecodeTile = None
    compile: Annotated[
        bool | None,
        _machine(
            "Compile the networks on this machine, which takes minutes at first.",
            "--compile/--no-compile",
            default="no",
        ),
    ] = None
    devices: Annotated[
        str | None,
        _machine(
            "Several devices for every network call, such as cuda:0,cuda:1.",
            default="the best one",
            metavar="NAMES",
        ),
    ] = None

    def parameters(self, output_format: str) -> dict[str, Any]:
        """The parameters of an image with that format that are not left to a default."""
        values = {**vars(self), "output_format": output_format}
        names = UpscaleParameters.model_fields
        return {k: v for k, v in values.items() if k in names and v is not None}

    def handling(self) -> dict[str, Any]:
        """How a server treats the job, whatever its image; what is not left to a default."""
        values = {"priority": self.priority, "expires_in": self.expires_in}
        return {name: value for name, value in values.items() if value is not None}

    def machine(self) -> dict[str, int | str | None]:
        """How this machine is used, by the names of its settings."""
        return {
            "tile_batch": self.tile_batch,
            "compile": None if self.compile is None else "on" if self.compile else "off",
            "device": self.devices,
        }

    @property
    def has_folder_options(self) -> bool:
        """Whether there is one of those that only a folder has."""
        values = (self.output_format, self.recursive, self.parallel)
        return self.overwrite or self.fit or any(value is not None for value in values)

    def targets(self, seed: int) -> dict[int, Path]:
        """The seeds from `seed` on, each with its file: `out-7.png` for `out.png` and seed 7."""
        if self.seeds is None:
            return {seed: self.target}
        path = self.target
        seeds = [(seed + i) % (SEED_MAX + 1) for i in range(self.seeds)]
        return {seed: path.with_name(f"{path.stem}-{seed}{path.suffix}") for seed in seeds}


def with_options(function: Callable[[UpscaleOptions], None]) -> Callable[..., None]:
    """Gives a command the fields of UpscaleOptions as its options; it takes an instance of it."""

    @functools.wraps(function)
    def command(**options: Any) -> None:
        function(UpscaleOptions(**options))

    command.__annotations__ = {}
    signature = inspect.signature(UpscaleOptions, eval_str=True)
    command.__signature__ = signature  # type: ignore[attr-defined]  # typer reads it
    return command
