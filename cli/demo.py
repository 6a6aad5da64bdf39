"""`stablesr demo`: the whole service started for one photograph, and what came of it in numbers."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.table import Table

from cli.checks import check_input
from cli.errors import CliError
from cli.local import write_aside
from cli.processes import ends_as_interrupt
from cli.remote import connected, follow
from cli.stack import Stack
from cli.view import ProgressView, console
from stablesr_client import Job

__all__ = ["run"]

SCALE = 4
SEED = 42
PHOTOGRAPH = "kingfisher.jpg"
"""The bundled one, in `cli/photographs`."""
STAGES = ("queue", "load", "encode", "denoise", "decode", "total")


class DemoFailed(CliError):
    """The service answered, and the answer is not what was asked for."""


def run(image: Path | None, folder: Path, *, preset: str | None) -> None:
    """Upscales `image` (the bundled photograph when None) four times and writes two files.

    `upscaled.png` is the result, `side-by-side.png` the bicubic enlargement beside it.

    Raises:
        CliError: a part did not start, the image is none, the job failed, or the result has not
            exactly four times the input's size.
    """
    bundled = as_file(files("cli") / "photographs" / PHOTOGRAPH)
    started = time.monotonic()
    with (
        ends_as_interrupt(),
        nullcontext(image) if image is not None else bundled as source,
        tempfile.TemporaryDirectory(prefix="stablesr-demo-") as data,
    ):
        check_input(source)
        upscaled = folder / "upscaled.png"
        with Stack(Path(data), port=0, preset=preset) as stack:
            with console.status("Starting Redis, a worker and the service ..."):
                stack.start()
                stack.wait_ready()
            ready_s = time.monotonic() - started
            job = _upscale(stack.url, source, upscaled)
        _check(source, upscaled)
        pair = folder / "side-by-side.png"
        _write_pair(source, upscaled, job, pair)
    _report(source, upscaled, pair, job, ready_s, time.monotonic() - started)


def _upscale(url: str, source: Path, target: Path) -> Job:
    with connected(url, None) as http, ProgressView("uploading") as view:
        job = http.submit(source, scale=SCALE, seed=SEED, output_format="png")
        job = follow(http, job, view)
        http.download(job, target)
    return job


def _check(source: Path, upscaled: Path) -> None:
    with Image.open(source) as before, Image.open(upscaled) as after:
        width, height = ImageOps.exif_transpose(before).size
        after.load()
        if after.size != (SCALE * width, SCALE * height):
            raise DemoFailed(
                f"{upscaled} has {after.width} x {after.height} pixels; {SCALE} times "
                f"{width} x {height} is {SCALE * width} x {SCALE * height}."
            )


def _write_pair(source: Path, upscaled: Path, job: Job, target: Path) -> None:
    """Draws the bicubic enlargement and the result side by side, each with a caption below."""
    band, gap = 36, 8
    with Image.open(source) as before, Image.open(upscaled) as after:
        result = after.convert("RGB")
        bicubic = ImageOps.exif_transpose(before).convert("RGB")
        bicubic = bicubic.resize(result.size, Image.Resampling.BICUBIC)
    pair = Image.new("RGB", (2 * result.width + gap, result.height + band), "white")
    pair.paste(bicubic, (0, 0))
    pair.paste(result, (result.width + gap, 0))
    draw = ImageDraw.Draw(pair)
    font = ImageFont.load_default(size=18)
    captions = (f"bicubic x{SCALE}", f"StableSR, preset {job.preset}, x{SCALE}")
    for text, left in zip(captions, (0, result.width + gap), strict=True):
        middle = (left + result.width // 2, result.height + band // 2)
        draw.text(middle, text, fill="black", font=font, anchor="mm")
    with write_aside(target) as aside:
        pair.save(aside, format="PNG")


def _report(
    source: Path, upscaled: Path, pair: Path, job: Job, ready_s: float, total_s: float
) -> None:
    with Image.open(source) as before, Image.open(upscaled) as after:
        sizes = f"{before.width} x {before.height} -> {after.width} x {after.height}"
    table = Table(title=f"{source.name}: {sizes} pixels, preset {job.preset}, seed {job.seed}")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_row("parts started and model loaded", f"{ready_s:.1f}")
    for stage in STAGES:
        seconds = (job.timings or {}).get(stage)
        if seconds is not None:
            table.add_row(f"job: {stage}", f"{seconds:.2f}")
    table.add_row("all, from start to stop", f"{total_s:.1f}")
    console.print(table)
    console.print(f"Written: {upscaled} and {pair}", soft_wrap=True)
