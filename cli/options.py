"""The options of `stablesr upscale`: their types and help, and what was chosen of them.

An option that says how an image is upscaled has the name of its field in `jobs.schema.Parameters`.
A new one is added in three places: its type here, a field of `Choices`, and `cli.main.upscale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "PARALLEL",
    "ApiKey",
    "Choices",
    "ColorFix",
    "ColorFixOption",
    "Compile",
    "Data",
    "DecodeTile",
    "Devices",
    "Eta",
    "FidelityWeight",
    "FolderFormat",
    "Format",
    "GuidanceScale",
    "NegativePrompt",
    "Overwrite",
    "Parallel",
    "Preset",
    "Prompt",
    "Recursive",
    "Sampler",
    "SamplerOption",
    "Scale",
    "Seed",
    "Seeds",
    "Server",
    "Source",
    "Start",
    "StartOption",
    "Steps",
    "Target",
    "TileBatch",
]


class ColorFix(StrEnum):
    """How the result's colours are matched to the input's."""

    adain = "adain"
    wavelet = "wavelet"
    none = "none"


class Sampler(StrEnum):
    """How the diffusion is sampled."""

    ddpm = "ddpm"
    ddim = "ddim"
    dpmpp = "dpmpp"
    unipc = "unipc"


class Start(StrEnum):
    """Where sampling begins."""

    lr = "lr"
    noise = "noise"


class FolderFormat(StrEnum):
    """The format of a folder's results."""

    png = "png"
    webp = "webp"
    jpeg = "jpeg"
    tiff = "tiff"
    same = "same"


PARALLEL = 4
"""Images of a folder that a server is given at once."""
FOLDERS = "Folders"
MEMORY = "This machine"

Source = Annotated[
    Path,
    typer.Argument(metavar="IN", help="The image, or a folder of images.", show_default=False),
]
Target = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="The result; .png, .webp, .jpg or .tif says the format. For a folder, a folder.",
        show_default=False,
    ),
]
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
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed, the same image.", show_default="drawn")
]
TileBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tiles in one network call on this machine.",
        show_default="what memory has room for",
        rich_help_panel=MEMORY,
    ),
]
DecodeTile = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rows of pixels that this machine decodes at once.",
        show_default="what memory has room for",
        rich_help_panel=MEMORY,
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the networks on this machine, which takes minutes at first.",
        show_default="no",
        rich_help_panel=MEMORY,
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1000,
        help="So many results, from --seed on, in files named OUT-SEED.",
        show_default=False,
    ),
]
ColorFixOption = Annotated[
    ColorFix | None, typer.Option(help="Colours from the input.", show_default="adain")
]
SamplerOption = Annotated[
    Sampler | None,
    typer.Option(help="dpmpp and unipc need fewer steps than ddpm and ddim.", show_default="ddpm"),
]
Eta = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Noise of the sampler ddim.", show_default="1"),
]
StartOption = Annotated[
    Start | None,
    typer.Option(help="Begin at the noised input, or at noise alone.", show_default="lr"),
]
Prompt = Annotated[
    str | None,
    typer.Option(help="What the image shows; tiny reads none.", show_default=False),
]
NegativePrompt = Annotated[
    str | None, typer.Option(help="What guidance leads away from.", show_default=False)
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        min=1.0, max=20.0, help="Above 1: closer to the prompt, twice the work.", show_default="1"
    ),
]
Preset = Annotated[
    str | None, typer.Option(help="Which weights: tiny is shipped.", show_default=False)
]
Format = Annotated[
    FolderFormat | None,
    typer.Option(
        "--format",
        help="The results' format; same: each image's own.",
        show_default="png",
        rich_help_panel=FOLDERS,
    ),
]
Recursive = Annotated[
    bool | None,
    typer.Option(
        "--recursive/--no-recursive",
        help="Sub-folders too.",
        show_default="recursive",
        rich_help_panel=FOLDERS,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Do again what is done, and replace whatever is in OUT.",
        rich_help_panel=FOLDERS,
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,
        help="Images that a server is given at once.",
        show_default=str(PARALLEL),
        rich_help_panel=FOLDERS,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Several devices for every network call, such as cuda:0,cuda:1.",
        show_default="the best one",
        rich_help_panel=MEMORY,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="The folder of all state; ~/.local/state/stablesr when not given.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Choices:
    """What the person chose; None leaves a thing to the server's or the preset's default."""

    fidelity_weight: float | None = None
    scale: float | None = None
    steps: int | None = None
    seed: int | None = None
    color_fix: str | None = None
    sampler: str | None = None
    eta: float | None = None
    start: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    preset: str | None = None
    tile_batch: int | None = None
    decode_tile: int | None = None
    compile: bool | None = None
    devices: str | None = None

    def given(self) -> dict[str, float | int | str]:
        """Only what was chosen, but for what this machine alone can be told."""
        host = self.host()
        chosen = {k: v for k, v in vars(self).items() if v is not None}
        return {key: value for key, value in chosen.items() if key not in host}

    def host(self) -> dict[str, int | str | None]:
        """How this machine is used, by the names of its settings."""
        compiling = None if self.compile is None else "on" if self.compile else "off"
        return {
            "tile_batch": self.tile_batch,
            "decode_tile": self.decode_tile,
            "compile": compiling,
            "devices": self.devices,
        }
