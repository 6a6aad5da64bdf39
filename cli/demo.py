"""`stablesr demo`: the whole service started for one photograph, and what came of it in numbers."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.table import Table

from cli.errors import CliError, check_input, file_errors
from cli.options import Preset, argument
from cli.processes import ends_as_interrupt, require_posix
from cli.remote import connect, follow
from cli.stack import Stack
from cli.view import ProgressView, console
from models.checkpoints.files import write_aside
from stablesr_client import Job

SCALE = 4
SEED = 42
PHOTOGRAPH = "kingfisher.jpg"
"""The bundled one, in `cli/photographs`."""
STAGES = ("queue", "load", "encode", "denoise", "decode", "total")


def demo(
    image: Annotated[Path | None, argument("Your own image; without one the bundled one.")] = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Where upscaled.png and side-by-side.png go.")
    ] = Path(),
    preset: Preset = None,
) -> None:
    """Upscale a photograph through a whole service started for it, and stop that again."""
    require_posix("demo")
    photograph = as_file(files("cli") / "photographs" / PHOTOGRAPH)
    start = time.monotonic()
    target, pair = folder / "upscaled.png", folder / "side-by-side.png"
    with (
        ends_as_interrupt(),
        nullcontext(image) if image is not None else photograph as source,
        tempfile.TemporaryDirectory(prefix="stablesr-demo-") as data,
    ):
        check_input(source)
        with Stack(Path(data), port=0, preset=preset) as stack:
            stack.start()
            ready_s = time.monotonic() - start
            with connect(stack.url, None) as client, ProgressView("uploading") as view:
                job = client.submit(source, scale=SCALE, seed=SEED, output_format="png")
                job = follow(client, job, view)
                client.download(job, target)
        sizes = _write_pair(source, target, job, pair)
    table = Table(title=f"{source.name}: {sizes} pixels, preset {job.preset}, seed {job.seed}")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_row("parts started and model loaded", f"{ready_s:.1f}")
    for stage in STAGES:
        seconds = (job.timings or {}).get(stage)
        if seconds is not None:
            table.add_row(f"job: {stage}", f"{seconds:.2f}")
    table.add_row("all, from start to stop", f"{time.monotonic() - start:.1f}")
    console.print(table)
    console.print(f"Written: {target} and {pair}", soft_wrap=True)


def _write_pair(source: Path, target: Path, job: Job, pair: Path) -> str:
    """Draws the bicubic enlargement and the result side by side; gives both sizes in words.

    Raises:
        CliError: the result has not the size that was asked for.
    """
    band, gap = 36, 8
    with Image.open(source) as before, Image.open(target) as after:
        upright = ImageOps.exif_transpose(before).convert("RGB")
        result = after.convert("RGB")
        sizes = f"{before.width} x {before.height} -> {after.width} x {after.height}"
    size = (SCALE * upright.width, SCALE * upright.height)
    if result.size != size:
        raise CliError(
            f"{target} has {result.width} x {result.height} pixels; {SCALE} times "
            f"{upright.width} x {upright.height} is {size[0]} x {size[1]}."
        )
    sheet = Image.new("RGB", (2 * result.width + gap, result.height + band), "white")
    sheet.paste(upright.resize(size, Image.Resampling.BICUBIC), (0, 0))
    sheet.paste(result, (result.width + gap, 0))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    captions = (f"bicubic x{SCALE}", f"StableSR, preset {job.preset}, x{SCALE}")
    for text, left in zip(captions, (0, result.width + gap), strict=True):
        middle = (left + result.width // 2, result.height + band // 2)
        draw.text(middle, text, fill="black", font=font, anchor="mm")
    with file_errors(pair, "written"), write_aside(pair) as aside:
        sheet.save(aside, format="PNG")
    return sizes
